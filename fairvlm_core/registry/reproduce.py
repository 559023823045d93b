"""How to make a registered version again, and what of its making is the same here: `fairvlm reproduce`.

Nothing is checked out and nothing is run. What is recorded comes from the version's tags and files and from the folder
`lineage` of its run; what is found comes from this working directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow

from fairvlm_core import __version__
from fairvlm_core.cohort.table import COHORT_FILE
from fairvlm_core.config import build
from fairvlm_core.errors import CheckpointError, FairVLMError
from fairvlm_core.files import read_json, sha256
from fairvlm_core.model_files import base_path
from fairvlm_core.registry import lineage, record, versions
from fairvlm_core.registry.base import BASE_VARIABLE, weights_of
from fairvlm_core.registry.licences import shown
from fairvlm_core.steps import STEPS, step_module

SAME, DIFFERS, UNKNOWN = "same", "differs", "cannot be checked here"
SHOWN = 12  # characters of a hash
# It is rewritten by each registration; its parameters name a place, and make nothing.
NOT_MADE = "register"


@dataclass(frozen=True)
class Check:
    """One thing that was recorded, and what is found here.

    Attributes:
        what: in words.
        recorded: with the version; a text that may be published.
        found: here.
        verdict: same, differs, or cannot be checked here.
        why: what to do, or why it cannot be checked.
    """

    what: str
    recorded: str
    found: str
    verdict: str
    why: str = ""


@dataclass(frozen=True)
class Recorded:
    """What the registry keeps of a version's making.

    Attributes:
        version: its name, number, tags and run.
        artifact: the folder of its files: model/, thresholds.json and base.json.
        report: that of its run's report, lineage: that of its making; empty where the registry has none.
    """

    version: versions.Registered
    artifact: Path
    report: Path
    lineage: Path

    def json(self, name: str) -> Any:
        """A file of the lineage; none where it was not recorded."""
        path = self.lineage / name
        return read_json(path, made_by="register") if path.is_file() else None

    def yaml(self, name: str) -> Any:
        """Likewise of YAML."""
        path = self.lineage / name
        return record.read_yaml(path) if path.is_file() else None


def fetched(name: str, version: str, folder: Path) -> Recorded:
    """Download what is recorded of a version into `folder`; call it inside `tracking.tracking`.

    Raises:
        FairVLMError: when there is no such version, or nothing has the alias.
    """
    found = versions.find(name, version)
    if found is None:
        raise FairVLMError(
            f"No version of {name} has the alias {version}.",
            where=f"models:/{name}@{version}",
            mend="Give the number of a version, or another alias.",
        )
    return Recorded(
        found,
        versions.fetch(found, folder / "version"),
        _of_run(found.run_id, "report", folder),
        _of_run(found.run_id, record.FOLDER, folder),
    )


def _of_run(run_id: str | None, name: str, folder: Path) -> Path:
    """A folder of the run's artifacts; an empty one where the run or the folder is not there."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    if run_id and mlflow.MlflowClient().list_artifacts(run_id, name):
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(folder))
    return folder / name


def checks(recorded: Recorded, root: Path, *, cohort: Path | None = None, base: Path | None = None) -> list[Check]:
    """What of a version's making is the same here, in the order in which one would mend it.

    Args:
        recorded: what `fetched` gives.
        root: the working directory: its repository, dvc.lock and params.yaml are looked at.
        cohort: folder that stratify wrote; none: data/balanced in `root`.
        base: folder that base_models wrote; none: models/base in `root`, or that in FAIRVLM_BASE.
    """
    return [
        *_files(recorded),
        *_code(recorded, root),
        *_environment(recorded),
        *_parameters(recorded, root),
        *_cohort(recorded, cohort or root / "data" / "balanced"),
        *_base(recorded, base or root / "models" / "base"),
        *_lock(recorded, root),
    ]


def compared(what: str, recorded: str | None, found: str | None, *, why: str = "", missing: str = "") -> Check:
    """A check of two texts; one that is missing on either side cannot be made.

    Args:
        why: what to do if they differ.
        missing: why nothing is found here.
    """
    if recorded is None:
        return Check(what, "–", found or "–", UNKNOWN, "It was not recorded.")
    if found is None:
        return Check(what, _short(recorded), "–", UNKNOWN, missing)
    same = recorded == found
    return Check(what, _short(recorded), _short(found), SAME if same else DIFFERS, "" if same else why)


def _short(text: str) -> str:
    """A hash by its first characters."""
    kind, _, value = text.rpartition(":")
    whole = len(value) > 2 * SHOWN and all(letter in "0123456789abcdef" for letter in value.removesuffix(".dir"))
    return f"{kind}{':' if kind else ''}{value[:SHOWN]}" if whole else text


def _files(recorded: Recorded) -> list[Check]:
    """The version is what was registered, and its gate what was judged."""
    tags, gate = recorded.version.tags, recorded.report / "gate.json"
    return [
        compared(
            "the version's files",
            tags.get("fingerprint"),
            versions.fingerprint(recorded.artifact),
            why="Somebody changed the files in the artifact store: do not use this version.",
        ),
        compared(
            "gate.json of its run",
            tags.get("gate_sha256"),
            sha256(gate) if gate.is_file() else None,
            why="Somebody changed it after the registration: do not trust its verdict.",
            missing="The run has none.",
        ),
    ]


def _code(recorded: Recorded, root: Path) -> list[Check]:
    tags = recorded.version.tags
    told, here = tags.get("git_commit"), lineage.commit(root) or lineage.surroundings()
    at = here.get("git_commit")
    if told and at and "git_dirty" in here and told != at:
        known = lineage.git(root, "cat-file", "-e", f"{told}^{{commit}}") is not None
        why = f"git checkout {told}" if known else "This repository does not have it: git fetch."
    else:
        why = "This image was built from another commit."
    found = [
        compared("git commit", told, at, why=why, missing="This is no git repository."),
        compared("fairvlm", tags.get("fairvlm_version"), __version__, why="Install that version."),
    ]
    states = {"true": "changed", "false": "clean"}
    then, now = states.get(tags.get("git_dirty", "")), states.get(here.get("git_dirty", ""))
    if then == "changed":
        why = "It was registered from a tree with changes that no commit has, and that nobody recorded."
        return [*found, Check("working tree", then, now or "–", UNKNOWN, why)]
    why = "git stash, or git diff to see what is other."
    return [*found, compared("working tree", then, now, why=why, missing="This is no git repository.")]


def _environment(recorded: Recorded) -> list[Check]:
    """Image, Python and packages; a row per package that differs."""
    image, here = recorded.version.tags.get("image"), os.environ.get("FAIRVLM_IMAGE")
    rows = []
    if image or here:
        rows.append(
            compared(
                "container image", image, here, why="Start that one.", missing="This is not run in a container of it."
            )
        )
    then, now = recorded.json(record.ENVIRONMENT_FILE), record.environment()
    if then is None:
        return [*rows, Check("Python and packages", "–", f"Python {now['python']}", UNKNOWN, "They were not recorded.")]
    rows += [compared(f"environment: {key}", then.get(key), now[key]) for key in ("python", "system", "machine")]
    packages, others = then["packages"], now["packages"]
    rows += _rows("package", "packages", packages, others, of="packages", why="pip install that version.")
    return rows


def _rows(
    one: str, whole: str, recorded: Mapping[str, Any], found: Mapping[str, Any], *, of: str, why: str
) -> list[Check]:
    """A row for each key whose values differ or that only one side has; one row in all where none does.

    Args:
        one: what a key names; `whole`: what all of them are; `of`: what they are counted as.
        why: what to do about one that differs.
    """
    rows = []
    for key in sorted({*recorded, *found}):
        then, now = (json.dumps(side[key], sort_keys=True) if key in side else "none" for side in (recorded, found))
        if then != now:
            rows.append(Check(f"{one} {key}", _short(then.strip('"')), _short(now.strip('"')), DIFFERS, why))
    count = f"{len(recorded)} {of}"
    return rows or [Check(whole, count, count, SAME)]


def _parameters(recorded: Recorded, root: Path) -> list[Check]:
    """What the steps were given, against params.yaml here; a row per field that differs."""
    sections = recorded.json(record.PARAMS_FILE) or recorded.yaml("params.yaml") or {}
    then = _fields(sections) | _fields(recorded.json(record.STEPS_FILE) or {})
    path = root / "params.yaml"
    if not then:
        return [Check("parameters", "–", "–", UNKNOWN, "They were not recorded.")]
    if not path.is_file():
        return [Check("parameters", f"{len(then)} fields", "–", UNKNOWN, "There is no params.yaml here.")]
    here = record.stripped(record.read_yaml(path) or {})
    # A section that is left out here means the defaults; a step of which nothing was recorded is not compared.
    now = _fields({step: here.get(step) for step in {key.partition(".")[0] for key in then}})
    return _rows("parameter", "parameters", then, now, of="fields", why="Set it in params.yaml.")


def _fields(sections: Mapping[str, Any]) -> dict[str, Any]:
    """step.field -> value of all fields, those that are left out with their defaults."""
    found: dict[str, Any] = {}
    for step in STEPS:
        if step == NOT_MADE or step not in sections:
            continue
        given = sections[step] or {}
        with contextlib.suppress(FairVLMError):  # those of another version of the code stay as they were written
            given = dataclasses.asdict(build(step_module(step).Config, given, where=f"section {step}"))
        found |= {f"{step}.{name}": value for name, value in json.loads(json.dumps(given)).items()}
    return found


def _cohort(recorded: Recorded, cohort: Path) -> list[Check]:
    tags = recorded.version.tags
    there = (cohort / COHORT_FILE).is_file()
    missing = f"There is no {COHORT_FILE} in {shown(str(cohort))}: dvc pull dvc.yaml, or name it with --cohort."
    rows = [
        compared(
            "cohort.parquet",
            tags.get("cohort_sha256"),
            sha256(cohort / COHORT_FILE) if there else None,
            why="It is another cohort, or made by other code.",
            missing=missing,
        ),
        compared(
            "test rows",
            tags.get("test_sha256"),
            lineage.hash_test_rows(cohort) if there else None,
            why="Other people are tested: its numbers cannot come out again.",
            missing=missing,
        ),
    ]
    named = tags.get("dvc_data_hash")
    if named and not named.startswith("sha256:"):
        found = lineage.dvc_md5(cohort) if there else None
        rows.insert(0, compared("balanced cohort, as DVC names it", named, found, why="dvc checkout", missing=missing))
    return rows


def _base(recorded: Recorded, folder: Path) -> list[Check]:
    """The weights of the base model, file by file: in `folder`, else where FAIRVLM_BASE says, else where they were."""
    reference = read_json(recorded.artifact / "base.json", made_by="register")
    told = os.environ.get(BASE_VARIABLE)
    places = [place for place in (folder, Path(told) if told else None) if place and (place / "bases.json").is_file()]
    try:
        checkpoint = base_path(places[0], reference["family"]) if places else reference["checkpoint"]
        found = weights_of(checkpoint)
    except CheckpointError as error:
        found, missing = {}, error.what
    else:
        missing = "This file is not there."
    return [
        compared(
            f"base model, {name}",
            expected,
            found[name]["sha256"] if name in found else None,
            why="It was trained from other base weights.",
            missing=missing,
        )
        for name, expected in sorted(reference["sha256"].items())
    ]


def _lock(recorded: Recorded, root: Path) -> list[Check]:
    """dvc.lock: the release and every output; a row per one that differs."""
    then = outputs(recorded.yaml(lineage.LOCK_FILE))
    if not then:
        return [Check("dvc.lock", "–", "–", UNKNOWN, "It was not made with DVC.")]
    path = root / lineage.LOCK_FILE
    if not path.is_file():
        why = f"There is no {lineage.LOCK_FILE} here: it is in the folder {record.FOLDER} of the run."
        return [Check("dvc.lock", f"{len(then)} folders", "–", UNKNOWN, why)]
    now = outputs(record.stripped(record.read_yaml(path)))
    now = {name: md5 for name, md5 in now.items() if name in then}
    why = "dvc checkout with the recorded dvc.lock; after a repetition, --against tells if more than speeds is other."
    return _rows("dvc.lock:", "dvc.lock", then, now, of="folders", why=why)


def outputs(lock: Any) -> dict[str, str]:
    """Path -> md5 of what the stages of a dvc.lock wrote, and of the release that the first one read."""
    stages = (lock or {}).get("stages") or {}
    found: dict[str, str] = {}
    for name, stage in stages.items():
        if name == NOT_MADE:
            continue
        read = [dep for dep in stage.get("deps", []) if name == "ingest" and "fairvlm_core" not in dep["path"]]
        found |= {item["path"]: item["md5"] for item in (*read, *stage.get("outs", [])) if "md5" in item}
    return found
