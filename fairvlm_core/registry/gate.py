"""The gate: whether a model may replace the champion, by rules that were written down before its numbers were seen.

Each rule is judged on an interval, never on the number in it (docs/gate.md): it passes where the whole interval is on
the good side of the bound, and fails where the whole interval is on the bad one. In between, and where a number does
not exist, these test images cannot tell, and the rule lacks evidence. Nothing here reads a file or a registry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from fairvlm_core.config import check, option
from fairvlm_core.evaluation.verdicts import FAIL, HIGHER_IS_BETTER, MARGINS, PASS, UNSURE, measure_name, signed

ABSOLUTE = {"max_dpd": "dpd", "max_eod": "eod", "min_es_auc": "es_auc"}  # of each attribute
NO_CHAMPION = "There is no champion yet: only the absolute rules were judged."
NO_RULE = "No rule was judged, so that nothing speaks for this model."
ALL_HOLD = "Every rule that was judged holds."
NO_GROUPS = "The predictions carry no demographic attribute, so nothing can be said about groups."


@dataclass(frozen=True)
class Rules:
    """What a model must keep to; nothing instead of a number switches the rule off."""

    section: ClassVar[str] = "compare.gate"

    auc_margin: float | None = option(
        0.02, "The champion's AUC may be missed by at most this (nothing: not judged).", low=0, high=1
    )
    accuracy_margin: float | None = option(0.02, "Likewise its accuracy.", low=0, high=1)
    worst_group_margin: float | None = option(
        0.05, "Likewise the AUC of its worst group, of each attribute.", low=0, high=1
    )
    fairer: str | None = option(
        "es_auc",
        "What must be better than the champion's beyond noise, as a mean over the attributes.",
        choices=("es_auc", "dpd", "eod", "none"),
    )
    max_dpd: float | None = option(
        0.3,
        "Largest gap in selection rates, by each attribute: DPD of one label, DPG (a mean over labels) of several.",
        low=0,
        high=1,
    )
    max_eod: float | None = option(0.3, "Largest equalized odds difference, by each attribute.", low=0, high=1)
    min_es_auc: float | None = option(0.6, "Smallest equity-scaled AUC, by each attribute.", low=0, high=1)
    min_group: int | None = option(
        30, "So many images, and an AUC, each group of an attribute must have in the test split.", low=1
    )

    def __post_init__(self) -> None:
        check(self)


def judge_gate(
    judgement: Mapping[str, Any], against: Sequence[Mapping[str, Any]] | None, rules: Rules
) -> dict[str, Any]:
    """The verdict on one model, as JSON that is fit for publication.

    Args:
        judgement: what `judge` says of it on the test split, with its `intervals`, as comparison.json holds them.
        against: what `against_champion` says of it and the champion; none where there is no champion.
        rules: the rules.

    Returns:
        verdict: pass, fail or insufficient evidence; `rules`; `findings`: one per rule and, where the rule is about
        groups, per attribute (never the intersection): rule, measure, attribute, verdict, value, low, high, bound and
        reason; `reasons`: the reasons of those that do not pass, or that all pass.
    """
    attributes = [name for name in judgement["attributes"] if " x " not in name]
    findings = [] if against is None else _relative(against, rules, attributes, judgement["kind"])
    findings += _absolute(judgement, rules, attributes)
    verdicts = {finding["verdict"] for finding in findings}
    whole = FAIL if FAIL in verdicts else PASS if verdicts == {PASS} else UNSURE
    reasons = [finding["reason"] for finding in findings if finding["verdict"] != PASS]
    if not findings:
        reasons = [NO_RULE]
    elif not reasons:
        reasons = [ALL_HOLD]
    if against is None:
        reasons.append(NO_CHAMPION)
    return {"verdict": whole, "rules": asdict(rules), "findings": findings, "reasons": reasons}


def _relative(
    against: Sequence[Mapping[str, Any]], rules: Rules, attributes: Sequence[str], kind: str
) -> list[dict[str, Any]]:
    """The rules about the champion."""
    rows = {(row["measure"], row["attribute"]): row for row in against}
    findings = []
    for rule, measure in MARGINS.items():
        margin = getattr(rules, rule)
        if margin is None:
            continue
        by: Sequence[str | None] = attributes if rule == "worst_group_margin" else [None]
        if not by:
            findings.append(_finding(rule, measure, None, UNSURE, None, 0.0 - margin, NO_GROUPS))
        for attribute in by:
            row = rows.get((measure, attribute))
            verdict = _side(row, 0.0 - margin, higher=True)
            loss = f"a loss of more than {margin:g}"
            told = {PASS: f"{loss} is ruled out", FAIL: f"{loss} is beyond noise", UNSURE: f"{loss} is not ruled out"}
            reason = _against(measure, attribute, row, kind, told[verdict])
            findings.append(_finding(rule, measure, attribute, verdict, row, 0.0 - margin, reason))
    if rules.fairer and rules.fairer != "none":
        row = rows.get((rules.fairer, None))
        higher = rules.fairer in HIGHER_IS_BETTER
        verdict = _side(row, 0.0, higher=higher, beyond=True)
        told = {
            PASS: "fairer beyond noise",
            FAIL: "less fair beyond noise",
            UNSURE: "whether it is fairer, these images cannot tell",
        }
        reason = _against(rules.fairer, None, row, kind, told[verdict])
        findings.append(_finding("fairer", rules.fairer, None, verdict, row, 0.0, reason))
    return findings


def _absolute(judgement: Mapping[str, Any], rules: Rules, attributes: Sequence[str]) -> list[dict[str, Any]]:
    """The rules that need no champion."""
    findings, sure = [], judgement["intervals"].get("attributes", {})
    for rule, measure in ABSOLUTE.items():
        bound, higher = getattr(rules, rule), measure in HIGHER_IS_BETTER
        if bound is None:
            continue
        if not attributes:
            findings.append(_finding(rule, measure, None, UNSURE, None, bound, NO_GROUPS))
        for attribute in attributes:
            ends = sure.get(attribute, {}).get(measure)
            low, high = ends if ends is not None else (None, None)
            row = {"difference": judgement["attributes"][attribute][measure], "low": low, "high": high}
            verdict = _side(row, bound, higher=higher)
            name = f"{measure_name(measure, judgement['kind'])} by {_words(attribute)}"
            limit = f"at {'least' if higher else 'most'} {bound:g}"
            if verdict == UNSURE and None in row.values():
                reason = f"{name} has no interval, so whether it is {limit} cannot be said."
            else:
                told = {
                    PASS: f"{limit} beyond noise",
                    FAIL: f"{'below' if higher else 'above'} {bound:g} beyond noise",
                    UNSURE: f"whether it is {limit}, these images cannot tell",
                }
                reason = f"{name} is {row['difference']:.3f} ({low:.3f} to {high:.3f}): {told[verdict]}."
            findings.append(_finding(rule, measure, attribute, verdict, row, bound, reason))
    if rules.min_group is not None:
        findings += [
            _sizes(attribute, judgement["attributes"][attribute], rules.min_group) for attribute in attributes
        ] or [_finding("min_group", "n", None, UNSURE, None, rules.min_group, NO_GROUPS)]
    return findings


def _sizes(attribute: str, found: Mapping[str, Any], least: int) -> dict[str, Any]:
    """Whether each group of an attribute has enough images to be judged by, told from published counts alone.

    A count may read "<10", or "10 or more" where it is withheld lest a smaller one follows. The verdict is made of
    what these say, because a verdict made of the counts themselves would tell more.
    """
    few, unjudged = [], []
    for name, group in found["groups"].items():
        if _certain(name, found) < least:
            few.append(f"{name} ({group['n']})")
        elif group["auc"] is None:
            unjudged.append(str(name))
    parts = []
    if few:
        parts.append(f"without {least} images for certain: {', '.join(few)}")
    if unjudged:
        parts.append(f"without an AUC, for lack of positives or negatives: {', '.join(unjudged)}")
    if not found["groups"]:
        parts.append("no group is known")
    verdict = UNSURE if parts else PASS
    told = "; ".join(parts) if parts else f"every group has {least} images or more, and an AUC"
    counts = [group["n"] for group in found["groups"].values()]
    known = bool(counts) and all(isinstance(count, int) for count in counts)
    row = {"difference": min(counts) if known else None, "low": None, "high": None}
    return _finding("min_group", "n", attribute, verdict, row, least, f"Groups by {_words(attribute)}: {told}.")


def _certain(name: Any, found: Mapping[str, Any]) -> int:
    """How many images a group has at least, as anybody can tell from what is published of its attribute.

    >>> groups = {"a": {"n": 480}, "b": {"n": "10 or more"}, "c": {"n": "<10"}}
    >>> [_certain(name, {"n": 600, "groups": groups}) for name in groups], _certain("b", {"n": None, "groups": groups})
    ([480, 111, 1], 10)
    """
    count = found["groups"][name]["n"]
    if isinstance(count, int):
        return count
    number = int("".join(filter(str.isdigit, count)))
    if count.startswith("<"):
        return 1
    others = [group["n"] for other, group in found["groups"].items() if other != name]
    if found["n"] is None or any(isinstance(one, str) and not one.startswith("<") for one in others):
        return number
    most = sum(one if isinstance(one, int) else int(one[1:]) - 1 for one in others)
    return max(number, found["n"] - most)


def _side(row: Mapping[str, Any] | None, bound: float, *, higher: bool, beyond: bool = False) -> str:
    """On which side of the bound the interval is; `beyond`: an end that touches the bound is on neither."""
    if row is None or any(row[key] is None for key in ("difference", "low", "high")):
        return UNSURE
    low, high = (row["low"], row["high"]) if higher else (-row["high"], -row["low"])
    bound = bound if higher else -bound
    if low > bound or (low == bound and not beyond):
        return PASS
    return FAIL if high < bound else UNSURE


def _against(measure: str, attribute: str | None, row: Mapping[str, Any] | None, kind: str, told: str) -> str:
    name = measure_name(measure, kind) + (f" by {_words(attribute)}" if attribute else "")
    name = name[0].upper() + name[1:]
    if row is None or row["difference"] is None or row["low"] is None:
        return f"{name} has no interval of its difference from the champion's, so that nothing is ruled out."
    ends = f"{signed(row['low'])} to {signed(row['high'])}"
    return f"{name} differs from the champion's by {signed(row['difference'])} ({ends}): {told}."


def _finding(
    rule: str,
    measure: str,
    attribute: str | None,
    verdict: str,
    row: Mapping[str, Any] | None,
    bound: float,
    reason: str,
) -> dict[str, Any]:
    value, low, high = (row[key] if row else None for key in ("difference", "low", "high"))
    return {
        "rule": rule,
        "measure": measure,
        "attribute": attribute,
        "verdict": verdict,
        "value": value,
        "low": low,
        "high": high,
        "bound": bound,
        "reason": reason,
    }


def _words(attribute: str) -> str:
    return attribute.replace("_", " ")
