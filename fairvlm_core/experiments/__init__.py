"""Experiments: a grid of recipes, run over seeds through the steps of the pipeline, and the table that comes of it."""

from __future__ import annotations

import importlib

from fairvlm_core.errors import ConfigError, nearest
from fairvlm_core.experiments.grid import Experiment, Suite

# Name of the command -> module that holds its grid as `EXPERIMENT`.
EXPERIMENTS = {
    **{f"fairmed_table{number}": f"experiments.fairmed_table{number}" for number in range(2, 5)},
    **{f"fairmoe_table{number}": f"experiments.fairmoe_table{number}" for number in range(1, 7)},
    **{f"fairmoe_{name}": f"experiments.fairmoe_{name}" for name in ("settings", "routing")},
    **{f"{family}_methods": f"experiments.{family}_methods" for family in ("fairmed", "fairmoe")},
    "controlled": "experiments.controlled",
}


def load_experiment(name: str) -> Experiment | Suite:
    """The grid of a name.

    Raises:
        ConfigError: when there is none of that name, or the grids are not installed.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(
            f'There is no experiment "{name}".',
            mend=f"{nearest(name, EXPERIMENTS)} `fairvlm experiment` says what each of them compares.",
        )
    try:
        found: Experiment | Suite = importlib.import_module(EXPERIMENTS[name]).EXPERIMENT
    except ModuleNotFoundError as error:
        if error.name not in ("experiments", EXPERIMENTS[name]):
            raise
        raise ConfigError(
            "The grids are not installed with this copy of fairvlm.",
            where=EXPERIMENTS[name],
            mend="Install it anew from a checkout: pip install -e .",
        ) from None
    return found
