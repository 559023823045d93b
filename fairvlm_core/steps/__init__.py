"""The steps of the pipeline, in order.

One module each: `Config`, `INPUTS`, `OUTPUTS` and `run(config, inputs, outputs)`.

DVC calls a step through the CLI, Kubeflow through its component, tests directly; all of them through `execute`, which
checks the inputs and puts the output folder in place only when the step ended well.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from fairvlm_core.errors import ConfigError, FairVLMError, nearest
from fairvlm_core.files import checkpoint_folder, folder_written, process_rank, write_json

STEPS = (
    "ingest",
    "validate",
    "stratify",
    "base_models",
    "stage1",
    "stage2",
    "fair_moe",
    "predict",
    "tune_thresholds",
    "evaluate",
    "champion",
    "compare",
    "register",
)
# A batch of these is shared by the processes that torchrun started.
SEVERAL_PROCESSES = ("stage1", "stage2")


def step_module(name: str) -> ModuleType:
    """The module of a step; importing it stays cheap, `run` imports what is heavy."""
    if name not in STEPS:
        raise ConfigError(f'There is no step "{name}".', mend=nearest(name, STEPS))
    return importlib.import_module(f"{__name__}.{name}")


def execute(name: str, config: Any, inputs: Mapping[str, Path | None], outputs: Mapping[str, Path]) -> dict[str, Any]:
    """Run a step: its inputs must exist, and if it fails or is killed it leaves no half output.

    Beside what the step writes, `out` gets its parameters (`config.json`) and its figures (`metrics.json`).

    Args:
        name: one of `STEPS`.
        config: an instance of the step's `Config`.
        inputs: name -> path, the names being those of the step's `INPUTS`.
        outputs: `{"out": folder}`.

    Returns:
        What the step's `run` returns: flat name -> number (or short text), also in `metrics.json`.
    """
    module = step_module(name)
    given = {key: Path(path) for key, path in inputs.items() if path is not None}
    for key in given:
        if key not in module.INPUTS:
            raise ConfigError(f'The step {name} has no input "{key}".', mend=nearest(key, module.INPUTS))
    for key, port in module.INPUTS.items():
        if key not in given:
            if not port.optional:
                raise ConfigError(f"The step {name} needs its input {key}.", where=f"--{key}", mend=port.help)
        elif not given[key].exists():
            raise FairVLMError(
                f"The input {key} of {name} does not exist.", where=str(given[key]), mend=f"It should be: {port.help}"
            )
    out = Path(outputs["out"]).absolute()
    _refuse_to_replace(out, given)
    with folder_written(out) as partial, _together(name):
        metrics = module.run(config, given, {"out": partial})
        write_json(partial / "config.json", dataclasses.asdict(config))
        write_json(partial / "metrics.json", metrics)
    if process_rank() == 0:
        shutil.rmtree(checkpoint_folder(out), ignore_errors=True)
    return metrics


def _together(name: str) -> AbstractContextManager[None]:
    """Where torchrun started several processes, they meet for the length of the step."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return nullcontext()
    if name not in SEVERAL_PROCESSES:
        raise ConfigError(
            f"The step {name} runs in one process, and torchrun started {os.environ['WORLD_SIZE']}.",
            mend=f"Run `fairvlm {name}` without torchrun; {' and '.join(SEVERAL_PROCESSES)} take several.",
        )
    from fairvlm_core.training.ranks import joined

    return joined()


def _refuse_to_replace(out: Path, inputs: Mapping[str, Path]) -> None:
    """The output folder is replaced as a whole: it must hold neither what the step reads nor what no step wrote."""
    for key, path in inputs.items():
        if out.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConfigError(
                f"The output would replace the input {key}.", where=str(out), mend="Pass a folder of its own to --out."
            )
    if out.exists() and not (out / "metrics.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            "This exists already and was not written by a step, so it is not replaced.",
            where=str(out),
            mend="Pass a new or an empty folder to --out.",
        )
