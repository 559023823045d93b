"""What a grid amounts to: pieces of work, each of which is done once for all the runs that share it.

A piece's folder is named after a fingerprint of its config and of what it reads, as far back as the release. Runs that
agree up to a step therefore find the same folder, in one experiment or in several with the same `--out`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairvlm_core import __version__
from fairvlm_core.errors import ConfigError, nearest
from fairvlm_core.experiments.grid import (
    HEAD,
    SEEDED,
    Experiment,
    Params,
    Recipe,
    both,
    changed,
    configs,
    described,
)
from fairvlm_core.experiments.heads import BAYES, FEATURES, HEADS, LINEAR_PROBE, MODEL, POSTPROCESS
from fairvlm_core.files import fingerprint

# A release has too many of these to read them all; they count by name and size.
PICTURES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".npy", ".npz", ".zip", ".dcm"}
FAMILIES = {"stage2": "vlm", "fair_moe": "dual"}
# What a training does not look at unless it is debiased in that way.
UNUSED = {"adversary_weight": "adversarial", "dro_step": "group_dro"}


@dataclass(frozen=True)
class Work:
    """One step with its config and what it reads: other work, or the release.

    Attributes:
        key: fingerprint of all that decides its result.
    """

    step: str
    config: Any
    inputs: Mapping[str, Work | Path]
    key: str

    @property
    def folder(self) -> str:
        return f"{self.step}-{self.key[:12]}"


@dataclass(frozen=True)
class Run:
    """One recipe with one seed, and one attribute where each has a model of its own.

    Attributes:
        attribute: the one that the model is made fair for and judged on; None where one model is for all.
        work: its steps by name, in an order in which they can be done.
    """

    recipe: Recipe
    seed: int
    attribute: str | None
    work: Mapping[str, Work]


def plan(
    experiment: Experiment, params: Params, *, seeds: int | Sequence[int], root: Path | None = None, test: bool = True
) -> list[Run]:
    """Every run of an experiment: by seed, recipe and attribute; nothing is read but the names in the release.

    The patients' split, the base models and what is before them have the seeds of `params`: the seed of a run decides
    its training alone, so that runs of the same seed make a pair. The base models are trained on the cohort of
    the unchanged parameters, whatever a recipe does to the balancing: they stand for a published checkpoint.

    Where each attribute has its own model, only the trained step knows: what comes before it is done once for all. A
    baseline has no seed, and one run.

    Args:
        seeds: how many, from 0 on, or which.
        test: false ends every run with the scores of validation, the only split that may choose.

    Raises:
        ConfigError: for any recipe whose parameters are wrong, before anything runs.
    """
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers:
        raise ConfigError("An experiment needs a seed.", where="--seeds", mend="Give a number of at least 1.")
    params = changed(params, experiment.params, where=experiment.name)
    base, trained = configs(params, {}, where=experiment.name), experiment.trained
    common = shared(base, root)
    runs = []
    for seed in numbers:
        for recipe in experiment.recipes:
            if recipe.baseline and seed != numbers[0]:
                continue
            overrides = {**recipe.overrides, **both(*SEEDED, seed=seed)}
            found = configs(params, overrides, where=f"{experiment.name}, recipe {recipe.name}")
            for attribute in _attributes(experiment, found, base=base):
                own = found
                if attribute is not None:
                    own = {**found, trained: dataclasses.replace(found[trained], attributes=(attribute,))}
                runs.append(Run(recipe, seed, attribute, _chain(own, recipe, common, trained, test=test)))
    return runs


def work_of(runs: Iterable[Run]) -> list[tuple[Work, str]]:
    """Each different piece of work once, in an order in which it can be done, and the runs that share it in words."""
    users: dict[str, list[Run]] = {}
    pieces: dict[str, Work] = {}

    def add(work: Work, run: Run) -> None:
        for given in work.inputs.values():
            if isinstance(given, Work):
                add(given, run)
        pieces.setdefault(work.key, work)
        known = users.setdefault(work.key, [])
        if not known or known[-1] is not run:
            known.append(run)

    listed = list(runs)
    for run in listed:
        for work in run.work.values():
            add(work, run)
    return [(work, _told(users[key], listed)) for key, work in pieces.items()]


def shared(found: Mapping[str, Any], root: Path | None) -> dict[str, Work]:
    """The release read and checked, and the base models, which no recipe changes."""
    ingest = _work("ingest", found["ingest"], {} if root is None else {"root": root})
    validate = _work("validate", found["validate"], {"cohort": ingest})
    stratify = _work("stratify", found["stratify"], {"cohort": ingest, "validation": validate})
    base = _work("base_models", found["base_models"], {"cohort": stratify})
    return {"ingest": ingest, "validate": validate, "stratify": stratify, "base_models": base}


def _attributes(experiment: Experiment, found: Mapping[str, Any], *, base: Mapping[str, Any]) -> tuple[str | None, ...]:
    """Whom the models of a recipe are for: every attribute by itself, or all at once (None)."""
    if not experiment.apart:
        return (None,)
    wanted = base[experiment.trained].attributes
    where = f"{experiment.name}, {experiment.trained}.attributes"
    if not wanted:
        raise ConfigError("A model for each attribute needs an attribute.", where=where, mend="Name one, such as sex.")
    if found[experiment.trained].attributes != wanted:
        raise ConfigError(
            "A recipe cannot change the attributes that each have a model, for the table has a row for each.",
            where=where,
            mend="Change them in the parameters of the whole experiment.",
        )
    return tuple(dict.fromkeys(wanted))


def _chain(
    found: Mapping[str, Any], recipe: Recipe, common: Mapping[str, Work], trained: str, *, test: bool
) -> dict[str, Work]:
    """The steps of one run, by name."""
    for step in ("ingest", "validate", "base_models"):
        if found[step] != common[step].config:
            raise ConfigError(
                f"A recipe cannot change {step}, for the runs would not be about the same images and base.",
                where=f"recipe {recipe.name}",
                mend=f"Change {step} in the parameters of the whole experiment.",
            )
    # The order matters: the base models need the stratified cohort of the unchanged parameters.
    work = {"ingest": common["ingest"], "validate": common["validate"]}
    images = work["ingest"]
    work["stratify"] = _work("stratify", found["stratify"], {"cohort": images, "validation": work["validate"]})
    splits = found["predict"].splits if test else ("validation",)
    options = _options(recipe, found)
    if recipe.head != MODEL and not HEADS[recipe.head].trained:
        work |= _untrained(recipe.head, options, work["stratify"], common, FAMILIES[trained], found["ingest"], splits)
        return work | _judged(found, work["predict"], HEADS[recipe.head].decides)
    work |= {"base cohort": common["stratify"], "base_models": common["base_models"]}
    seen = {"cohort": work["stratify"], "images": images, "base": work["base_models"]}
    start: dict[str, Work] = {}
    if trained == "stage2" or found["fair_moe"].init_from == "stage2":
        work["stage1"] = _work("stage1", _as_used(found["stage1"]), seen)
        work["stage2"] = _work("stage2", _as_used(found["stage2"]), {**seen, "stage1": work["stage1"]})
        start = {"start": work["stage2"]}
    if trained == "fair_moe":
        work[trained] = _work(trained, found[trained], {**seen, **start})
    model = {**seen, "model": work[trained]}
    config = {"attributes": list(found[trained].attributes), "seed": found[trained].seed}
    if recipe.head in (MODEL, POSTPROCESS):
        work["predict"] = _work("predict", dataclasses.replace(found["predict"], splits=splits), model)
    else:
        alpha = found["stage2"].adversary_weight if options["alpha"] is None else options["alpha"]
        work["predict"] = _work(recipe.head, {**config, "alpha": alpha, "splits": _both_judged(splits)}, model)
    if not test:
        return work
    if recipe.head == POSTPROCESS:
        work[POSTPROCESS] = _work(POSTPROCESS, config, {"predictions": work["predict"]})
        return work | _judged(found, work[POSTPROCESS], True)
    return work | _judged(found, work["predict"], False)


def _judged(found: Mapping[str, Any], predicted: Work, decides: bool) -> dict[str, Work]:
    """Thresholds, unless they come with the scores, and the evaluation at them."""
    given = {"predictions": predicted}
    if decides:
        return {"evaluate": _work("evaluate", found["evaluate"], {**given, "thresholds": predicted})}
    thresholds = _work("tune_thresholds", found["tune_thresholds"], given)
    return {
        "tune_thresholds": thresholds,
        "evaluate": _work("evaluate", found["evaluate"], {**given, "thresholds": thresholds}),
    }


def _untrained(
    head: str,
    options: Mapping[str, Any],
    cohort: Work,
    common: Mapping[str, Work],
    family: str,
    ingest: Any,
    splits: Sequence[str],
) -> dict[str, Work]:
    """The scores of a head that needs no training, and what is computed for them."""
    config, given = {**options, "splits": _both_judged(splits)}, {"cohort": cohort}
    if head == BAYES:
        config |= {"options": dict(ingest.options), "ingest_seed": ingest.seed}
    if head != LINEAR_PROBE:
        return {"predict": _work(head, config, given)}
    images, base = common["ingest"], common["base_models"]
    features = _work(FEATURES, {"family": family}, {"images": images, "base": base})
    return {
        "base cohort": common["stratify"],
        "base_models": base,
        FEATURES: features,
        "predict": _work(head, config, {**given, "images": images, FEATURES: features}),
    }


def _both_judged(splits: Sequence[str]) -> list[str]:
    """A head scores what is judged, and no training images."""
    return [split for split in ("validation", "test") if split in splits]


def _options(recipe: Recipe, found: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a recipe's head, with the defaults.

    Raises:
        ConfigError: for one that the head does not have.
    """
    known = {} if recipe.head == MODEL else HEADS[recipe.head].options
    for name in found[HEAD]:
        if name not in known:
            raise ConfigError(
                f'The head "{recipe.head}" has no option "{name}".',
                where=f"recipe {recipe.name}",
                mend=nearest(name, known) if known else f"Leave {HEAD}.{name} out, or name another head.",
            )
    given = {**known, **found[HEAD]}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def _as_used(config: Any) -> Any:
    """The config of a stage with the defaults in what its way of debiasing does not look at: so it is found again."""
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    unused = {name: fields[name] for name, debiasing in UNUSED.items() if config.debiasing != debiasing}
    return dataclasses.replace(config, **unused)


def _work(step: str, config: Any, inputs: Mapping[str, Work | Path]) -> Work:
    content = config if isinstance(config, dict) else described(config)
    before = {name: given.key for name, given in inputs.items() if isinstance(given, Work)}
    told: dict[str, Any] = {"step": step, "version": __version__, "config": content, "inputs": before}
    read: dict[str, Path] = {}
    for name, given in inputs.items():
        if isinstance(given, Path):
            files = sorted(path for path in given.rglob("*") if path.is_file())
            told[name] = [(path.relative_to(given).as_posix(), path.stat().st_size) for path in files]
            read |= {str(path.relative_to(given)): path for path in files if path.suffix.lower() not in PICTURES}
    return Work(step, config, inputs, fingerprint(told, read))


def _told(runs: Sequence[Run], all_runs: Sequence[Run]) -> str:
    """Which runs a piece of work is for, in a few words."""
    if {id(run) for run in runs} >= {id(run) for run in all_runs if not run.recipe.baseline}:
        return "for all runs"
    titles = list(dict.fromkeys(run.recipe.title for run in runs))
    seeds = sorted({run.seed for run in runs})
    attributes = {run.attribute for run in runs}
    shown = titles[0] if len(titles) == 1 else f"{titles[0]} and {len(titles) - 1} more"
    if len(attributes) == 1 and None not in attributes:
        shown = f"{shown}, {attributes.pop()}"
    if all(run.recipe.baseline for run in runs):
        return shown
    return f"{shown}, seed {seeds[0]}" if len(seeds) == 1 else f"{shown}, {len(seeds)} seeds"
