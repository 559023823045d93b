"""What speaks against promoting a version: all of it at once, each with its reason and how to mend it.

Some of it can be overridden by a person who says why, for the ledger. What would leave the service without a model that
can be loaded, or with one that nobody can trace, cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from fairvlm_core.errors import CheckpointError, FairVLMError
from fairvlm_core.evaluation.verdicts import FAIL, PASS
from fairvlm_core.files import read_json, sha256
from fairvlm_core.model_files import describe
from fairvlm_core.registry import lineage, versions
from fairvlm_core.registry.base import require_there
from fairvlm_core.registry.versions import Registered

GATE_PATH = "report/gate.json"
# What `register` always writes about a version.
LINEAGE = ("cohort_sha256", "dvc_data_hash", "fairvlm_version", "fingerprint")
AGAIN = "Run the steps champion, compare and register again, and promote the version that they make."
# What helps where a gate has judged, and did not let the version pass.
TRAIN_AGAIN = "The report of compare says where it falls short: train another one."
JUDGE_AGAIN = "More test patients would tell. So would rules that ask for less (compare.gate), set before the next run."


@dataclass(frozen=True)
class Objection:
    """One reason against a promotion.

    Attributes:
        about: what was checked, in one or two words, as the ledger keeps it.
        final: whether no reason given by a person outweighs it.
    """

    about: str
    reason: str
    mend: str
    final: bool = False


@dataclass(frozen=True)
class Evidence:
    """What is known about a version.

    Attributes:
        artifact: folder with its files; none where they cannot be had.
        gate: gate.json, if it is there and is what was registered.
        verdict: the gate's; "no gate" or "altered" where there is none that could be trusted.
        objections: what speaks against it, whoever is champion.
    """

    found: Registered
    artifact: Path | None
    gate: Mapping[str, Any] | None
    verdict: str
    objections: Sequence[Objection]


def examine(found: Registered, folder: Path) -> Evidence:
    """Fetch a version and its gate.json into `folder`, and check them."""
    objections = _lineage(found)
    gate, verdict, doubt = read_gate(found, folder)
    if doubt:
        objections.append(doubt)
    elif verdict != PASS:
        reasons = " ".join(gate["reasons"]) if gate else found.tags.get("gate_reasons", "")
        mend = TRAIN_AGAIN if verdict == FAIL else JUDGE_AGAIN
        objections.append(Objection("gate", f"The gate's verdict is {verdict}: {reasons}", mend))
    artifact, broken = whole(found, folder)
    return Evidence(found, artifact, gate, verdict, [*objections, *broken])


def read_gate(found: Registered, folder: Path) -> tuple[dict[str, Any] | None, str, Objection | None]:
    """gate.json of the run that logged a version, its verdict, and why it is not to be trusted."""
    tags = found.tags
    if "gate_sha256" not in tags or "gate_verdict" not in tags:
        return None, "no gate", Objection("gate", "No gate judged it: it has no tag gate_verdict.", AGAIN)
    try:
        path = Path(
            mlflow.artifacts.download_artifacts(f"runs:/{found.run_id}/{GATE_PATH}", dst_path=str(folder / "gate"))
        )
    except (MlflowException, OSError):
        reason = f"{GATE_PATH} of its run {found.run_id} cannot be fetched, so nobody can see what the gate judged."
        return None, "no gate", Objection("gate", reason, f"Bring the artifact store back. {AGAIN}")
    altered = "Register it again: what was registered is evidence, and is not edited."
    if sha256(path) != tags["gate_sha256"]:
        reason = f"{GATE_PATH} of its run {found.run_id} is not the one that was registered (tag gate_sha256)."
        return None, "altered", Objection("gate", reason, altered)
    gate = read_json(path, made_by="compare")
    if gate["model"] != tags.get("model"):
        reason = f"The gate judged {gate['model']}, which compare selected, and not {tags.get('model')}."
        return gate, "not judged", Objection("gate", reason, "Register the model that compare selected.")
    if gate["verdict"] != tags["gate_verdict"]:
        reason = f"Its tag gate_verdict says {tags['gate_verdict']}, and {GATE_PATH} says {gate['verdict']}."
        return gate, "altered", Objection("gate", reason, altered)
    return gate, gate["verdict"], None


def whole(found: Registered, folder: Path) -> tuple[Path | None, list[Objection]]:
    """Fetch the files of a version, and say what is wrong with them; nobody can override it."""
    try:
        artifact = versions.fetch(found, folder / "files")
    except CheckpointError as error:
        return None, [_final("files", error)]
    registered_with = found.tags.get("fingerprint")
    if registered_with and versions.fingerprint(artifact) != registered_with:
        reason = "Its files are not those that were registered (tag fingerprint)."
        mend = "Bring back the artifact store as it was, or register the model again."
        return artifact, [Objection("files", reason, mend, final=True)]
    found_wrong = []
    try:
        described = describe(artifact / "model")
        fixed = read_json(artifact / "thresholds.json", made_by="register")["thresholds"]
        missing = [label for label in described["task"].labels if not _is_threshold(fixed.get(label))]
        if missing and described["task"].kind != "multiclass":
            reason = f"It has no threshold for {', '.join(missing)}, so it could not decide."
            mend = "Run tune_thresholds, evaluate, compare and register again."
            found_wrong.append(Objection("thresholds", reason, mend, final=True))
    except FairVLMError as error:
        found_wrong.append(_final("files", error))
    try:
        require_there(read_json(artifact / "base.json", made_by="register"))
    except FairVLMError as error:
        found_wrong.append(_final("base model", error))
    return artifact, found_wrong


def against_champion(evidence: Evidence, name: str, champion: Registered | None) -> list[Objection]:
    """Whether the gate judged the version against the champion that is in use.

    Args:
        name: of the registered model that has the champion, perhaps on another server.
        champion: in use; none where there is none.
    """
    tags = evidence.found.tags
    if champion and "fingerprint" in tags and all(champion.tags.get(key) == tags.get(key) for key in versions.SAME):
        reason = f"It is champion already: version {champion.number} of {name} is this model, judged by this gate."
        mend = "Nothing is left to do; if it was made champion by hand, roll back, and promote it then."
        return [Objection("champion", reason, mend, final=True)]
    if evidence.gate is None:  # said already
        return []
    against = evidence.gate["champion"]
    if against is None and champion is None:
        return []
    if champion is None:
        reason = f"The gate judged it against version {against['version']}, and there is no champion in use."
    elif against is None:
        reason = (
            "The gate judged it by the absolute rules alone, without a champion, and version "
            f"{champion.number} of {name} is champion now."
        )
    elif _is(champion, against):
        return []
    else:
        reason = (
            f"The gate judged it against version {against['version']} of {against['name']}, and the champion in use is "
            f"another model, version {champion.number} of {name}."
        )
    return [Objection("champion", reason, AGAIN)]


def _is(champion: Registered, against: Mapping[str, Any]) -> bool:
    """Whether this is the champion that the gate tells of; an earlier release gave versions no fingerprint."""
    if against["fingerprint"] is None:
        return bool(against["run_id"] == champion.run_id)
    return bool(against["fingerprint"] == champion.tags.get("fingerprint"))


def against_test_set(evidence: Evidence, name: str, cohort: Path | None) -> list[Objection]:
    """Whether the test images are still those that the gate saw: those of `cohort`, else of the newest version."""
    if evidence.gate is None:
        return []
    if cohort:
        if lineage.hash_test_rows(cohort) == evidence.gate["test_sha256"]:
            return []
        reason = f"The test images of {cohort} are not those that the gate judged it on."
        return [Objection("test set", reason, AGAIN)]
    newest = newest_test(name)
    if newest is None or newest[1] == evidence.gate["test_sha256"]:
        return []
    reason = f"The test set has changed since: version {newest[0]}, which is newer, was tested on other images."
    return [Objection("test set", reason, AGAIN)]


def newest_test(name: str) -> tuple[int, str] | None:
    """Number and test_sha256 of the newest version that has one; none where no version has."""
    told = [
        (int(item.version), item.tags["test_sha256"])
        for item in mlflow.MlflowClient().search_model_versions(f"name='{name}'", order_by=["version_number DESC"])
        if "test_sha256" in item.tags
    ]
    return max(told, default=None)


def _lineage(found: Registered) -> list[Objection]:
    missing = [key for key in LINEAGE if not found.tags.get(key)] + ([] if found.run_id else ["run"])
    if missing:
        reason = f"`fairvlm register` did not make it, or an earlier release did: it has no {', '.join(missing)}."
        return [Objection("lineage", reason, "Register the model again.", final=True)]
    commit = "Commit what you changed, run the pipeline again, and promote the version that it registers."
    if not found.tags.get("git_commit"):
        reason = "Nobody can check out the code that made it: it was registered outside a git repository."
        return [Objection("code", reason, commit)]
    if found.tags.get("git_dirty") == "true":
        reason = "Nobody can check out the code that made it: files were changed and not committed (tag git_dirty)."
        return [Objection("code", reason, commit)]
    return []


def _final(about: str, error: FairVLMError) -> Objection:
    where = f" ({error.where})" if error.where else ""
    return Objection(about, f"{error.what}{where}", error.mend, final=True)


def _is_threshold(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
