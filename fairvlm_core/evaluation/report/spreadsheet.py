"""All numbers of the page as CSV, in a link that holds them."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fairvlm_core.evaluation.report.content import Content
from fairvlm_core.evaluation.report.subjects import Subject

HEADS = ("model", "attribute", "group", "label", "metric", "value", "low", "high", "p")


def numbers_link(content: Content) -> str:
    """A link that holds all numbers of the page as CSV."""
    data = base64.b64encode(numbers_csv(content).encode()).decode()
    return (
        '<p class="note numbers"><a download="fairness.csv" '
        f'href="data:text/csv;charset=utf-8;base64,{data}">All numbers of this page as CSV</a></p>'
    )


def numbers_csv(content: Content) -> str:
    """A row per number: model, attribute, group, label, metric, value, low, high, p; suppressed ones are absent.

    A difference of two models has "A minus B" as its model, and the corrected p-value that the page shows.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADS, lineterminator="\n", restval="")
    writer.writeheader()
    for subject in content.subjects:
        writer.writerows(map(_harmless, _of_model(subject)))
    writer.writerows(map(_harmless, (*_of_differences(content), *_of_cohort(content.strata))))
    return text.getvalue()


def _of_model(subject: Subject) -> Iterator[dict[str, Any]]:
    for where, metric, value in _numbers(subject.judgement):
        row: dict[str, Any] = {"model": subject.title, **where, "metric": metric, "value": value}
        ends = subject.ends(*_path(where, metric))
        if isinstance(ends, Sequence):
            row |= {"low": ends[0], "high": ends[1]}
        chance = subject.p_values.get(where.get("attribute", ""), {}).get(metric) if "group" not in where else None
        yield row | ({} if chance is None else {"p": round(chance, 6)})
    for label, value in subject.thresholds.items():
        yield {"model": subject.title, "label": label, "metric": "threshold", "value": value}


def _of_differences(content: Content) -> Iterator[dict[str, Any]]:
    told = list(content.against)
    if content.champion:
        told += [{"model": content.champion.title, **row} for row in content.champion.contrasts]
    for row in told:
        if content.selection and row["difference"] is not None:
            numbers = {"value": row["difference"], "low": row["low"], "high": row["high"], "p": row["p_holm"]}
            yield {
                "model": f"{content.selection.selected} minus {row['model']}",
                "attribute": row.get("attribute"),
                "metric": row["measure"],
                **{key: None if value is None else round(value, 6) for key, value in numbers.items()},
            }


def _of_cohort(strata: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    if not strata:
        return
    attribute = " x ".join(strata["attributes"])
    for cell in strata["cells"]:
        group = ", ".join(str(cell[name]) for name in strata["attributes"])
        for metric in ("train_before", "train_after"):
            if cell[metric] is not None:
                yield {"attribute": attribute, "group": group, "metric": metric, "value": cell[metric]}


def _harmless(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same row, without names that a spreadsheet takes for a formula."""
    return {
        key: f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
        for key, value in row.items()
    }


def _numbers(judgement: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], str, Any]]:
    """Every number of a judgement and where it stands."""

    def plain(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        return (
            (name, value) for name, value in found.items() if value is not None and not isinstance(value, (dict, list))
        )

    for metric, value in plain(judgement["overall"]):
        yield {}, metric, value
    for label, of_label in judgement["per_label"].items():
        for metric, value in plain(of_label):
            yield {"label": label}, metric, value
    for place, answered in _answered(judgement):
        for metric, value in plain(answered):
            yield place, f"answers_{metric}", value
    for attribute, found in judgement["attributes"].items():
        for metric, value in plain(found):
            yield {"attribute": attribute}, metric, value
        for group, of in found["groups"].items():
            for metric, value in plain(of):
                yield {"attribute": attribute, "group": group}, metric, value
        for label, of in found["labels"].items():
            for metric, value in plain(of):
                yield {"attribute": attribute, "label": label}, metric, value
            for group, inner in of["groups"].items():
                for metric, value in plain(inner):
                    yield {"attribute": attribute, "group": group, "label": label}, metric, value


def _answered(judgement: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], Mapping[str, Any]]]:
    """What is said of the answers in words, overall and by group."""
    if "answers" not in judgement:
        return
    yield {}, judgement["answers"]
    for attribute, groups in judgement["answers"]["attributes"].items():
        for group, found in groups.items():
            yield {"attribute": attribute, "group": group}, found


def _path(where: Mapping[str, str], metric: str) -> tuple[str, ...]:
    """Where the interval of a number stands, if it has one: of a label's own numbers only its AUC over all images."""
    if "label" in where:
        of_label = "attribute" not in where and metric == "auc"
        return ("overall", "auc_per_label", where["label"]) if of_label else ("labels",)
    if "attribute" not in where:
        return ("overall", metric)
    inner = ("groups", where["group"]) if "group" in where else ()
    return ("attributes", where["attribute"], *inner, metric)
