"""A grid as data: what a recipe changes, and which recipes an experiment compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fairvlm_core.config import build
from fairvlm_core.errors import ConfigError, nearest
from fairvlm_core.experiments.heads import HEADS, MODEL
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
HEAD = "head"  # the section of overrides that are options of a recipe's head
# What can select a candidate on validation: rankings, for there no threshold has been chosen yet.
CRITERIA = ("auc", "es_auc", "worst_group_auc")
# How a table is laid out: a block of rows for each method, a block for each attribute, or a column for each attribute.
METHODS, ATTRIBUTES, WIDE = "methods", "attributes", "wide"
OVERALL = ("accuracy", "auc")
BY_ATTRIBUTE = ("es_auc", "dpd", "eod")
ACROSS, WORST = "mean over attributes", "worst over attributes"

Params = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Times:
    """In a candidate, a multiple of what the parameters say: for a learning rate, which depends on the models' size."""

    factor: float


@dataclass(frozen=True)
class Recipe:
    """One row of a table: a method, as what it changes in the parameters.

    Attributes:
        name: short, for files.
        title: for readers.
        overrides: "step.field" -> value; "head.option" for an option of the head.
        head: who decides: the model, or one of `HEADS` in its place.
        candidates: overrides to choose from on validation, before the seeds of the table are trained; none or one:
            nothing is tuned.
        follows: the recipe whose choice this one takes over, where both have a field to change its own changes count:
            an ablation leaves out a part of what was tuned.
        baseline: whether this is a yardstick and no method. It is computed once, not tested, and on no Pareto front.
    """

    name: str
    title: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    head: str = MODEL
    candidates: tuple[Mapping[str, Any], ...] = ()
    follows: str = ""
    baseline: bool = False

    def __post_init__(self) -> None:
        known, where = (MODEL, *HEADS), f"recipe {self.name}"
        if self.head not in known:
            raise ConfigError(f'There is no head "{self.head}".', where=where, mend=nearest(self.head, known))
        if self.candidates and (self.follows or (self.head != MODEL and not HEADS[self.head].ranks)):
            raise ConfigError(
                "A recipe cannot have candidates and follow another, nor have them where its decisions rank nobody.",
                where=where,
                mend="Name in `follows` the recipe whose choice it takes, and give that one the candidates.",
            )

    def derive(
        self,
        name: str,
        title: str,
        overrides: Mapping[str, Any] | None = None,
        *,
        head: str | None = None,
        candidates: tuple[Mapping[str, Any], ...] = (),
        follows: str = "",
    ) -> Recipe:
        """The same recipe with more changes; where both change a field, the new value counts. It is tuned by itself."""
        changes = {**self.overrides, **(overrides or {})}
        return Recipe(name, title, changes, head or self.head, candidates, follows)


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
        params: "step.field" -> value, what all recipes have in common, ingest and base models included.
        criterion: what selects a candidate on validation, of `CRITERIA`.
    """

    name: str
    title: str
    recipes: tuple[Recipe, ...]
    reference: str
    trained: str = "stage2"
    apart: bool = False
    toy: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout = Layout()
    params: Mapping[str, Any] = field(default_factory=dict)
    criterion: str = "es_auc"

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
        if self.criterion not in CRITERIA:
            raise ConfigError(
                f"Candidates cannot be selected by {self.criterion}.",
                where=self.name,
                mend=nearest(self.criterion, CRITERIA),
            )
        self._check_budget()

    @property
    def budget(self) -> int:
        """How many candidates each tuned recipe has; 0 where nothing is tuned."""
        return max(len(recipe.candidates) for recipe in self.recipes)

    def _check_budget(self) -> None:
        """Each method gets the same number of attempts, or takes over what another one chose."""
        tuned = [recipe.name for recipe in self.recipes if recipe.candidates]
        for recipe in self.recipes:
            count = len(recipe.candidates)
            if not recipe.baseline and (count != self.budget and not recipe.follows):
                raise ConfigError(
                    f"{recipe.name} has {count} candidates where another recipe has {self.budget}.",
                    where=self.name,
                    mend="Give each method the same number of candidates, or name the one that it follows.",
                )
            if recipe.follows and recipe.follows not in tuned:
                raise ConfigError(
                    f"{recipe.name} follows {recipe.follows}, which has no candidates.",
                    where=self.name,
                    mend=nearest(recipe.follows, tuned) if tuned else "Give that one candidates.",
                )


@dataclass(frozen=True)
class Suite:
    """Several experiments with one more table over all of them: what a method does in each of several settings.

    Attributes:
        settings: name of the setting -> its title, in the order of the table.
        experiments: setting -> its experiments, which differ in the models that they judge.
        untouched: the setting that the others are read against.
        attributes: those that its table shows.
    """

    name: str
    title: str
    settings: Mapping[str, str]
    experiments: Mapping[str, tuple[Experiment, ...]]
    untouched: str
    attributes: tuple[str, ...] = ("sex", "age_group", "sex x age_group")

    @property
    def toy(self) -> Mapping[str, Any]:
        """The size at which all of it takes minutes."""
        return {key: value for grids in self.experiments.values() for grid in grids for key, value in grid.toy.items()}

    def small(self) -> Suite:
        """The same with two candidates where there are more, for a toy."""

        def cut(grid: Experiment) -> Experiment:
            recipes = tuple(replace(recipe, candidates=recipe.candidates[:2]) for recipe in grid.recipes)
            return replace(grid, recipes=recipes)

        each = {name: tuple(cut(grid) for grid in grids) for name, grids in self.experiments.items()}
        return replace(self, experiments=each)

    def only(self, settings: Sequence[str]) -> Suite:
        """The same with some of the settings.

        Raises:
            ConfigError: for a setting that there is not.
        """
        for name in settings:
            if name not in self.settings:
                raise ConfigError(
                    f'{self.name} has no setting "{name}".', where="--only", mend=nearest(name, self.settings)
                )
        kept = {name: title for name, title in self.settings.items() if name in settings}
        return replace(self, settings=kept, experiments={name: self.experiments[name] for name in kept})


def tuned(
    recipes: Sequence[Recipe],
    candidates: Mapping[str, tuple[Mapping[str, Any], ...]],
    *,
    follows: Mapping[str, str],
    otherwise: str,
) -> tuple[Recipe, ...]:
    """Recipes with the candidates given for their names; one without takes over the choice of another.

    Args:
        follows: of whom; the rest follow `otherwise`.
    """
    return tuple(
        replace(recipe, candidates=candidates[recipe.name])
        if recipe.name in candidates
        else replace(recipe, follows=follows.get(recipe.name, otherwise))
        for recipe in recipes
    )


def both(*steps: str, **values: Any) -> dict[str, Any]:
    """The same fields in several steps, as overrides.

    >>> both("stage1", "stage2", oversample=0.0)
    {'stage1.oversample': 0.0, 'stage2.oversample': 0.0}
    """
    return {f"{step}.{name}": value for step in steps for name, value in values.items()}


def changed(params: Params, overrides: Mapping[str, Any], *, where: str) -> dict[str, dict[str, Any]]:
    """The parameters with overrides, a section per step of `CHAIN` and one for a head's options.

    "ingest.options.shortcut" changes one of the options and leaves the others.

    Raises:
        ConfigError: when an override does not name a step that an experiment runs.
    """
    sections = {step: dict(params.get(step) or {}) for step in (*CHAIN, HEAD)}
    for key, value in overrides.items():
        step, _, name = key.partition(".")
        if step not in sections or not name:
            raise ConfigError(
                f'The override "{key}" names no step of an experiment.', where=where, mend=nearest(step, CHAIN)
            )
        name, _, inner = name.partition(".")
        sections[step][name] = {**(sections[step].get(name) or {}), inner: value} if inner else value
    return sections


def resolved(experiment: Experiment, params: Params) -> Experiment:
    """The experiment with numbers for every `Times` of its candidates.

    Raises:
        ConfigError: for a multiple of what is no parameter.
    """
    found = configs(changed(params, experiment.params, where=experiment.name), {}, where=experiment.name)

    def settle(recipe: Recipe) -> Recipe:
        where = f"{experiment.name}, recipe {recipe.name}"
        return replace(recipe, candidates=tuple(_numbers(each, found, where=where) for each in recipe.candidates))

    return replace(experiment, recipes=tuple(settle(recipe) for recipe in experiment.recipes))


def _numbers(overrides: Mapping[str, Any], found: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Overrides with the multiples of what the configs in `found` have."""
    numbers = dict(overrides)
    for key, value in overrides.items():
        if isinstance(value, Times):
            step, _, name = key.partition(".")
            if not hasattr(found.get(step), name):
                raise ConfigError(
                    f'A candidate multiplies "{key}", which is no parameter.',
                    where=where,
                    mend=nearest(name, list(described(found[step]))) if step in CHAIN else nearest(step, CHAIN),
                )
            numbers[key] = value.factor * getattr(found[step], name)
    return numbers


def configs(params: Params, overrides: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The config of each step of `CHAIN`, and a head's options as they are.

    Raises:
        ConfigError: naming the parameter that does not exist or cannot have its value.
    """
    sections = changed(params, overrides, where=where)
    head = sections.pop(HEAD)
    built = {
        step: build(step_module(step).Config, values, where=f"{where}, {step}") for step, values in sections.items()
    }
    return {**built, HEAD: head}


def described(config: Any) -> dict[str, Any]:
    """A config as what JSON can hold."""
    return dataclasses.asdict(config)
