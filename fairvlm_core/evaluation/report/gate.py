"""The gate's verdict as the reader sees it: in the terminal, on the page and in the short report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fairvlm_core.evaluation.report.blocks import figure, legend, scrolled, scrolled_table
from fairvlm_core.evaluation.report.charts import WIDTH
from fairvlm_core.evaluation.report.svg import drawing, element, text_width, ticks
from fairvlm_core.evaluation.report.words import attribute_name, capitalised, number
from fairvlm_core.evaluation.verdicts import (
    FAIL,
    HIGHER_IS_BETTER,
    MARGINS,
    PASS,
    RELATIVE,
    UNSURE,
    measure_name,
    signed,
)

NOTE = (
    "A rule is judged on the interval of 95 %, never on the number in it: it passes where the whole interval keeps to "
    "the bound, and fails where none of it does. In between, or where there is no interval, the test images cannot "
    "tell: more test patients can, or a person who promotes the model nevertheless and says why."
)
MARKS = {PASS: "c3", UNSURE: "c5", FAIL: "c2"}
ROW, LABELS = 34.0, 168.0  # height of a row of the chart, and what its verdicts need at the right


def verdict_line(gate: Mapping[str, Any]) -> str:
    """The verdict, and how many findings speak against it.

    >>> verdict_line({"verdict": "fail", "findings": [{"verdict": "fail"}, {"verdict": "pass"}, {"verdict": "pass"}]})
    'Gate: fail. Of 3 findings 2 pass, 1 fails, 0 lack evidence.'
    """
    told = [finding["verdict"] for finding in gate["findings"]]
    passed, failed, unsure = (told.count(verdict) for verdict in (PASS, FAIL, UNSURE))
    verbs = [f"{passed} pass{'es' * (passed == 1)}", f"{failed} fail{'s' * (failed == 1)}"]
    verbs.append(f"{unsure} lack{'s' * (unsure == 1)} evidence")
    return f"Gate: {gate['verdict']}. Of {len(told)} findings {', '.join(verbs)}."


def print_gate(gate: Mapping[str, Any], *, reasons: bool) -> None:
    """Print the verdict and, if asked for, its reasons."""
    from rich.console import Console

    console = Console()
    for line in (verdict_line(gate), *(f"- {reason}" for reason in gate["reasons"] if reasons)):
        console.print(line, markup=False, highlight=False)


def badge(gate: Mapping[str, Any]) -> str:
    """The verdict in a line with its sign, as HTML."""
    verdict = gate["verdict"]
    sign = element("svg", _sign(verdict, 9, 9, 8), width=18, height=18, viewBox="0 0 18 18", aria_hidden="true")
    words = verdict_line(gate).removeprefix(f"Gate: {verdict}. ")
    return f'<p class="gate">{sign}<strong>Gate: {escape(verdict)}.</strong> {escape(words)}</p>'


def gate_section(gate: Mapping[str, Any], kind: str) -> str:
    """The verdict, its reasons, a picture of each interval against its bound, and the numbers."""
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in gate["reasons"])
    relative = [finding for finding in gate["findings"] if finding["rule"] in RELATIVE]
    absolute = [finding for finding in gate["findings"] if finding not in relative]
    marks = [element("g", _sign(verdict, 14, 6, 6)) for verdict in MARKS]
    band = element("rect", x=2, y=0, width=24, height=12, class_="good")
    marks.append(band + element("line", x1=2, x2=2, y1=0, y2=12, class_="bound"))
    pictures = ""
    for caption, findings, axis in (
        ("Against the champion", relative, "selected model minus champion"),
        ("The selected model by itself", absolute, "value"),
    ):
        shown = [finding for finding in findings if finding["low"] is not None]
        if shown:
            chart = scrolled(caption, bounds_chart(shown, kind, axis))
            words = [*map(capitalised, MARKS), "Where the whole interval should be, up to the bound"]
            pictures += figure(caption, legend(words, marks), chart)
    heads, rows = gate_table(gate, kind)
    table = scrolled_table("Every rule that was judged.", heads, rows, text=2)
    return f'{badge(gate)}<ul>{reasons}</ul>{pictures}{table}<p class="note">{escape(NOTE)}</p>'


def gate_table(gate: Mapping[str, Any], kind: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: what is judged, what it must be, what it is with its interval, and the verdict."""
    rows = []
    for finding in gate["findings"]:
        show = signed if finding["rule"] in RELATIVE else number
        if finding["measure"] == "n":
            shown = str(finding["value"]) if finding["value"] is not None else "–"
        elif finding["low"] is None:
            shown = number(None) if finding["value"] is None else show(finding["value"])
        else:
            ends = f"{show(finding['low'])} to {show(finding['high'])}"
            shown = f"{show(finding['value'])}\n{ends}"
        against = ", against the champion" * (finding["rule"] in RELATIVE)
        rows.append([_name(finding, kind) + against, _bound(finding), shown, finding["verdict"]])
    return ["Rule", "Must be", "Found", "Verdict"], rows


def bounds_chart(findings: Sequence[Mapping[str, Any]], kind: str, axis: str) -> str:
    """A row per finding: its interval, its bound, the side of the bound that is good, and the verdict in words."""
    known = [finding[key] for finding in findings for key in ("low", "high", "bound")]
    marks = ticks(min(known), max(known), 6)
    left = 24 + max(text_width(_name(finding, kind), 14.5) for finding in findings)  # bold is wider
    right, bottom = WIDTH - LABELS, 8 + ROW * len(findings)

    def x(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (right - left)

    parts = []
    for i, finding in enumerate(findings):
        # The side of the bound that is good, behind the grid.
        start, end = (x(finding["bound"]), right) if _higher(finding) else (left, x(finding["bound"]))
        top = 8 + ROW * i
        parts.append(
            element("rect", x=start, y=top + 3, width=max(end - start, 0.0), height=ROW - 6, rx=3, class_="good")
        )
    for tick in marks:
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=4.0, y2=bottom, class_="grid"))
        parts.append(element("text", text=f"{tick:g}", x=x(tick), y=bottom + 18, class_="tick", text_anchor="middle"))
    parts.append(element("text", text=axis, x=(left + right) / 2, y=bottom + 38, class_="tick", text_anchor="middle"))
    for i, finding in enumerate(findings):
        top, middle, mark = 8 + ROW * i, 8 + ROW * (i + 0.5), MARKS[finding["verdict"]]
        if i:
            parts.append(element("line", x1=0, x2=WIDTH, y1=top, y2=top, class_="rule"))
        name = _name(finding, kind)
        parts.append(element("text", text=name, x=left - 14, y=middle + 4, class_="name", text_anchor="end"))
        bound = x(finding["bound"])
        parts.append(element("line", x1=bound, x2=bound, y1=top + 3, y2=top + ROW - 3, class_="bound"))
        ends = x(finding["low"]), x(finding["high"])
        parts.append(element("line", x1=ends[0], x2=ends[1], y1=middle, y2=middle, class_=f"curve {mark}"))
        for end in ends:
            parts.append(element("line", x1=end, x2=end, y1=middle - 4, y2=middle + 4, class_=f"curve {mark}"))
        parts.append(_sign(finding["verdict"], x(finding["value"]), middle, 6))
        parts.append(element("text", text=finding["verdict"], x=right + 18, y=middle + 4, class_="value"))
    told = "; ".join(finding["reason"].removesuffix(".") for finding in findings)
    return drawing(WIDTH, bottom + 48, f"Intervals against their bounds. {told}.", parts)


def _sign(verdict: str, x: float, y: float, r: float) -> str:
    """A verdict's mark, told apart by its shape, too: circle for pass, square for insufficient evidence, cross."""
    class_ = f"mark {MARKS[verdict]}"
    if verdict == PASS:
        return element("circle", cx=x, cy=y, r=r, class_=class_)
    if verdict == UNSURE:
        side = 1.7 * r
        return element("rect", x=x - side / 2, y=y - side / 2, width=side, height=side, class_=f"{class_} open")
    a, b = 1.15 * r, 0.5 * r  # half the side, and how thick the arms are
    corners = [(0, b), (a - b, a), (a, a - b), (b, 0)]
    outline = [
        (sx * px, sy * py)
        for sx, sy, points in ((1, -1, corners), (1, 1, corners[::-1]), (-1, 1, corners), (-1, -1, corners[::-1]))
        for px, py in points
    ]
    return element("polygon", points=" ".join(f"{x + px:.2f},{y + py:.2f}" for px, py in outline), class_=class_)


def _name(finding: Mapping[str, Any], kind: str) -> str:
    """What a finding is about.

    >>> _name({"measure": "worst_group_auc", "attribute": "age_group"}, "binary")
    'Worst group AUC by age group'
    """
    by = f" by {attribute_name(finding['attribute'])}" if finding["attribute"] else ""
    return capitalised(measure_name(finding["measure"], kind)) + by


def _bound(finding: Mapping[str, Any]) -> str:
    if finding["measure"] == "n":
        return f"at least {finding['bound']}"
    if finding["rule"] == "fairer":
        return "above 0" if _higher(finding) else "below 0"
    show = signed if finding["rule"] in MARGINS else number
    return f"at {'least' if _higher(finding) else 'most'} {show(finding['bound'])}"


def _higher(finding: Mapping[str, Any]) -> bool:
    return finding["measure"] in HIGHER_IS_BETTER
