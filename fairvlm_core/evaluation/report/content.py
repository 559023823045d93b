"""What a report is made from, whether it becomes a page or a short text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairvlm_core.evaluation.report.subjects import Subject


@dataclass(frozen=True)
class Selection:
    """Which model was chosen, and by what; always on validation.

    Attributes:
        selected: title of the chosen model.
        criterion: one of `CRITERIA`.
        attributes: those the criterion looks at.
        values: title -> the criterion's value, null where it does not exist.
    """

    selected: str
    criterion: str
    attributes: Sequence[str]
    values: dict[str, float | None]


@dataclass(frozen=True)
class Champion:
    """The model in use, which the selected one may replace. It is one of the subjects and was never a candidate.

    Attributes:
        title: its title among the subjects.
        same_cohort: whether it was trained on the very cohort whose test split is reported.
        contrasts: what `against_champion` says of the selected model and it.
    """

    title: str
    same_cohort: bool
    contrasts: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Content:
    """All that a report says.

    Attributes:
        title: heading.
        subjects: the models, all judged on the same images.
        split: the split they were judged on.
        how: how the decisions were made, in a sentence or two.
        selection: which model was chosen and by what, if one was.
        against: what `contrasts` says of the selected model and the other candidates.
        champion: the model in use, if there is one.
        gate: what `judge_gate` says of the selected model, if it was judged.
        strata: the content of `strata.json`: the training cells before and after balancing.
        pictures: a model's title -> PNG of where it looks.
    """

    title: str
    subjects: Sequence[Subject]
    split: str
    how: str
    selection: Selection | None = None
    against: Sequence[Mapping[str, Any]] = ()
    champion: Champion | None = None
    gate: Mapping[str, Any] | None = None
    strata: Mapping[str, Any] | None = None
    pictures: Mapping[str, bytes] = field(default_factory=dict)
