"""Compile the pipeline for the Kubeflow UI: `python -m pipelines.compile [FILE]`; FILE is `pipelines/fairvlm.yaml`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from pipelines.fairvlm import fairvlm

COMPILED = Path(__file__).parent / "fairvlm.yaml"


def compiled(path: Path) -> list[Any]:
    """The documents of a compiled pipeline: the graph, then what is particular to Kubernetes."""
    return list(yaml.safe_load_all(path.read_text()))


def compile_to(path: Path) -> None:
    """Compile the pipeline to `path`; a file that already says the same is left alone.

    The compiler orders mappings anew in each process, so the bytes would change where nothing did.
    """
    fresh = path.with_name(f".{path.stem}.partial.yaml")
    try:
        compiler.Compiler().compile(fairvlm, str(fresh))
        if not path.exists() or compiled(fresh) != compiled(path):
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


if __name__ == "__main__":
    compile_to(Path(sys.argv[1]) if len(sys.argv) > 1 else COMPILED)
