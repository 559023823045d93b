"""How a training step is started: in this process, or by torchrun with one process for each GPU of the machine.

Several machines are `trainjob.train_job`. All three end in `execute`, the latter two by way of
`python -m fairvlm_core.cli STEP --params FILE --INPUT PATH ... --out FOLDER`.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairvlm_core.errors import ConfigError, FairVLMError
from fairvlm_core.files import read_json, written
from fairvlm_core.steps import SEVERAL_PROCESSES, execute


def launch(
    name: str, config: Any, inputs: Mapping[str, Path], out: Path, *, processes: int | None = None
) -> dict[str, Any]:
    """Run a step on this machine, with all its GPUs where the step can use several.

    Args:
        name: one of `STEPS`.
        config: an instance of the step's `Config`.
        inputs: name -> path.
        out: the folder to write.
        processes: how many processes share each batch; one for each GPU, if not given.

    Returns:
        The step's metrics, as `execute` returns them.

    Raises:
        ConfigError: when several processes are asked for and the step runs in one.
        FairVLMError: when a process failed; what it said is in the log by then.
    """
    if processes is None:
        processes = _gpus() if name in SEVERAL_PROCESSES else 1
    refuse_alone(name, processes, "processes")
    # A process that torchrun started already is one of several, and starts none.
    if processes <= 1 or "WORLD_SIZE" in os.environ:
        return execute(name, config, inputs, {"out": out})
    with tempfile.TemporaryDirectory() as folder:
        params = write_params(Path(folder) / "params.yaml", name, config)
        torchrun = ("torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
        command = [sys.executable, "-m", *torchrun, "-m", "fairvlm_core.cli", *words(name, params, inputs, out)]
        ended = subprocess.run(command, check=False)
    if ended.returncode:
        raise FairVLMError(
            f"The step {name} failed in one of its {processes} processes.",
            where=f"torchrun, exit status {ended.returncode}",
            mend="The log above has the message of the process that failed first.",
        )
    return read_json(out / "metrics.json", made_by=name)


def refuse_alone(name: str, count: int, unit: str) -> None:
    """Refuse several processes or nodes for a step that runs in one process.

    Raises:
        ConfigError: naming the step, and those that take several.
    """
    if count > 1 and name not in SEVERAL_PROCESSES:
        raise ConfigError(
            f"The step {name} runs in a single process, and {count} {unit} were asked for.",
            where=f"{unit} of {name}",
            mend=f"Ask for one; {' and '.join(SEVERAL_PROCESSES)} take several.",
        )


def words(name: str, params: Path | str, inputs: Mapping[str, Path | str], out: Path | str) -> list[str]:
    """The words after `python -m fairvlm_core.cli` that run a step on these paths."""
    flags = [word for key, path in inputs.items() for word in (f"--{key.replace('_', '-')}", str(path))]
    return [name, "--params", str(params), *flags, "--out", str(out)]


def write_params(path: Path, name: str, config: Any) -> Path:
    """Write a config as the section `name` of a params file, and return the file."""
    import yaml

    # Not JSON: YAML 1.1 reads its 1e-05 as text.
    with written(path) as partial:
        partial.write_text(yaml.safe_dump({name: dataclasses.asdict(config)}))
    return path


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
