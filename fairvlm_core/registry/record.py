"""What a registered version keeps of its making: parameters, hashes and versions, and nothing of a person or a machine.

Paths of the machine and credentials are left out of every text; comments are too, for nobody knows what they say.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fairvlm_core.errors import FairVLMError
from fairvlm_core.files import read_json, write_json, written
from fairvlm_core.registry import lineage
from fairvlm_core.registry.tracking import without_credentials

FOLDER = "lineage"
STEPS_FILE, PARAMS_FILE, ENVIRONMENT_FILE, ORIGIN_FILE = "steps.json", "params.json", "environment.json", "origin.json"
# Files of the working directory, as far as they are there.
FILES = ("dvc.lock", "dvc.yaml", "params.yaml", "paths.yaml")
# All sections of a run's parameters as JSON, and the dataset's place: Kubeflow's component sets them.
PARAMS_VARIABLE = "FAIRVLM_PARAMS"
PLACE = ("dataset_repo", "dataset_path")
# The step that wrote an input of `register`, where it is not called like it.
WRITTEN_BY = {"comparison": "compare", "base": "base_models", "cohort": "stratify"}
LEFT_OUT = "(left out)"

URI = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"]+", re.IGNORECASE)
LOCAL_URI = re.compile(r"^((?:file://|sqlite[a-z+]*:///)[^/]*)(/.*)$", re.IGNORECASE)
# A path of this machine: from the root, from a home, or of a drive.
ABSOLUTE = re.compile(r"(?:/(?=[^/\s])|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\)")
PATH = re.compile(rf"(?<![\w.:/~$}}>)*\\-]){ABSOLUTE.pattern}[^\s'\",;:]*")


def write_lineage(
    folder: Path, *, inputs: Mapping[str, Path], config: Mapping[str, Any], tags: Mapping[str, str], root: Path
) -> None:
    """Write what the folder `lineage` of a run holds.

    Args:
        inputs: those of the step `register`; what it has of parameters is in their config.json.
        config: its own parameters.
        tags: those that the version gets.
        root: the working directory, which may hold the files of DVC.
    """
    steps = {"register": dict(config)}
    for name, path in inputs.items():
        if (path / "config.json").is_file():
            steps[WRITTEN_BY.get(name, name)] = read_json(path / "config.json", made_by=WRITTEN_BY.get(name, name))
    write_json(folder / STEPS_FILE, stripped(steps))
    sections = os.environ.get(PARAMS_VARIABLE)
    if sections:
        write_json(folder / PARAMS_FILE, stripped(_parsed(sections)))
    write_json(folder / ENVIRONMENT_FILE, environment())
    place = {name: os.environ.get(f"FAIRVLM_{name.upper()}", "") for name in PLACE}
    where = {"folder": lineage.git(root, "rev-parse", "--show-prefix") or ""}
    told = {**tags, **{name: stripped(value) for name, value in place.items() if value}, **where}
    write_json(folder / ORIGIN_FILE, told)
    for name in FILES:
        if (root / name).is_file():
            with written(folder / name) as partial:
                partial.write_text(
                    yaml.safe_dump(stripped(read_yaml(root / name)), sort_keys=False, allow_unicode=True)
                )


def environment() -> dict[str, Any]:
    """Python, the kind of machine, and the versions of fairvlm and of all that it needs."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": packages(),
    }


def packages() -> dict[str, str]:
    """Name -> installed version of fairvlm and of all that it needs here, directly or not, but no developers' tools."""
    todo, found, seen = [Requirement("fairvlm")], {}, set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        found[str(name)] = installed.version
        for line in installed.requires or []:
            if "extra ==" in line and not wanted.extras:
                continue  # most lines: of tests and documentation
            needed = Requirement(line)
            extras = ("", *wanted.extras)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
    return dict(sorted(found.items()))


def stripped(value: Any) -> Any:
    """The same without what names a person or a machine, at any depth.

    >>> stripped({"vlm": "/home/somebody/llava-med", "at": "https://me:secret@git.example.org/data.git?key=1"})
    {'vlm': '(left out)/llava-med', 'at': 'https://git.example.org/data.git'}
    >>> stripped(["sqlite:////srv/mlflow.db", "sqlite:///mlflow.db", "fairvlm predict --out results/a", 0.5])
    ['sqlite:///(left out)/mlflow.db', 'sqlite:///mlflow.db', 'fairvlm predict --out results/a', 0.5]
    """
    if isinstance(value, Mapping):
        return {key: stripped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [stripped(item) for item in value]
    if not isinstance(value, str):
        return value
    if ABSOLUTE.match(value):  # as a whole: a path may contain blanks
        return _last(value)
    return PATH.sub(lambda found: _last(found[0]), URI.sub(lambda found: _uri(found[0]), value))


def _uri(uri: str) -> str:
    public = without_credentials(uri)
    local = LOCAL_URI.match(public)
    return f"{local[1]}{_last(local[2])}" if local else public


def _last(path: str) -> str:
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    return f"{LEFT_OUT}/{kind(path).name}"


def read_yaml(path: Path) -> Any:
    """What a YAML file says.

    Raises:
        FairVLMError: when it is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        raise FairVLMError(
            f"{path.name} cannot be read.", where=str(path), mend="Resolve its merge conflict, or mend its indentation."
        ) from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise FairVLMError(
            "The sections of parameters are not valid JSON.", where=PARAMS_VARIABLE, mend="Unset it, or set it to JSON."
        ) from None
