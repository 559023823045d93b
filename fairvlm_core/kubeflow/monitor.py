"""How the component `monitor` calls the comparison: parameters as a mapping in, artifacts out."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairvlm_core.errors import ConfigError, nearest
from fairvlm_core.kubeflow.call import MetricsSink, whole

SECTION = "monitor"
OTHERS = ("raw", "split", "reference_split")


def asked_for(params: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """How the comparison is made, and which rows are taken, out of `{"monitor": {...}}`.

    Raises:
        ConfigError: for another section, another name, or a value that cannot be.
    """
    from fairvlm_core.evaluation.monitoring.evidence import Asked, Limits

    others = sorted(set(params) - {SECTION})
    if others:
        raise ConfigError(
            f"There are no parameters of {others[0]} here.", where="params", mend=f'Write {{"{SECTION}": {{...}}}}.'
        )
    given = whole(dict(params.get(SECTION) or {}))
    limits = [field.name for field in dataclasses.fields(Limits)]
    asked = [field.name for field in dataclasses.fields(Asked) if field.name != "limits"]
    for name, value in given.items():
        if name not in (*limits, *asked, *OTHERS):
            mend = nearest(name, [*limits, *asked, *OTHERS])
            raise ConfigError(f'There is no parameter "{name}".', where=f"params, {SECTION}", mend=mend)
        kinds: tuple[type, ...] = (int, float) if name in (*limits, *asked) else (bool,) if name == "raw" else (str,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ConfigError(
                f"{name} is of the wrong type.", where=f"params, {SECTION}", mend=f"Give it as {kinds[-1].__name__}."
            )

    def of(names: list[str] | tuple[str, ...]) -> dict[str, Any]:
        return {name: given[name] for name in names if name in given}

    return Asked(limits=Limits(**of(limits)), **of(asked)), of(OTHERS)


def run_monitor(
    params: Mapping[str, Any],
    reference: str | Path,
    current: str | Path,
    out: str | Path,
    *,
    metrics: MetricsSink,
    shown: Mapping[str, str | Path],
) -> tuple[str, str]:
    """Compare, log how much has drifted, and copy out what the task's page in the UI shows.

    Args:
        params: see `asked_for`.
        reference, current, out: paths of the artifacts.
        shown: file that is written into `out` -> path of the artifact that shows it.

    Returns:
        The verdict, and the month in sentences.
    """
    from fairvlm_core.evaluation.monitoring import monitor

    asked, others = asked_for(params)
    told = monitor(Path(reference), Path(current), Path(out), asked, **others)
    verdicts = [finding["verdict"] for finding in told["findings"]]
    metrics.log_metric("comparisons", float(len(verdicts)))
    for verdict in ("drifted", "cannot tell"):
        metrics.log_metric(verdict.replace(" ", "_"), float(verdicts.count(verdict)))
    for file, target in shown.items():
        shutil.copyfile(Path(out) / file, target)
    return told["verdict"], " ".join(told["sentences"])
