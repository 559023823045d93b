"""A grid as data: what a recipe changes, and which recipes an experiment compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fairvlm_core.config import build
from fairvlm_core.errors import ConfigError, nearest
from fairvlm_core.experiments.heads import HEADS
from fairvlm_core.steps import step_module

# The steps that an experiment runs, in order; of the trainings, those that lead to the one that is judged.
CHAIN = (
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
)
SEEDED = ("stage1", "stage2", "fair_moe")
JUDGED = ("stage2", "fair_moe")
MODEL = "model"
# How a table is laid out: a block of rows for each method, a block for each attribute, or a column for each attribute.
METHODS, ATTRIBUTES, WIDE = "methods", "attributes", "wide"
OVERALL = ("accuracy", "auc")
BY_ATTRIBUTE = ("es_auc", "dpd", "eod")
ACROSS, WORST = "mean over attributes", "worst over attributes"

Params = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """One row of a table: a method, as what it changes in the parameters.

    Attributes:
        name: short, for files.
        title: for readers.
        overrides: "step.field" -> value.
        head: who decides: the model, or one of `HEADS` in its place.
    """

    name: str
    title: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    head: str = MODEL

    def __post_init__(self) -> None:
        known = (MODEL, *HEADS)
        if self.head not in known:
            raise ConfigError(
                f'There is no head "{self.head}".', where=f"recipe {self.name}", mend=nearest(self.head, known)
            )

    def derive(
        self, name: str, title: str, overrides: Mapping[str, Any] | None = None, *, head: str | None = None
    ) -> Recipe:
        """The same recipe with more changes; where both change a field, the new value counts."""
        return Recipe(name, title, {**self.overrides, **(overrides or {})}, head or self.head)


@dataclass(frozen=True)
class Layout:
    """How a paper prints a table.

    Attributes:
        rows: `METHODS`, `ATTRIBUTES` or `WIDE`; the last has a column for each attribute.
        metrics: the columns in their order, of `OVERALL` and `BY_ATTRIBUTE`; wide tables hold those by attribute only.
        worst: whether the worst over the attributes stands beside the mean over them.
    """

    rows: str = METHODS
    metrics: tuple[str, ...] = (*OVERALL, *BY_ATTRIBUTE)
    worst: bool = False

    def __post_init__(self) -> None:
        known = {METHODS: (*OVERALL, *BY_ATTRIBUTE), ATTRIBUTES: (*OVERALL, *BY_ATTRIBUTE), WIDE: BY_ATTRIBUTE}
        if self.rows not in known or not self.metrics or not set(self.metrics) <= set(known[self.rows]):
            raise ConfigError(
                f'There is no layout "{self.rows}" with the columns {", ".join(self.metrics)}.',
                where="Layout",
                mend="; ".join(f"{rows}: {', '.join(metrics)}" for rows, metrics in known.items()),
            )


@dataclass(frozen=True)
class Experiment:
    """A table: its recipes, and the one that the others are tested against.

    Attributes:
        trained: the step whose model is judged, of `JUDGED`.
        apart: whether there is a model for each attribute of that step's `attributes`, judged on that attribute, as in
            the paper of Fair-MoE; by default one model is trained for all of them and judged on every attribute.
        toy: "step.field" -> value, the size at which the whole experiment takes a minute.
        layout: that of the paper's table.
    """

    name: str
    title: str
    recipes: tuple[Recipe, ...]
    reference: str
    trained: str = "stage2"
    apart: bool = False
    toy: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout = Layout()

    def __post_init__(self) -> None:
        names = [recipe.name for recipe in self.recipes]
        if len(set(names)) < len(names) or self.reference not in names:
            raise ConfigError(
                "The recipes of an experiment need different names, and the reference is one of them.",
                where=self.name,
                mend=f"Its recipes are {', '.join(names)}; the reference is {self.reference}.",
            )
        if self.trained not in JUDGED:
            raise ConfigError(
                f"An experiment cannot judge {self.trained}.", where=self.name, mend=nearest(self.trained, JUDGED)
            )


def both(*steps: str, **values: Any) -> dict[str, Any]:
    """The same fields in several steps, as overrides.

    >>> both("stage1", "stage2", oversample=0.0)
    {'stage1.oversample': 0.0, 'stage2.oversample': 0.0}
    """
    return {f"{step}.{name}": value for step in steps for name, value in values.items()}


def changed(params: Params, overrides: Mapping[str, Any], *, where: str) -> dict[str, dict[str, Any]]:
    """The parameters with overrides, a section per step of `CHAIN`.

    Raises:
        ConfigError: when an override does not name a step that an experiment runs.
    """
    sections = {step: dict(params.get(step) or {}) for step in CHAIN}
    for key, value in overrides.items():
        step, _, name = key.partition(".")
        if step not in sections or not name:
            raise ConfigError(
                f'The override "{key}" names no step of an experiment.', where=where, mend=nearest(step, CHAIN)
            )
        sections[step][name] = value
    return sections


def configs(params: Params, overrides: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The config of each step of `CHAIN`.

    Raises:
        ConfigError: naming the parameter that does not exist or cannot have its value.
    """
    sections = changed(params, overrides, where=where)
    return {
        step: build(step_module(step).Config, values, where=f"{where}, {step}") for step, values in sections.items()
    }


def described(config: Any) -> dict[str, Any]:
    """A config as what JSON can hold."""
    return dataclasses.asdict(config)
