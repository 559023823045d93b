"""Serve a registered version with MLflow's scoring server: what is served, whether it can be, and the process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairvlm_core.errors import CheckpointError, ConfigError, FairVLMError
from fairvlm_core.files import read_json
from fairvlm_core.registry import is_alias
from fairvlm_core.registry.base import require_there
from fairvlm_core.registry.versions import BASE_FILE, Registered, fetch, find

DEFAULT_ALIAS = "champion"
APPLICATION = "mlflow.pyfunc.scoring_server.app:app"
FORMS = "Write fairvlm, fairvlm@champion, fairvlm/3, or the same after models:/."


@dataclass(frozen=True)
class Served:
    """A version that can be served.

    Attributes:
        version: which one it is.
        folder: its MLflow model, downloaded.
        base: the base model, a folder or hub name.
    """

    version: Registered
    folder: Path
    base: str


def named(model: str) -> tuple[str, str]:
    """The registered model and the version, an alias or a number, that a text means; without one the champion.

    >>> [named(text) for text in ("fairvlm", "fairvlm@challenger", "models:/fairvlm/3")]
    [('fairvlm', 'champion'), ('fairvlm', 'challenger'), ('fairvlm', '3')]

    Raises:
        ConfigError: when it means neither.
    """
    found = re.fullmatch(r"([^@/]+)(?:@([^@/]+)|/(\d+))?", model.removeprefix("models:/"))
    if not found or (found[2] and not is_alias(found[2])):
        raise ConfigError(f'"{model}" names no registered model.', where="MODEL", mend=FORMS)
    return found[1], found[2] or found[3] or DEFAULT_ALIAS


def fetch_served(model: str, folder: Path) -> Served:
    """Find a version, download it into `folder`, and see that its base model is here; call it in `tracking.tracking`.

    Raises:
        FairVLMError: when there is no such version, its files are gone, or its base model is not here.
    """
    name, version = named(model)
    found = find(name, version)
    if found is None:
        raise CheckpointError(
            f"There is nothing to serve: no version of {name} has the alias {version}.",
            where=f"models:/{name}@{version}",
            mend=f"Promote a version (`fairvlm promote`), or name one: fairvlm serve {name}/NUMBER.",
        )
    artifact = fetch(found, folder)
    base = require_there(read_json(artifact / BASE_FILE, made_by="register"))
    return Served(found, artifact.parent.parent, base)


def described(served: Served, host: str, port: int) -> str:
    """What is served, where, and how to ask it."""
    version = served.version
    alias = f" ({version.alias})" if version.alias else ""
    verdict = version.tags.get("gate_verdict", "none; this version was registered without it")
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    return f"""\
Version {version.number} of {version.name}{alias}: {version.tags.get("model", "unknown model")}
Gate: {verdict}
Base model: {served.base}
Address: {address}/invocations ({address}/health answers once the model is loaded)
Ask it about a picture:
  printf '{{"dataframe_records": [{{"image": "%s"}}]}}' "$(base64 -w 0 PICTURE.png)" |
    curl {address}/invocations -H 'Content-Type: application/json' --data-binary @-
"""


def serve(served: Served, *, host: str, port: int, workers: int) -> None:
    """Run MLflow's scoring server until it is told to end; each worker loads the model.

    Raises:
        FairVLMError: when the server ends by itself.
    """
    from mlflow.pyfunc.scoring_server import _SERVER_MODEL_PATH  # as `mlflow models serve` does it

    words = ["--host", host, "--port", str(port), "--workers", str(workers), "--no-access-log"]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", *words, APPLICATION],
        env={**os.environ, _SERVER_MODEL_PATH: str(served.folder)},
    )
    with _forwarded(process) as asked:
        status = process.wait()
    if not asked:
        raise FairVLMError(
            f"The server ended with status {status}.",
            where=served.version.uri,
            mend="Its last lines say why; another port is --port.",
        )


@contextmanager
def _forwarded(process: subprocess.Popen[Any]) -> Iterator[list[int]]:
    """Hand SIGINT and SIGTERM on to a process while the block waits for it; gives the list of those that came."""
    came: list[int] = []

    def hand_on(number: int, _: Any) -> None:
        came.append(number)
        process.terminate()

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if process.poll() is None:
            process.kill()
            process.wait()
