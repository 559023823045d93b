"""Run a grid: every step once for all the runs that share it, and not again after a kill.

A step's folder is named after a fingerprint of its config and of the steps that it reads, as far back as the release.
Runs that agree up to a step therefore find the same folder, in one experiment or in several with the same `--out`. A
folder that is there is finished, for a step puts its output in place only when it has ended well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairvlm_core import __version__
from fairvlm_core.errors import ConfigError
from fairvlm_core.experiments.grid import SEEDED, Experiment, Params, Recipe, both, configs, described
from fairvlm_core.experiments.heads import ADVERSARIAL_HEAD, HEADS, POSTPROCESS, READS_GROUPS
from fairvlm_core.files import fingerprint, folder_written, read_json, write_json
from fairvlm_core.steps import execute

STEPS_FOLDER = "steps"
# A release has too many of these to read them all; they count by name and size.
PICTURES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".npy", ".npz", ".zip", ".dcm"}


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


def plan(experiment: Experiment, params: Params, *, seeds: int, root: Path | None = None) -> list[Run]:
    """Every run of an experiment: by seed, recipe and attribute; nothing is read but the names in the release.

    The patients' split, the base models and what is before them have the seeds of `params`: the seed of a run decides
    its training alone, so that runs of the same seed make a pair. The base models are trained on the cohort of
    the unchanged parameters, whatever a recipe does to the balancing: they stand for a published checkpoint.

    Where each attribute has its own model, only the trained step knows: what comes before it is done once for all.

    Raises:
        ConfigError: for any recipe whose parameters are wrong, before anything runs.
    """
    if seeds < 1:
        raise ConfigError("An experiment needs a seed.", where="--seeds", mend="Give a number of at least 1.")
    base, trained = configs(params, {}, where=experiment.name), experiment.trained
    common = _shared(base, root)
    runs = []
    for seed in range(seeds):
        for recipe in experiment.recipes:
            overrides = {**recipe.overrides, **both(*SEEDED, seed=seed)}
            found = configs(params, overrides, where=f"{experiment.name}, recipe {recipe.name}")
            for attribute in _attributes(experiment, found, base=base):
                own = found
                if attribute is not None:
                    own = {**found, trained: dataclasses.replace(found[trained], attributes=(attribute,))}
                runs.append(Run(recipe, seed, attribute, _chain(own, recipe, common, trained)))
    return runs


def work_of(runs: Sequence[Run]) -> list[tuple[Work, str]]:
    """Each different piece of work once, in an order in which it can be done, and the runs that share it in words."""
    users: dict[str, list[Run]] = {}
    pieces: dict[str, Work] = {}
    for run in runs:
        for key, work in {work.key: work for work in run.work.values()}.items():
            pieces.setdefault(key, work)
            users.setdefault(key, []).append(run)
    return [(work, _told(users[key], len(runs))) for key, work in pieces.items()]


def carry_out(runs: Sequence[Run], out: Path) -> list[str]:
    """Do the work that is not done yet in `out`; returns the folders written now."""
    pieces = work_of(runs)
    done = []
    for number, (work, told) in enumerate(pieces, start=1):
        folder = out / STEPS_FOLDER / work.folder
        if (folder / "metrics.json").is_file():
            continue
        print(f"[{number}/{len(pieces)}] {work.step}: {told}", flush=True)
        inputs = {
            name: given if isinstance(given, Path) else out / STEPS_FOLDER / given.folder
            for name, given in work.inputs.items()
        }
        if work.step in HEADS:
            with folder_written(folder) as partial:
                HEADS[work.step](work.config, inputs, partial)
        else:
            execute(work.step, work.config, inputs, {"out": folder})
        done.append(work.folder)
    return done


def evaluations(runs: Sequence[Run], out: Path) -> dict[str, dict[str | None, list[dict[str, Any]]]]:
    """What evaluate found for each recipe and attribute (see `Run`), one per seed in the order of the seeds."""
    found: dict[str, dict[str | None, list[dict[str, Any]]]] = {}
    for run in runs:
        file = out / STEPS_FOLDER / run.work["evaluate"].folder / "evaluation.json"
        by_attribute = found.setdefault(run.recipe.name, {})
        by_attribute.setdefault(run.attribute, []).append(read_json(file, made_by="experiment"))
    return found


def run_experiment(
    experiment: Experiment, params: Params, out: Path, *, seeds: int = 5, root: Path | None = None
) -> dict[str, Any]:
    """Run what is missing, then write the table as Markdown, JSON and PNG and the reports of one seed into `out`.

    A second picture, NAME-front.png, has accuracy against the gaps. Published numbers stand beside ours where
    `ingest.dataset` is the data set of the paper.

    There is one report of all the recipes, or where each attribute has its own models, one for each attribute.

    Returns:
        The content of the table, with the folders of every run and the names of the reports.

    Raises:
        ConfigError: for wrong parameters, before anything runs, or an `out` that holds other things.
    """
    from fairvlm_core.experiments.picture import draw, draw_front
    from fairvlm_core.experiments.summary import summarise
    from fairvlm_core.experiments.tables import markdown
    from fairvlm_core.files import written

    runs = plan(experiment, params, seeds=seeds, root=root)
    if out.exists() and not (out / STEPS_FOLDER).is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            "This exists already and was not written by an experiment.",
            where=str(out),
            mend="Pass a new or an empty folder to --out.",
        )
    carry_out(runs, out)
    first = runs[0].work
    min_cell, dataset = first["evaluate"].config.min_cell, first["ingest"].config.dataset
    summary = summarise(experiment, evaluations(runs, out), min_cell=min_cell, dataset=dataset)
    summary["runs"] = {
        recipe.name: [_described_run(run) for run in runs if run.recipe.name == recipe.name]
        for recipe in experiment.recipes
    }
    summary["reports"] = _write_reports(experiment, runs, out, min_cell=min_cell)
    write_json(out / f"{experiment.name}.json", summary)
    with written(out / f"{experiment.name}.md") as partial:
        partial.write_text(markdown(summary), encoding="utf-8")
    draw(summary, out / f"{experiment.name}.png")
    draw_front(summary, out / f"{experiment.name}-front.png")
    return summary


def _described_run(run: Run) -> dict[str, Any]:
    folders = {step: f"{STEPS_FOLDER}/{work.folder}" for step, work in run.work.items()}
    return {"seed": run.seed, "attribute": run.attribute, "steps": folders}


def _write_reports(experiment: Experiment, runs: Sequence[Run], out: Path, *, min_cell: int) -> list[str]:
    """All recipes side by side with the first seed, by attribute where each has its own models; the files' names."""
    from fairvlm_core.evaluation.report import write_side_by_side
    from fairvlm_core.evaluation.report.words import attribute_name
    from fairvlm_core.experiments.tables import READS

    names = []
    mark = {recipe.name: f" {READS}" for recipe in experiment.recipes if recipe.head in READS_GROUPS}
    said = f"; {READS} needs the patient's demographics at inference" if mark else ""
    for attribute in dict.fromkeys(run.attribute for run in runs):
        name, title = experiment.name, experiment.title
        if attribute is not None:
            name, title = f"{name}-{attribute}", f"{title}: the models for {attribute_name(attribute)}"
        names.append(f"{name}.html")
        first = {
            run.recipe.title + mark.get(run.recipe.name, ""): out / STEPS_FOLDER / run.work["evaluate"].folder
            for run in runs
            if (run.seed, run.attribute) == (0, attribute)
        }
        write_side_by_side(first, out / names[-1], title=f"{title}, the first seed{said}", min_cell=min_cell)
    return names


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


def _shared(found: Mapping[str, Any], root: Path | None) -> dict[str, Work]:
    """The release read and checked, and the base models, which no recipe changes."""
    ingest = _work("ingest", found["ingest"], {} if root is None else {"root": root})
    validate = _work("validate", found["validate"], {"cohort": ingest})
    stratify = _work("stratify", found["stratify"], {"cohort": ingest, "validation": validate})
    base = _work("base_models", found["base_models"], {"cohort": stratify})
    return {"ingest": ingest, "validate": validate, "stratify": stratify, "base_models": base}


def _chain(found: Mapping[str, Any], recipe: Recipe, common: Mapping[str, Work], trained: str) -> dict[str, Work]:
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
    work |= {"base cohort": common["stratify"], "base_models": common["base_models"]}
    images = work["ingest"]
    work["stratify"] = _work("stratify", found["stratify"], {"cohort": images, "validation": work["validate"]})
    seen = {"cohort": work["stratify"], "images": images, "base": work["base_models"]}
    start: dict[str, Work] = {}
    if trained == "stage2" or found["fair_moe"].init_from == "stage2":
        work["stage1"] = _work("stage1", found["stage1"], seen)
        work["stage2"] = _work("stage2", found["stage2"], {**seen, "stage1": work["stage1"]})
        start = {"start": work["stage2"]}
    if trained == "fair_moe":
        work[trained] = _work(trained, found[trained], {**seen, **start})
    model = {**seen, "model": work[trained]}
    config = {"attributes": list(found[trained].attributes), "seed": found[trained].seed}
    if recipe.head == ADVERSARIAL_HEAD:
        work["predict"] = _work(ADVERSARIAL_HEAD, {**config, "alpha": found["stage2"].adversary_weight}, model)
    else:
        work["predict"] = _work("predict", found["predict"], model)
    judged = {"predictions": work["predict"]}
    if recipe.head == POSTPROCESS:
        work[POSTPROCESS] = _work(POSTPROCESS, config, judged)
        judged = {"predictions": work[POSTPROCESS], "thresholds": work[POSTPROCESS]}
    else:
        work["tune_thresholds"] = _work("tune_thresholds", found["tune_thresholds"], judged)
        judged = {**judged, "thresholds": work["tune_thresholds"]}
    work["evaluate"] = _work("evaluate", found["evaluate"], judged)
    return work


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


def _told(runs: Sequence[Run], total: int) -> str:
    """Which runs a piece of work is for, in a few words."""
    if len(runs) == total:
        return "for all runs"
    titles = list(dict.fromkeys(run.recipe.title for run in runs))
    seeds = sorted({run.seed for run in runs})
    attributes = {run.attribute for run in runs}
    shown = titles[0] if len(titles) == 1 else f"{titles[0]} and {len(titles) - 1} more"
    if len(attributes) == 1 and None not in attributes:
        shown = f"{shown}, {attributes.pop()}"
    return f"{shown}, seed {seeds[0]}" if len(seeds) == 1 else f"{shown}, {len(seeds)} seeds"
