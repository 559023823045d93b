"""Put the models side by side, select one on the validation split, and report all of them on the test split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairvlm_core.config import Port, build, check, option
from fairvlm_core.errors import ConfigError, nearest
from fairvlm_core.evaluation import CRITERIA
from fairvlm_core.registry.gate import Rules, judge_gate

if TYPE_CHECKING:
    from fairvlm_core.evaluation.report.subjects import Subject

TITLES = {"stage1": "Stage 1", "stage2": "Stage 2", "fair_moe": "Fair-MoE"}

INPUTS = {
    "strata": Port("Folder that stratify wrote."),
    **{name: Port(f"Folder that evaluate wrote for {title}.") for name, title in TITLES.items()},
    "champion": Port("Folder that the step champion wrote.", optional=True),
}
OUTPUTS = {"out": Port("Folder to write: comparison.json, gate.json, report.html, report.md, tradeoff.png.")}


@dataclass(frozen=True)
class Config:
    """How a model is selected, and what may be published."""

    criterion: str = option(
        "es_auc",
        "Selects the model on validation; dto is the distance to AUC 1 and equalized odds difference 0.",
        choices=CRITERIA,
    )
    attributes: tuple[str, ...] = option((), "Attributes the criterion looks at; none: all that can be judged.")
    min_cell: int = option(10, "Groups with fewer images are suppressed.", low=1)
    gate: dict[str, Any] = option({}, "Rules of the gate, name: value; docs/gate.md lists them.")  # noqa: RUF009 - a factory copies it

    def __post_init__(self) -> None:
        check(self)
        self.rules()

    def rules(self) -> Rules:
        """The rules of the gate; those that are not named are as `Rules` has them."""
        return build(Rules, self.gate, where="compare.gate")


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> dict[str, Any]:
    """Write the comparison, its report, the short one and the picture of accuracy against gap; print the table."""
    from rich.console import Console

    from fairvlm_core.evaluation.attention import ATTENTION_FILE
    from fairvlm_core.evaluation.contrasts import against_champion, contrasts
    from fairvlm_core.evaluation.report import COMPARISON_FILE, GATE_FILE, write_comparison
    from fairvlm_core.evaluation.report.content import Champion, Content, Selection
    from fairvlm_core.evaluation.report.gate import print_gate
    from fairvlm_core.evaluation.report.pictures import tradeoff_picture
    from fairvlm_core.evaluation.report.subjects import read_subject, require_same_images
    from fairvlm_core.evaluation.report.tables import summary_rows, summary_table
    from fairvlm_core.evaluation.selection import criterion, select
    from fairvlm_core.files import read_json, write_json

    where = ", ".join(str(inputs[name]) for name in (*TITLES, "champion") if name in inputs)
    validation, test = (
        {
            name: read_subject(inputs[name], title, split, min_cell=config.min_cell, sure=split == "test")
            for name, title in TITLES.items()
        }
        for split in ("validation", "test")
    )
    for subjects in (validation, test):
        require_same_images(list(subjects.values()), where=where)
    attributes = _attributes(config, validation["stage1"].judgement)
    values = {name: criterion(config.criterion, subject.judgement, attributes) for name, subject in validation.items()}
    selected = select(config.criterion, values)
    first = test["stage1"].judgement
    chosen = test[selected]
    others = {subject.title: subject.scores for name, subject in test.items() if name != selected}
    against = contrasts(chosen.scores, others, min_cell=config.min_cell)
    comparison = {
        "kind": first["kind"],
        "labels": first["labels"],
        "min_cell": config.min_cell,
        "criterion": {"name": config.criterion, "attributes": attributes, "split": "validation", "values": values},
        "selected": selected,
        "thresholds": dict(test[selected].thresholds),
        "models": {
            name: {
                "title": title,
                "validation": validation[name].judgement,
                "test": _judged(test[name]),
                "thresholds": dict(test[name].thresholds),
                "calibration": test[name].calibration,
                **_rule(inputs[name]),
            }
            for name, title in TITLES.items()
        },
        "contrasts": against,
    }
    shown, champion = dict(test), None
    known = _champion(inputs)
    if known:
        # It is judged like the others, but was never a candidate: validation has selected already.
        title = f"Champion (version {known['version']})"
        theirs = read_subject(inputs["champion"], title, "test", min_cell=config.min_cell, sure=True)
        require_same_images([chosen, theirs], where=where)
        told = against_champion(chosen.scores, theirs.scores, min_cell=config.min_cell)
        shown["champion"], champion = theirs, Champion(title, known["same_cohort"], told)
        of_model = {"title": title, "test": _judged(theirs), "thresholds": dict(theirs.thresholds)}
        comparison["champion"] = {**known, **of_model, "contrasts": told}
    comparison["table"] = summary_rows({name: subject.judgement for name, subject in shown.items()})
    judged = comparison["models"][selected]["test"]
    gate = {
        "model": selected,
        **judge_gate(judged, champion.contrasts if champion else None, config.rules()),
        "champion": _identity(known) if known else None,
        "test_sha256": _hash_test_rows(inputs["strata"], chosen),
        "min_cell": config.min_cell,
    }
    out = outputs["out"]
    write_json(out / COMPARISON_FILE, comparison)
    write_json(out / GATE_FILE, gate)
    drawn = {subject.title: inputs[name] / ATTENTION_FILE for name, subject in shown.items()}
    content = Content(
        title="Fairness of the compared models",
        subjects=list(shown.values()),
        split="test",
        how=chosen.how,
        selection=Selection(
            TITLES[selected], config.criterion, attributes, {TITLES[name]: value for name, value in values.items()}
        ),
        against=against,
        champion=champion,
        gate=gate,
        strata=read_json(inputs["strata"] / "strata.json", made_by="stratify"),
        pictures={title: path.read_bytes() for title, path in drawn.items() if path.is_file()},
    )
    write_comparison(content, out)
    tradeoff_picture(content.subjects, out / "tradeoff.png")
    Console().print(summary_table(comparison))
    print_gate(gate, reasons=True)
    return {"selected": selected, "criterion": config.criterion, "gate": gate["verdict"]} | _flat(comparison)


def _identity(known: Mapping[str, Any]) -> dict[str, Any]:
    """Who the champion is, on this server and, by its fingerprint, on any other."""
    return {key: known[key] for key in ("name", "version", "run_id")} | {
        "fingerprint": known["tags"].get("fingerprint")
    }


def _hash_test_rows(cohort: Path, chosen: Subject) -> str:
    """The hash of the cohort's test rows, which must be those that the models were judged on."""
    from fairvlm_core.cohort.table import read_cohort
    from fairvlm_core.errors import PredictionsError
    from fairvlm_core.registry.lineage import hash_test_rows

    table = read_cohort(cohort)
    rows = zip(table.column("sample_id").to_pylist(), table.column("split").to_pylist(), strict=True)
    if {name for name, split in rows if split == "test"} != set(chosen.scores.sample_ids):
        raise PredictionsError(
            "The models were not judged on the test images of this cohort.",
            where=str(cohort),
            mend="Pass the cohort whose images were predicted, or predict them again.",
        )
    return hash_test_rows(cohort)


def _judged(subject: Subject) -> dict[str, Any]:
    """A model's judgement with the intervals and p-values that the report shows: `register` makes its card of them."""
    return {**subject.judgement, "intervals": subject.sure, "p_values": subject.p_values}


def _rule(evaluated: Path) -> dict[str, Any]:
    """By which rule the thresholds were tuned, and its target: the registered model keeps them."""
    from fairvlm_core.files import read_json

    fixed = read_json(evaluated / "evaluation.json", made_by="evaluate")["thresholds"]
    return {key: fixed[key] for key in ("rule", "target") if key in fixed}


def _champion(inputs: Mapping[str, Path]) -> dict[str, Any] | None:
    """What the step champion says of the model in use; none where there is none yet."""
    from fairvlm_core.files import read_json

    if "champion" not in inputs:
        return None
    known = read_json(inputs["champion"] / "champion.json", made_by="champion")
    return known if known["version"] is not None else None


def _attributes(config: Config, judgement: Mapping[str, Any]) -> list[str]:
    valid = list(judgement["attributes"])
    for name in config.attributes:
        if name not in valid:
            raise ConfigError(
                f'The predictions have no groups for the attribute "{name}".',
                where="compare.attributes",
                mend=nearest(name, valid),
            )
    # The intersection repeats sex and age group, so it takes part only when it is named.
    return list(config.attributes) or [name for name in valid if " x " not in name]


def _flat(comparison: Mapping[str, Any]) -> dict[str, float]:
    """Each model's test AUC, accuracy and mean gaps, under flat names; those that do not exist are absent."""
    values = {}
    champion = {"champion": comparison["champion"]} if "champion" in comparison else {}
    for name, model in (comparison["models"] | champion).items():
        for metric in ("auc", "accuracy"):
            values[f"{name}_test_{metric}"] = model["test"]["overall"][metric]
        for metric in ("accuracy", "undecided"):
            values[f"{name}_test_answer_{metric}"] = model["test"].get("answers", {}).get(metric)
        for metric in ("es_auc", "dpd", "eod"):
            values[f"{name}_test_{metric}"] = model["test"]["across"][metric]["mean"]
    for name, value in comparison["criterion"]["values"].items():
        values[f"{name}_validation_{comparison['criterion']['name']}"] = value
    return {key: value for key, value in values.items() if value is not None}
