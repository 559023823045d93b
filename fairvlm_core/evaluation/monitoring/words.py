"""The words about a month: the verdict, a sentence for each comparison, and what cannot be known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairvlm_core.evaluation.monitoring.evidence import DRIFTED, STABLE, UNSURE
from fairvlm_core.evaluation.report.words import attribute_name, capitalised, count, listed, number

MEASURES = {
    "score_shift": "Scores",
    "selection_shift": "Called positive",
    "prevalence_shift": "Prevalence",
    "mix_shift": "Who came",
    "dpd_rise": "Parity gap",
    "dpd": "Parity gap itself",
    "eod_rise": "Gap in errors (EOD)",
    "eod": "Gap in errors (EOD) itself",
    "auc_drop": "AUC",
    "worst_group_auc_drop": "AUC of the worst group",
    "es_auc_drop": "ES-AUC",
    "ece_rise": "Calibration error (ECE)",
}
SHARES = ("selection_shift", "prevalence_shift", "mix_shift")

Told = Mapping[str, Any]  # what `drift` gives

NO_TRUTH = (
    "This month has no true labels. Whether accuracy, AUC, error rates (EOD) or calibration have changed cannot be "
    "known from it: a model can get worse while every number here stays as it was."
)


def who(finding: Told) -> str:
    """Whom a comparison is about.

    >>> who({"attribute": "sex", "group": "female"}), who({"attribute": "sex", "group": None, "measure": "dpd_rise"})
    ('female', 'by sex')
    """
    if finding["attribute"] is None:
        return "everybody"
    if finding["group"] is not None:
        return str(finding["group"])
    name = attribute_name(finding["attribute"])
    return f"{name} unknown" if finding["measure"] == "mix_shift" else f"by {name}"


def subject(finding: Told) -> str:
    """Label and whom, in a few words."""
    return (
        f"{finding['label']}, {who(finding)}"
        if finding["label"]
        else f"{attribute_name(finding['attribute'])}: {who(finding)}"
    )


def percent(value: float | None) -> str:
    """A share as text.

    >>> percent(0.1234), percent(None)
    ('12.3 %', '–')
    """
    return "–" if value is None else f"{100 * value:.1f} %"


def signed(value: float | None, digits: int = 3) -> str:
    """A change as text, with a sign that is no hyphen.

    >>> signed(-0.12), signed(0.05)
    ('−0.120', '+0.050')
    """
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def values(finding: Told) -> tuple[str, str]:
    """The number then and now."""
    text = percent if finding["measure"] in SHARES else number
    return text(finding["then"]), text(finding["now"])


def change(finding: Told) -> str:
    """The change and its interval, as a reader counts it: what fell has a minus."""
    if finding["low"] is None:
        return "–"
    ends = [finding[name] for name in ("change", "low", "high")]
    if finding["measure"] in ("score_shift", "dpd", "eod"):
        return f"{number(ends[0])} ({number(ends[1])} to {number(ends[2])})"
    if finding["measure"].endswith("_drop"):
        ends = [-ends[0], -ends[2], -ends[1]]
    return f"{signed(ends[0])} ({signed(ends[1])} to {signed(ends[2])})"


def sentence(finding: Told) -> str:
    """A comparison in a sentence."""
    then, now = values(finding)
    told = {
        "score_shift": f"the mean score is {now}, it was {then}; the distributions are {change(finding)} apart, which "
        f"is how many more or fewer would be called positive at the threshold where that is most",
        "selection_shift": f"{now} are called positive, it was {then}: {change(finding)}",
        "prevalence_shift": f"{now} have the finding, it was {then}: {change(finding)}",
        "mix_shift": f"{now} of the images, it was {then}: {change(finding)}",
    }.get(finding["measure"])
    if told is None:
        name = MEASURES[finding["measure"]]
        told = f"{name} {now}, it was {then}: {change(finding)}"
        if finding["measure"] in ("dpd", "eod"):
            told = f"{name} is {change(finding)}"
    limit = f"{finding['limit']:g}"
    end = {
        DRIFTED: f"beyond the limit of {limit} for sure",
        UNSURE: f"whether that is within the limit of {limit} cannot be told, of so few",
        STABLE: f"within the limit of {limit}",
    }[finding["verdict"]]
    return f"{capitalised(subject(finding))}: {told}; {end}."


def verdict(told: Told) -> list[str]:
    """The month in a few sentences."""
    by = {name: [f for f in told["findings"] if f["verdict"] == name] for name in (DRIFTED, UNSURE, STABLE)}
    total, open_ = len(told["findings"]), len(by[UNSURE])
    if told["verdict"] == DRIFTED:
        drifted = len(by[DRIFTED])
        said = [f"Drift: {drifted} of {total} comparisons {'is' if drifted == 1 else 'are'} beyond the limit for sure."]
        said.append(f"The worst: {sentence(by[DRIFTED][0])}")
        said += _explained(by[DRIFTED])
    elif told["verdict"] == UNSURE:
        unsure = [f for f in by[UNSURE] if f["attribute"] is None]
        names = listed(list(dict.fromkeys(MEASURES[f["measure"]] for f in unsure)))
        said = [
            "Nothing has drifted for sure, but that nothing has cannot be told either: there are too few people.",
            f"Of everybody it is open for: {names}.",
        ]
    else:
        said = ["No drift: everybody's numbers are within their limits for sure, and no group's is beyond for sure."]
    if open_ and told["verdict"] != UNSURE:
        said.append(f"Of {open_} of the {total} comparisons it cannot be told, of so few people.")
    if not any(label["known"] for label in told["labels"].values()):
        said.append("Without true labels nothing is said of accuracy.")
    return said


def _explained(drifted: list[Told]) -> list[str]:
    """A change of the people, which may be why all else changed."""
    measures = {finding["measure"] for finding in drifted}
    said = []
    if "mix_shift" in measures and len(measures) > 1:
        said.append("Other people came than then, so that what changed for everybody may come from that alone.")
    if "prevalence_shift" in measures and measures & {"score_shift", "selection_shift", "dpd_rise"}:
        said.append("How common the finding is has changed, too: scores and decisions may rightly have followed.")
    return said


def facts(told: Told) -> str:
    """Images and labels in a line."""
    labels = listed(list(told["labels"])) if len(told["labels"]) < 6 else f"{len(told['labels'])} labels"
    models = dict.fromkeys(told["models"])
    return f"{count(told['n_now'])} images now, {count(told['n_then'])} then · {labels} · {' against '.join(models)}"


def unknowable(told: Told) -> list[str]:
    """What this month cannot say, a sentence each."""
    said = []
    known = {label: found["known"] for label, found in told["labels"].items()}
    if not any(known.values()):
        said.append(NO_TRUTH)
    for label, share in known.items():
        if not told["labels"][label]["judged"] and share:
            said.append(
                f"{label}: fewer than {told['min_cell']} positives or negatives are known on a side, so that nothing "
                "is said of AUC, errors and calibration."
            )
        elif 0 < share < 1:
            said.append(
                f"{label}: the truth is known of {percent(share)} of the images, who may be others than the rest; all "
                "that needs it speaks of those alone."
            )
    for side, names in told["absent"].items():
        if names:
            when = "this month" if side == "now" else "in the reference"
            said.append(
                f"Not recorded {when}: {listed([attribute_name(name) for name in names])}; nothing is said of it."
            )
    for name, groups in told["suppressed"].items():
        few = f"with fewer than {told['min_cell']} images on a side"
        said.append(f"{attribute_name(name)}: suppressed, {few}: {', '.join(groups)}.")
    for name, groups in told["new"].items():
        if groups:
            said.append(f"{attribute_name(name)}: not there in the reference, so not compared: {', '.join(groups)}.")
    for label, found in told["unjudged"].items():
        if told["labels"][label]["judged"]:
            said += [
                f"{label}: too few positives or negatives for AUC, errors and calibration by {attribute_name(name)}: "
                f"{', '.join(groups)}."
                for name, groups in found.items()
            ]
    if told["overlap"]:
        said.append("Some patients of the month are in the reference, too; intervals are then wider than they need be.")
    return [capitalised(line) for line in said]
