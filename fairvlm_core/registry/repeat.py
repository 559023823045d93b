"""A version made once more: the commands that do it, and whether what came out is the same bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fairvlm_core.errors import FairVLMError
from fairvlm_core.files import read_json, sha256
from fairvlm_core.registry import lineage, record
from fairvlm_core.registry.reproduce import DIFFERS, SAME, UNKNOWN, Check, Recorded, compared
from fairvlm_core.registry.tracking import UNPUBLISHED, without_credentials

COMPARISON = "comparison.json"
Commands = list[tuple[str, list[str]]]


def commands(recorded: Recorded, root: Path, *, server: str) -> Commands:
    """What to do and the command lines that do it, in their order.

    Args:
        server: of the registry, without credentials.
        root: the working directory, whose repository is asked where it came from.
    """
    version, origin = recorded.version, recorded.json(record.ORIGIN_FILE) or {}
    cluster = "kfp_run_id" in version.tags
    told = [
        _code(recorded, root),
        _environment(recorded),
        (
            "What was recorded of its making",
            [
                f"export MLFLOW_TRACKING_URI={server}",
                f"mlflow artifacts download --run-id {version.run_id} --artifact-path {record.FOLDER} --dst-path .",
            ],
        ),
    ]
    if origin.get("folder"):
        told.append(("The folder in which it was made", [f"cd {origin['folder'].rstrip('/')}"]))
    told += [_data(recorded, origin), _base(recorded)]
    told += [_run_on_kubeflow(recorded, origin)] if cluster else [_parameters(recorded), _run_here(version.tags)]
    model = version.tags.get("model", "MODEL")
    made = "FOLDER_OF_COMPARE" if cluster else "results/comparison"
    weights = "FOLDER_OF_THE_MODEL" if cluster else f"models/{model}"
    same = f"fairvlm reproduce {version.number} --registered-name {version.name}"
    told.append(("Is it the same", [same, f"{same} --against {made}", f"{same} --against {weights}"]))
    return told


def _code(recorded: Recorded, root: Path) -> tuple[str, list[str]]:
    tags = recorded.version.tags
    remote = lineage.git(root, "remote", "get-url", "origin")
    # A folder of this machine says nothing elsewhere.
    repository = without_credentials(remote) if remote and "://" in remote else remote or "REPOSITORY"
    if Path(repository).is_absolute():
        repository = "REPOSITORY"
    what = "The code"
    if tags.get("git_dirty") == "true":
        what += " (it was registered with changes that no commit has: this is only nearly it)"
    commit = tags.get("git_commit")
    checkout = f"git checkout {commit}" if commit else "# no commit was recorded"
    return what, [f"git clone {repository} fairvlm", "cd fairvlm", checkout]


def _environment(recorded: Recorded) -> tuple[str, list[str]]:
    image = recorded.version.tags.get("image")
    if image:
        digest = "" if "@sha256:" in image else " (named by a tag, which may mean another image by now)"
        line = f'docker run --rm --interactive --tty --volume "$PWD":/work --workdir /work {image} bash'
        return f"The environment{digest}", [line]
    python = (recorded.json(record.ENVIRONMENT_FILE) or {}).get("python", "3.11")
    return "The environment", [
        f"python{'.'.join(python.split('.')[:2])} -m venv .venv   # it was Python {python}",
        ".venv/bin/pip install -r requirements.lock -e .",
        ". .venv/bin/activate",
    ]


def _data(recorded: Recorded, origin: Mapping[str, Any]) -> tuple[str, list[str]]:
    steps = recorded.json(record.STEPS_FILE) or {}
    sections = recorded.json(record.PARAMS_FILE) or recorded.yaml("params.yaml") or steps
    dataset = (sections.get("ingest") or {}).get("dataset")
    tags = recorded.version.tags
    if origin.get("dataset_repo"):
        place = origin.get("dataset_path", "PATH")
        line = f"dvc get {origin['dataset_repo']} {place} --rev {tags.get('dataset_commit', 'COMMIT')} --out {place}"
        return "The release", [f"{line}   # DVC names it {tags.get('dataset_hash', '–')}"]
    lock = recorded.yaml(lineage.LOCK_FILE)
    kept = [f"cp {record.FOLDER}/{lineage.LOCK_FILE} . && dvc pull dvc.yaml   # where there is a remote: all as it was"]
    if dataset == "generated":
        return "The data: drawn by ingest, with nothing to bring", kept if lock else []
    if not lock:
        return "The data: its place was not recorded", []
    ingest = lock["stages"].get("ingest", {}).get("deps", [])
    names = [f"{item['path']} (DVC names it {item.get('md5', '–')})" for item in ingest if "datasets" in item["path"]]
    return "The data", [*kept, f"# else put the release at {', '.join(names) or 'its place'}"]


def _base(recorded: Recorded) -> tuple[str, list[str]]:
    made = (recorded.json(record.STEPS_FILE) or {}).get("base_models", {})
    if made.get("preset") == "tiny":
        return "The base model: pretrained by base_models, with nothing to bring", []
    wanted = [made[key] for key in ("vision", "text")] if made.get("preset") == "small" else []
    reference = read_json(recorded.artifact / "base.json", made_by="register")
    lines = [f"# put the weights at {name}" for name in wanted]
    lines += [f"# {name}: sha256 {value}" for name, value in sorted(reference["sha256"].items())]
    return "The base model, whose weights are in no registry", lines


def _parameters(recorded: Recorded) -> tuple[str, list[str]]:
    text = (recorded.lineage / "params.yaml").read_text() if (recorded.lineage / "params.yaml").is_file() else ""
    if not text:
        return "The parameters", ["# see lineage/steps.json; there was no params.yaml"]
    lines = [f"cp {record.FOLDER}/params.yaml .   # where that of the commit is another one"]
    if record.LEFT_OUT in text:
        lines.append(f'# fill in the paths that stand as "{record.LEFT_OUT}"')
    return "The parameters", lines


def _run_here(tags: Mapping[str, str]) -> tuple[str, list[str]]:
    champion = tags.get("gate_champion", "none")
    then = "nobody had the alias champion" if champion == "none" else f"the champion was version {champion}"
    value = "''" if champion == "none" else f"'{champion}'"
    return "The run", [f"# {then}: where that is otherwise now, set champion.version to {value}", "dvc repro compare"]


def _run_on_kubeflow(recorded: Recorded, origin: Mapping[str, Any]) -> tuple[str, list[str]]:
    tags = recorded.version.tags
    place = {
        "fetch_dataset_repo": origin.get("dataset_repo"),
        "fetch_dataset_revision": tags.get("dataset_commit"),
        "fetch_dataset_path": origin.get("dataset_path"),
    }
    fields = "".join(f" --set {key}={value}" for key, value in place.items() if value)
    return "The run", [f"fairvlm submit --params {record.FOLDER}/{record.PARAMS_FILE}{fields}"]


def against(recorded: Recorded, folder: Path) -> list[Check]:
    """Whether a repeated run gave the same: bit by bit, else how far apart they are.

    Args:
        folder: what compare or a training step wrote, or the working directory of a whole run.

    Raises:
        FairVLMError: when it is none of these.
    """
    name = recorded.version.tags.get("model", "")
    places = (folder, folder / "results" / "comparison", folder / "models" / name)
    found = []
    for place in places:
        if (place / COMPARISON).is_file():
            found += _comparison(recorded, place / COMPARISON, name)
        if (place / "model.json").is_file():
            found += _weights(recorded.artifact / "model", place)
    if not found:
        raise FairVLMError(
            "There is no repeated run here.",
            where=str(folder),
            mend="Pass the folder that compare or a training step wrote to --against.",
        )
    return found


def _comparison(recorded: Recorded, other: Path, name: str) -> list[Check]:
    own = recorded.report / COMPARISON
    if not own.is_file():
        return [Check(COMPARISON, "–", "–", UNKNOWN, "The version's run has none.")]
    rows = [compared(COMPARISON, sha256(own), sha256(other), why="Its numbers follow.")]
    if rows[0].verdict == SAME:
        return rows
    then, now = (dict(_numbers(read_json(path, made_by="compare")["models"].get(name, {}))) for path in (own, other))
    return [*rows, _largest(f"numbers of {name}", then, now)]


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in JSON under its dotted path."""
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)):
        yield path, float(value)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _numbers(item, f"{path}.{key}" if path else str(key))


def _largest(what: str, then: Mapping[str, float], now: Mapping[str, float]) -> Check:
    alone = sorted(then.keys() ^ now.keys())
    if alone:
        return Check(what, f"{len(then)} numbers", f"{len(now)} numbers", DIFFERS, f"Only one has {alone[0]}.")
    apart = {key: abs(then[key] - now[key]) for key in then}
    worst = max(apart, key=lambda key: apart[key], default="")
    if not worst or not apart[worst]:
        return Check(what, f"{len(then)} numbers", f"{len(now)} numbers", SAME, "Other parts of the file differ.")
    why = f"The largest difference is {apart[worst]:.3g}, of {worst}."
    return Check(what, f"{then[worst]:.6g}", f"{now[worst]:.6g}", DIFFERS, why)


def _weights(own: Path, other: Path) -> list[Check]:
    """The files of the trained model, one by one; what is not registered does not count."""
    rows = []
    for path in sorted(path for path in own.rglob("*") if path.is_file()):
        name = path.relative_to(own).as_posix()
        if any(path.match(pattern) for pattern in UNPUBLISHED):
            continue
        there = other / name
        row = compared(f"model: {name}", sha256(path), sha256(there) if there.is_file() else None)
        if row.verdict == UNKNOWN:
            row = Check(row.what, row.recorded, "–", DIFFERS, "It is not there.")
        elif row.verdict == DIFFERS and path.suffix == ".safetensors":
            row = Check(row.what, row.recorded, row.found, DIFFERS, _apart(path, there))
        rows.append(row)
    return rows


def _apart(own: Path, other: Path) -> str:
    """How far apart two files of tensors are."""
    from safetensors.torch import load_file

    then, now = load_file(own), load_file(other)
    if {key: value.shape for key, value in then.items()} != {key: value.shape for key, value in now.items()}:
        return "It has other tensors."
    apart = {key: float(np.abs(then[key].double().numpy() - now[key].double().numpy()).max()) for key in then}
    worst = max(apart, key=lambda key: apart[key])
    return f"The largest difference of a weight is {apart[worst]:.3g}, in {worst}."
