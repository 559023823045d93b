"""Places to register in: copies of an empty database, which is made once."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

SETTINGS = ("TRACKING_URI", "REGISTRY_URI", "RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME", "TRACKING_USERNAME")


def empty_database(folder: Path) -> Path:
    """A database without anything in it, to be copied: making one takes longer than a promotion."""
    path = folder / "empty.db"
    logging.getLogger("alembic").setLevel(logging.ERROR)
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def place(root: Path, empty: Path, name: str = "mlflow.db") -> str:
    """The URI of a copy of the empty database in `root`."""
    shutil.copyfile(empty, root / name)
    return f"sqlite:///{root}/{name}"


@contextmanager
def own_settings(**values: str) -> Iterator[pytest.MonkeyPatch]:
    """Nothing of the machine's MLflow settings but these."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SETTINGS:
            patch.delenv(f"MLFLOW_{name}", raising=False)
        patch.delenv("FAIRVLM_BASE", raising=False)
        for name, value in values.items():
            patch.setenv(name, value)
        yield patch
