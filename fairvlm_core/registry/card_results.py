"""The numbers of the model card: results, thresholds, the gate's findings, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairvlm_core.cohort.document import Table
from fairvlm_core.evaluation.report.words import attribute_name, capitalised, count, number, parity
from fairvlm_core.evaluation.verdicts import FAIL, PASS, UNSURE, signed
from fairvlm_core.registry.failings import ends, with_ends

Facts = Mapping[str, Any]  # of `card`
VERDICTS = (PASS, FAIL, UNSURE)
# The gate's rules as the reader sees them.
RULES = {
    "auc_margin": "AUC minus the champion's, at least",
    "accuracy_margin": "Accuracy minus the champion's, at least",
    "worst_group_margin": "AUC of the worst group minus the champion's, at least",
    "fairer": "Fairer than the champion, by more than",
    "max_dpd": "Gap in selection rates, at most",
    "max_eod": "EOD, at most",
    "min_es_auc": "ES-AUC, at least",
    "min_group": "Images of each group, at least",
}


def verdict(facts: Facts) -> str:
    """The gate's, which judged the selected model and no other."""
    return facts["gate"]["verdict"] if facts["gate"]["model"] == facts["name"] else "not judged"


def overall(facts: Facts) -> Table:
    """The main numbers over all test images, beside the champion's where the gate had one."""
    test, kind = facts["test"], facts["kind"]
    exact = ["exact_match"] if kind == "multilabel" else []
    measures = [
        *(("overall", name) for name in ("auc", "accuracy", *exact, "balanced_accuracy", "ece", "brier")),
        *(("across", name, "mean") for name in ("es_auc", "dpd", "eod")),
    ]
    names = {
        "auc": "AUC",
        "ece": "ECE",
        "es_auc": "ES-AUC, mean",
        "eod": "EOD, mean",
        "dpd": f"{parity(kind)[0]}, mean",
    }
    theirs = facts["champion"] if facts["selected"] else None
    differences = {row["measure"]: row for row in theirs["contrasts"] if row["attribute"] is None} if theirs else {}
    rows = []
    for path in measures:
        measure = path[1]
        row = [names.get(measure, capitalised(measure.replace("_", " ")))]
        row.append(with_ends(_at(test, path), ends(test, *path)))
        if theirs:
            row += [number(_at(theirs["test"], path)), _difference(differences.get(measure))]
        rows.append(row)
    heads = ["Measure", "This model", *([theirs["title"], "Difference"] if theirs else [])]
    return Table(f"All {count(test['n'])} test images{_patients(test)}; in brackets 95 % intervals.", heads, rows)


def _patients(test: Mapping[str, Any]) -> str:
    people = (test.get("intervals") or {}).get("patients")
    return f" of {count(people)} patients" if people is not None and people >= test["min_cell"] else ""


def _at(found: Any, path: Sequence[str]) -> Any:
    for name in path:
        found = found[name]
    return found


def _difference(row: Mapping[str, Any] | None) -> str:
    if row is None or row["difference"] is None:
        return "–"
    between = "" if row["low"] is None else f" ({signed(row['low'])} to {signed(row['high'])})"
    return signed(row["difference"]) + between


def results(facts: Facts) -> list[str | Table]:
    """Overall, per attribute and per group."""
    told: list[str | Table] = [overall(facts), *gaps(facts)]
    rows = []
    for attribute, found in facts["test"]["attributes"].items():
        for group, values in found["groups"].items() if " x " not in attribute else ():
            where = ("attributes", attribute, "groups", group)
            numbers = [with_ends(values[m], ends(facts["test"], *where, m)) for m in ("auc", "tpr", "fpr")]
            rows.append([attribute_name(attribute), group, count(values["n"]), *numbers, number(values["ece"])])
    heads = ["Attribute", "Group", "Images", "AUC", "Found (TPR)", "False alarms (FPR)", "ECE"]
    if rows:
        told.append(Table("Each group. A dash: too few people to tell, or to be told of.", heads, rows, text=2))
    return told


def gaps(facts: Facts) -> list[str | Table]:
    """A row per attribute; none where no attribute is known."""
    test = facts["test"]
    rows = [
        [
            attribute_name(attribute),
            *(with_ends(found[gap], ends(test, "attributes", attribute, gap)) for gap in ("es_auc", "dpd", "eod")),
            with_ends(found["worst_group_auc"], ends(test, "attributes", attribute, "worst_group_auc")),
        ]
        for attribute, found in test["attributes"].items()
    ]
    short, long = parity(facts["kind"])
    told = (
        "ES-AUC is AUC, lowered by how far the groups lie apart. "
        f"{short}: {long[0].lower()}{long[1:]}. EOD: the larger gap in the rates of found and of false alarms. ECE: "
        "how far scores are from the share of those who have the label."
    )
    return (
        [told, Table("Fairness by attribute.", ["Attribute", "ES-AUC", short, "EOD", "Worst group AUC"], rows)]
        if rows
        else []
    )


def thresholds(facts: Facts) -> list[str | Table]:
    """How a score becomes a decision, and each label's numbers."""
    test, fixed, calibration = facts["test"], facts["thresholds"], facts["calibration"]
    several = facts["kind"] == "multiclass"
    how = {
        "platt": "Scores are calibrated per label (Platt scaling)",
        "temperature": f"Scores are calibrated with one temperature ({(calibration or {}).get('temperature', 1):.3g})",
    }.get((calibration or {}).get("method", ""), "Scores are not calibrated")
    rule = (
        "the class with the highest score is chosen, without a threshold"
        if several
        else "a label is reported from its threshold on"
    )
    rows = []
    for label, told in test["per_label"].items():
        area = with_ends(told.get("auc"), ends(test, "overall", "auc_per_label", label))
        rates = [number(told.get(rate)) for rate in ("tpr", "fpr")]
        threshold = [] if several else [number(fixed.get(label))]
        rows.append([label, count(told["n"]), count(told["positives"]), *threshold, area, *rates])
    heads = ["Label", "Known", "Positive", *([] if several else ["Threshold"]), "AUC", "Found", "False alarms"]
    return [
        f"{how}, and {rule}. Both were fixed on the validation split before the test split was read; whoever moves a "
        "threshold has another model, which this card does not describe.",
        Table("Each label on test.", heads, rows),
    ]


def gate(facts: Facts) -> list[str | Table]:
    """What the gate decided and why, with each of its findings."""
    judged = facts["gate"]
    if judged["model"] != facts["name"]:
        return [
            f"The gate judged {judged['model']}, which compare selected. This model was registered by name, unjudged."
        ]
    known = judged["champion"]
    against = (
        f"version {known['version']} of {known['name']}" if known else "no champion, so by the absolute rules alone"
    )
    told: list[str | Table] = [f"Verdict: {judged['verdict']}, against {against}.", *judged["reasons"]]
    rules = list(dict.fromkeys(found["rule"] for found in judged["findings"]))
    rows = []
    for rule in rules:
        of_it = [found for found in judged["findings"] if found["rule"] == rule]
        shown = count if of_it[0]["measure"] == "n" else number
        counts = [str(sum(found["verdict"] == verdict for found in of_it)) for verdict in VERDICTS]
        rows.append([RULES.get(rule, rule.replace("_", " ")), shown(of_it[0]["bound"]), *counts])
    if rows:
        caption = "How often each rule held, once per attribute; gate.json has every number."
        told.append(Table(caption, ["Rule", "Bound", *map(capitalised, VERDICTS)], rows))
    return told
