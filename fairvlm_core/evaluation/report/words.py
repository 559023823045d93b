"""The words of a report: names, numbers as text, the verdict and the glossary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairvlm_core.evaluation.report.content import Content, Selection
from fairvlm_core.evaluation.report.subjects import Subject

CRITERIA = {
    "auc": "AUC",
    "es_auc": "ES-AUC",
    "worst_group_auc": "AUC of the worst group",
    "dto": "distance to the utopia point",
}

KINDS = {"binary": "Binary", "multiclass": "Multi-class", "multilabel": "Multi-label"}

GLOSSARY = {
    "Group": "The images of people who share an attribute, for instance women. People whose attribute is unknown are "
    "in no group, but count in the overall numbers.",
    "Accuracy": "Share of decisions that are right. When few people are ill it is high for a model that finds nobody.",
    "Balanced accuracy": "Mean of the share found among the ill and the share cleared among the healthy. 0.5 is "
    "chance.",
    "AUC": "Chance that a random ill person gets a higher score than a random healthy one. 1 is perfect, 0.5 no better "
    "than a coin.",
    "ES-AUC": "Equity-scaled AUC: AUC / (1 + sum of each group's distance from it). Equal to AUC when all groups are "
    "served alike, and smaller the more they differ.",
    "Selection rate": "Share of a group that the model calls positive.",
    "True positive rate": "Share of a group's ill people whom the model finds.",
    "False positive rate": "Share of a group's healthy people whom the model calls ill.",
    "{parity}": "{parity_name}: largest minus smallest selection rate of the groups. It is not 0 for a perfect model "
    "where the disease is more frequent in one group.",
    "EOD": "Equalized odds difference: the larger of the gaps in true and in false positive rate. 0 means that errors "
    "are spread alike over the groups.",
    "TPR gap": "Largest minus smallest true positive rate: how differently the ill people of the groups are found.",
    "ROC curve": "True against false positive rate as the threshold moves. The area under it is the AUC.",
    "ECE": "Expected calibration error: how far the scores are, on average, from the share of ill people among those "
    "who get them. 0 means that of 100 people with a score of 0.3, 30 are ill. Small groups have a larger one by "
    "chance alone.",
    "Brier score": "Mean squared distance between the score and what is true, 1 for ill and 0 for healthy. 0 is "
    "perfect; it rewards scores that are both believable and far apart for ill and healthy people.",
    "Reliability curve": "Share of ill people against the score that they got. A model whose scores can be believed "
    "lies on the diagonal.",
    "Interval": "Below a number, small: had other patients of the same kind been there, 95 of 100 such intervals would "
    "hold the true number. Made by drawing the patients, with all their images, with replacement a thousand times; "
    "for gaps and worst groups, which chance exaggerates, with room on that side. Where chance alone may explain a gap "
    "(p of 0.05 or more), its interval begins at 0.",
    "p": "Of a gap: how often chance alone makes one at least as large, were the groups served alike. Found by dealing "
    "out the groups' names anew among the patients; for gaps in errors and AUC among those of the same truth.",
    "Threshold": "The score from which on the model's answer counts as positive.",
}

ANSWERS = (
    "The model was also asked to answer in its own words. An answer that is empty, uncertain, contradicts itself or "
    "speaks of something else is undecided; it counts as wrong in the accuracy of the answers. Agreement is the share "
    "of the decided answers that say what the decision from the score says. Every other number of this page is made "
    "from the scores. A model without a language model has no answers."
)

ATTENTION = (
    "Test images that hold a finding, on which the model is right and most confident: what the base model attends to "
    "before any training here, and what the trained model attends to. The number is the score that it gives the "
    "finding, before calibration. The map joins the language model's attention to the image, where it begins to "
    "answer, with the vision tower's attention rollout. Attention shows what was read, not why a decision was made, "
    "and enters no number here."
)


def number(value: float | None, digits: int = 3) -> str:
    """A number as text; a dash where there is none.

    >>> number(0.81239), number(None)
    ('0.812', '–')
    """
    return "–" if value is None else f"{value:.{digits}f}"


def sure(value: float | None, ends: Sequence[float] | None, digits: int = 3) -> str:
    """A number and, on a second line, its interval.

    >>> sure(0.81239, [0.79, 0.834])
    '0.812\\n0.790–0.834'
    """
    return number(value, digits) + ("" if value is None or ends is None else "\n" + span(ends, digits))


def with_chance(cell: str, p: float | None) -> str:
    """A number with its interval and, on the last line, its p-value, if it has one.

    >>> with_chance("0.120", 0.0342)
    '0.120\\np = 0.034'
    """
    return cell if p is None else f"{cell}\np {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"


def span(ends: Sequence[float], digits: int = 3) -> str:
    """An interval as text.

    >>> span([0.79, 0.834])
    '0.790–0.834'
    """
    return "–".join(number(end, digits) for end in ends)


def count(value: int | str | None) -> str:
    """A count as text: thousands set apart, suppressed ones as they are."""
    return "–" if value is None else value if isinstance(value, str) else f"{value:,}"


def counted(item: Mapping[str, Any]) -> str:
    """How many images of known truth there are, and how many are positive, as far as that may be told.

    >>> counted({"n": 1073, "positives": "<10"}), counted({"n": "<10", "positives": None})
    ('1,073 images, <10 positive', '<10 images')
    """
    told = "" if item["positives"] is None else f", {count(item['positives'])} positive"
    return f"{count(item['n'])} images{told}"


def attribute_name(attribute: str) -> str:
    """An attribute as the reader sees it.

    >>> attribute_name("sex x age_group")
    'sex × age group'
    """
    return attribute.replace(" x ", " × ").replace("_", " ")


def capitalised(text: str) -> str:
    """The text with a capital first letter, the others as they are.

    >>> capitalised("worst group AUC")
    'Worst group AUC'
    """
    return text[:1].upper() + text[1:]


def parity(kind: str) -> tuple[str, str]:
    """Short and long name of the gap in selection rates: a mean over classes when there are several."""
    if kind == "binary":
        return "DPD", "Demographic parity difference"
    return "DPG", "Demographic parity gap, each label against the rest, mean over the labels"


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence.

    >>> listed(["sex", "age", "race"])
    'sex, age and race'
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def facts(content: Content) -> str:
    """Task, images and models in a line."""
    judgement, models = content.subjects[0].judgement, len(content.subjects)
    task = f"{KINDS[judgement['kind']]} task: {', '.join(judgement['labels'])}"
    return f"{task} · {count(judgement['n'])} {content.split} images · {models} model{'s' * (models > 1)}"


def verdict(subjects: Sequence[Subject], split: str, selection: Selection | None) -> list[str]:
    """The report in a few sentences: which model, how good, and for whom it is worst."""
    sentences = []
    chosen = _chosen(subjects, selection)
    if selection:
        over = (
            f" over {listed([attribute_name(a) for a in selection.attributes])}" if selection.criterion != "auc" else ""
        )
        others = [f"{title} {number(v)}" for title, v in selection.values.items() if title != selection.selected]
        sentences.append(
            f"{selection.selected} was selected on validation by {CRITERIA[selection.criterion]}{over}: "
            f"{number(selection.values[selection.selected])}"
            + (
                f", against {listed(others)} ({'lower' if selection.criterion == 'dto' else 'higher'} is better)."
                if others
                else "."
            )
        )
    elif len(subjects) > 1:
        sentences.append(
            f"{chosen.title} has the highest AUC of the {len(subjects)} models here; that is an observation on this "
            "split, not a selection."
        )
    overall = chosen.judgement["overall"]
    sentences.append(
        f"On {count(chosen.judgement['n'])} {split} images {chosen.title} reaches AUC {number(overall['auc'])} and "
        f"accuracy {number(overall['accuracy'])} (balanced accuracy {number(overall['balanced_accuracy'])})."
    )
    return sentences + _for_whom(chosen)


def _chosen(subjects: Sequence[Subject], selection: Selection | None) -> Subject:
    if selection:
        return next(subject for subject in subjects if subject.title == selection.selected)
    return max(subjects, key=lambda subject: subject.judgement["overall"]["auc"] or 0)


def _for_whom(subject: Subject) -> list[str]:
    attributes = {name: found for name, found in subject.judgement["attributes"].items() if " x " not in name}
    judged: list[tuple[float, str, dict[str, Any]]] = [
        (group["auc"], name, group)
        for found in attributes.values()
        for name, group in found["groups"].items()
        if group["auc"] is not None
    ]
    gaps = [(found["eod"], name) for name, found in attributes.items() if found["eod"] is not None]
    if not judged or not gaps:
        return ["How equally it serves groups cannot be said: no attribute has two groups that can be judged."]
    low, low_name, low_group = min(judged, key=lambda item: item[0])
    high, high_name, high_group = max(judged, key=lambda item: item[0])
    gap, attribute = max(gaps)
    return [
        f"It ranks worst in the group {low_name} (AUC {number(low)}, {count(low_group['n'])} images) and best in "
        f"{high_name} (AUC {number(high)}, {count(high_group['n'])} images).",
        f"Its errors differ most by {attribute_name(attribute)}: the equalized odds difference there is {number(gap)}.",
    ]


def left_out_rule(judgement: Mapping[str, Any]) -> str:
    """Whom the report is silent about by rule."""
    if not judgement["attributes"]:
        return "The predictions carry no demographic attribute, so nothing can be said about groups."
    return (
        f"Groups of fewer than {judgement['min_cell']} images are suppressed to protect the people in them, and take "
        "no part in any gap. A group without positives or without negatives has no AUC, TPR or FPR; it is left out of "
        "the gaps and never counts as 0."
    )


def left_out(judgement: Mapping[str, Any]) -> list[str]:
    """What that left out here, a line each."""
    least = judgement["min_cell"]
    lines = []
    for attribute, found in judgement["attributes"].items():
        name = attribute_name(attribute)
        if found["unknown"]:
            lines.append(
                f"{name}: {count(found['unknown'])} images whose group is unknown count only in the overall numbers."
            )
        if found["suppressed"]:
            lines.append(f"{name}: suppressed, with fewer than {least} images: {', '.join(found['suppressed'])}.")
        if found["withheld"]:
            lines.append(f"{name}: not counted here, lest those follow: {', '.join(map(str, found['withheld']))}.")
        reasons: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for item in found["unjudged"]:
            reasons.setdefault((item["group"], item["reason"]), []).append(item)
        for (group, reason), items in reasons.items():
            on = ", ".join(item["label"] for item in items)
            lines.append(f"{name}: {group} cannot be judged on {on}: {reason}. {_known(items)}")
    lines += [
        f"No AUC at all for {item['label']}: {item['reason']}. {_known([item])}" for item in judgement["unjudged"]
    ]
    return [capitalised(line) for line in lines]


def _known(items: Sequence[Mapping[str, Any]]) -> str:
    """How much is known of what cannot be judged, in a sentence."""
    if len(items) == 1:
        return f"Known are {counted(items[0])}."
    return f"Known are {'; '.join(item['label'] + ': ' + counted(item) for item in items)}."
