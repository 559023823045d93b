"""Who decides where it is not the model itself. No steps of the pipeline, but run and kept like them.

A head gets its config, the folders that it reads, and the folder to fill, with `predictions.parquet` in it. One that
also decides puts its `thresholds.json` beside them; the others' thresholds are tuned like a model's.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODEL = "model"
POSTPROCESS = "postprocess"
ADVERSARIAL_HEAD = "adversarial_head"
MAJORITY = "majority"
LINEAR_PROBE = "linear_probe"
BAYES = "bayes"
# No head: what a probe reads, computed once for all that read it.
FEATURES = "features"


@dataclass(frozen=True)
class Head:
    """One way to decide.

    Attributes:
        function: its module here and its name: (config, inputs, out) -> nothing.
        options: what a recipe can change as "head.NAME", with the defaults.
        trained: whether it stands on a model that the recipe trains.
        decides: whether it fixes its own thresholds.
        ranks: whether its scores rank the patients; decisions that are drawn do not.
        reads_groups: whether it decides by the group of whom it decides about, and so needs the demographics of every
            new patient.
    """

    function: str
    options: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = True
    decides: bool = False
    ranks: bool = True
    reads_groups: bool = False


HEADS = {
    POSTPROCESS: Head("debiasing:post_process", decides=True, ranks=False, reads_groups=True),
    ADVERSARIAL_HEAD: Head("debiasing:adversarial_head", {"alpha": None}),
    MAJORITY: Head("baselines:majority", trained=False, decides=True),
    LINEAR_PROBE: Head("baselines:linear_probe", {"costs": (0.001, 0.01, 0.1, 1.0, 10.0)}, trained=False),
    # It knows how the cohort was drawn; with the groups it knows more than any model that is shown the image.
    BAYES: Head("baselines:bayes", {"shortcut": True, "groups": True}, trained=False),
}
READS_GROUPS = tuple(name for name, head in HEADS.items() if head.reads_groups)
_FUNCTIONS = {**{name: head.function for name, head in HEADS.items()}, FEATURES: "features:features"}


def is_head(step: str) -> bool:
    """Whether a piece of work is done here and is no step of the pipeline."""
    return step in _FUNCTIONS


def run_head(step: str, config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> None:
    """Fill the folder `out`, its config and its figures included."""
    from fairvlm_core.files import write_json

    module, _, name = _FUNCTIONS[step].partition(":")
    metrics = getattr(importlib.import_module(f"{__name__}.{module}"), name)(config, inputs, out)
    write_json(out / "config.json", dict(config))
    write_json(out / "metrics.json", metrics)
