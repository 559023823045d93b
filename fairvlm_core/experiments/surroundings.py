"""Where this process runs: the commit of the code, the machine, the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("fairvlm", "torch", "transformers", "peft", "scikit-learn", "fairlearn", "numpy")


@cache
def commit_of_code() -> dict[str, Any]:
    """`commit` and `dirty` of the checkout that this package is of; neither where it is none."""
    from fairvlm_core.registry.lineage import commit

    found = commit(Path(__file__).parent)
    return {"commit": found["git_commit"], "dirty": found["git_dirty"] == "true"} if found else {}


@cache
def machine() -> dict[str, Any]:
    """The hardware by its model names."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": gpu, "system": f"{platform.system()} {platform.machine()}"}


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of what the numbers depend on most."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
