"""What each bias does to each method, on the generated cohort, whose ground truth is known: alone, and all together.

fairvlm experiment controlled --params experiments/controlled.yaml --out results/controlled --jobs 2

The biases are those of docs/generated-cohort.md at their documented strength, and labels that are wrong for every fifth
woman. Each setting has the tables of `fairmed_methods` and `fairmoe_methods`, as `controlled_SETTING_fairmed` and
`_fairmoe`, tuned anew.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.fairmed_methods import EXPERIMENT as FAIRMED
from experiments.fairmoe_methods import EXPERIMENT as FAIRMOE
from fairvlm_core.experiments.grid import Experiment, Suite

NONE = {"representation": 0.0, "prevalence": 0.0, "weak_signal": 0.0, "shortcut": 0.0, "label_noise": 0.0}
NOISE = {"label_noise": 0.2, "noise_group": "female"}
BIASES: dict[str, dict[str, object]] = {
    "none": {},
    "representation": {"representation": 1.0},
    "prevalence": {"prevalence": 1.0},
    "weak_signal": {"weak_signal": 1.0},
    "shortcut": {"shortcut": 1.0},
    "label_noise": NOISE,
    "all": {"representation": 1.0, "prevalence": 1.0, "weak_signal": 1.0, "shortcut": 1.0, **NOISE},
}
TITLES = {
    "none": "no bias",
    "representation": "representation",
    "prevalence": "prevalence",
    "weak_signal": "weak signal",
    "shortcut": "shortcut",
    "label_noise": "label noise",
    "all": "all of them",
}


def tables(setting: str) -> tuple[Experiment, ...]:
    """The tables of one setting: one for each family of models."""
    shared = {
        "ingest.dataset": "generated",
        **{f"ingest.options.{name}": value for name, value in {**NONE, **BIASES[setting]}.items()},
    }
    return tuple(
        replace(
            grid,
            name=f"controlled_{setting}_{family}",
            title=f"{title} on the generated cohort: {TITLES[setting]}",
            params=shared,
        )
        for family, title, grid in (("fairmed", "FairMed-VLM", FAIRMED), ("fairmoe", "Fair-MoE", FAIRMOE))
    )


EXPERIMENT = Suite(
    name="controlled",
    title="What each bias does to each method, on the generated cohort",
    settings=TITLES,
    experiments={setting: tables(setting) for setting in BIASES},
    untouched="none",
)
