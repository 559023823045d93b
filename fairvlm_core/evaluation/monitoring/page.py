"""The page and the short Markdown about a month, in the look of the fairness report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from fairvlm_core.evaluation.monitoring import charts
from fairvlm_core.evaluation.monitoring.evidence import DRIFTED, STABLE, UNSURE
from fairvlm_core.evaluation.monitoring.words import (
    MEASURES,
    Told,
    change,
    facts,
    percent,
    sentence,
    subject,
    unknowable,
    values,
    verdict,
)
from fairvlm_core.evaluation.report.blocks import figure, legend, numbers_below, panels, scrolled, scrolled_table
from fairvlm_core.evaluation.report.short import markdown_table, plain
from fairvlm_core.evaluation.report.svg import element
from fairvlm_core.evaluation.report.tables import unbroken
from fairvlm_core.evaluation.report.words import attribute_name, capitalised, count, number

TITLE = "Drift of a model in use"
NEAREST = 24  # comparisons in the picture; all are in the tables
WORST = 12  # sentences; all are in the tables
MORE_STYLE = """
.then { fill: var(--c0); opacity: .45; } .within { fill: var(--c3); opacity: .12; }
svg .alarm { fill: var(--c2); font-size: 11.5px; font-weight: 600; }
.verdict.drifted { border-color: var(--c2); } .verdict.open { border-color: var(--c5); }
.verdict.stable { border-color: var(--c3); } .drifts { padding: 0; list-style: none; }
.drifts li { margin: 0 0 .6rem; padding: .6rem .9rem; border-left: 3px solid var(--c2); border-radius: 0 5px 5px 0;
  background: var(--panel); overflow-wrap: anywhere; }
"""
JUDGED = {
    "The limit": "A change counts as drift where its whole interval is beyond the limit, which also holds after "
    "Holm's correction over all comparisons; as stable, where the whole interval is within. Else it cannot be told. "
    "So a large month does not raise an alarm over nothing, nor a small one over chance.",
    "Scores": "How far the two distributions are apart at most (Kolmogorov-Smirnov distance): the share that would be "
    "called positive more or less, at the threshold where that is most. Its interval holds for any distribution.",
    "PSI": "Population stability index, over ten bins. Practitioners watch from 0.1 and act from 0.25; in small "
    "groups chance alone makes as much, which stands beside it. It decides nothing here.",
    "Parity gap": "Largest minus smallest share that is called positive, over the groups that are large enough then "
    "and now. With several labels also as their mean (DPG).",
    "Interval": "Had other people of the same kind come, 95 of 100 such intervals (at a level of 0.95) would hold the "
    "true change. The people of the month and of the reference are independent; the images of one person count as if "
    "all were alike.",
    "Who came": "A share among all images. When other people come, everybody's numbers change though the model serves "
    "each group as it did: look at the groups.",
}


def page(told: Told, drawn: Mapping[str, Sequence[charts.Curves]]) -> str:
    """The whole document.

    Args:
        told: what `drift` found, and about what.
        drawn: label -> the score distributions of its groups.
    """
    shown = [(name, inside) for name, inside in _sections(told, drawn) if inside]
    links = "".join(f'<li><a href="#s{i}">{escape(name)}</a></li>' for i, (name, _) in enumerate(shown))
    body = "".join(
        f'<section id="s{i}"><h2>{escape(name)}</h2>{inside}</section>' for i, (name, inside) in enumerate(shown)
    )
    lead, *more = verdict(told)
    tone = {DRIFTED: "drifted", UNSURE: "open", STABLE: "stable"}[told["verdict"]]
    style = files("fairvlm_core.evaluation.report").joinpath("style.css").read_text() + MORE_STYLE
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # Nothing may be fetched, whatever a name in the data contains.
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
        f"<title>{TITLE}</title><style>{style}</style></head><body>"
        f'<header><h1>{TITLE}</h1><p class="facts">{escape(facts(told))}</p></header><main>'
        f'<div class="verdict {tone}"><p class="lead">{unbroken(lead)}</p>'
        f"{''.join(f'<p>{unbroken(text)}</p>' for text in more)}</div>"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>{body}</main></body></html>\n'
    )


def _sections(told: Told, drawn: Mapping[str, Sequence[charts.Curves]]) -> list[tuple[str, str]]:
    drifted = [finding for finding in told["findings"] if finding["verdict"] == DRIFTED]
    unknown = "".join(f"<li>{escape(line)}</li>" for line in unknowable(told))
    return [
        ("What has drifted", _drifts(drifted)),
        ("How near to the limits", _nearness(told["findings"])),
        ("Scores then and now", "".join(_scores(told, label, found) for label, found in drawn.items())),
        ("Who came", _people(told["people"])),
        ("What cannot be said", f"<ul>{unknown}</ul>" if unknown else ""),
        ("Every comparison", _everything(told["findings"])),
        ("How drift is judged", _judged(told)),
    ]


def _drifts(drifted: Sequence[Told]) -> str:
    if not drifted:
        return ""
    lines = "".join(f"<li>{escape(sentence(finding))}</li>" for finding in drifted[:WORST])
    rest = len(drifted) - WORST
    more = f'<p class="note">And {rest} more, under “Every comparison”.</p>' if rest > 0 else ""
    return f'<ul class="drifts">{lines}</ul>{more}'


def _nearness(findings: Sequence[Told]) -> str:
    nearest = findings[:NEAREST]
    names = (DRIFTED, UNSURE, STABLE)
    words = ["beyond its limit for sure", "cannot be told", "within its limit for sure"]
    few = len(findings) > NEAREST
    caption = f"The {NEAREST} nearest to their limits or beyond" if few else "Every comparison"
    return figure(
        f"{caption}; the band is what the limits allow",
        legend(words, [charts.sign(name, 14, 6) for name in names]),
        scrolled(caption, charts.nearness(nearest)),
    )


def _scores(told: Told, label: str, found: Sequence[charts.Curves]) -> str:
    shifts = {
        (f["attribute"], f["group"]): f
        for f in told["findings"]
        if f["measure"] == "score_shift" and f["label"] == label
    }
    by: dict[str | None, list[str]] = {}
    for shown in found:
        finding = shifts[shown.attribute, shown.group]
        title = "everybody" if shown.group is None else str(shown.group)
        words = f"apart {number(finding['change'], 2)} · PSI {number(finding['more']['psi'], 2)}"
        by.setdefault(shown.attribute, []).append(charts.ridge(shown, title, words, finding["verdict"] == DRIFTED))
    marks = [
        element("rect", x=1, y=1, width=26, height=10, class_="then"),
        element("line", x1=1, y1=6, x2=27, y2=6, class_="curve c1"),
        element("line", x1=1, y1=6, x2=27, y2=6, class_="curve c2"),
    ]
    figures = []
    for attribute, drawings in by.items():
        inside = panels(drawings)
        if attribute is not None and " x " in attribute:
            inside = numbers_below(inside, "Show them")
        caption = label if attribute is None else f"{label} by {attribute_name(attribute)}"
        top = legend(["then", "now", "now, drifted"], marks) if attribute is None else ""
        figures.append(figure(caption, top, inside))
    return "".join(figures)


def _people(rows: Sequence[Told]) -> str:
    by: dict[str, list[Told]] = {}
    for row in rows:
        by.setdefault(row["attribute"], []).append(row)
    marks = [element("rect", x=1, y=1, width=26, height=10, rx=2, class_=f"bar {tone}") for tone in ("c0", "c1")]
    heads = ["Group", "Images then", "Images now", "Share then", "Share now"]
    figures = []
    for attribute, of in by.items():
        cells = [
            [
                "unknown" if row["group"] is None else str(row["group"]),
                *(count(row[key]) for key in ("n_then", "n_now")),
                *(percent(row[key]) for key in ("share_then", "share_now")),
            ]
            for row in of
        ]
        name = attribute_name(attribute)
        table = numbers_below(scrolled_table(f"Images by {name}.", heads, cells))
        figures.append(
            figure(f"By {name}", legend(["then", "now"], marks), scrolled(f"By {name}", charts.people(of)), table)
        )
    return "".join(figures)


HEADS = ["Of whom", "Then", "Now", "Change", "Limit", "Verdict"]


def _row(finding: Told) -> list[str]:
    then, now = values(finding)
    more = finding["more"]
    if "psi" in more:
        now += f"\nPSI {number(more['psi'])}, by chance {number(more['psi_of_chance'])}"
    elif "now_low" in more:
        now += f"\n{number(more['now_low'])}–{number(more['now_high'])}"
        then += f"\n{number(more['then_low'])}–{number(more['then_high'])}"
    first, _, ends = change(finding).partition(" (")
    chance = "" if finding["p_holm"] is None else f"\np {_p(finding['p_holm'])}"
    cell = first + (f"\n{ends.rstrip(')')}" if ends else "")
    return [subject(finding), then, now, cell, f"{finding['limit']:g}", finding["verdict"] + chance]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _everything(findings: Sequence[Told]) -> str:
    tables = []
    for measure, name in MEASURES.items():
        rows = [_row(finding) for finding in findings if finding["measure"] == measure]
        if rows:
            tables.append(numbers_below(scrolled_table(f"{name}, worst first.", HEADS, rows), f"{name} ({len(rows)})"))
    note = (
        "Below a number its interval; below a verdict the chance, after Holm's correction, of so much if the change "
        "is within its limit."
    )
    return f'<p class="note">{escape(note)}</p>{"".join(tables)}'


def _judged(told: Told) -> str:
    items = "".join(f"<div><dt>{escape(t)}</dt><dd>{escape(d)}</dd></div>" for t, d in JUDGED.items())
    limits = ", ".join(
        f"{name.replace('_', ' ')} {value:g}" for name, value in told["limits"].items() if value is not None
    )
    note = (
        f"Limits: {limits}. Level {told['level']:g}, {told['resamples']:,} resamples, seed {told['seed']}. Groups of "
        f"fewer than {told['min_cell']} images are suppressed, and distributions are drawn of groups of "
        f"{charts.ENOUGH * told['min_cell']} and more."
    )
    return f'<dl>{items}</dl><p class="note">{escape(note)}</p>'


def short(told: Told, *, full: str) -> str:
    """The verdict, the worst comparisons and what cannot be said, in Markdown."""
    lead, *more = verdict(told)
    rows = [
        [MEASURES[f["measure"]], subject(f), *values(f), change(f), f"{f['limit']:g}", f["verdict"]]
        for f in _worth_telling(told["findings"])
    ]
    heads = ["Measure", "Of whom", "Then", "Now", "Change", "Limit", "Verdict"]
    parts = [
        f"# {TITLE}",
        plain(facts(told)),
        f"**{plain(lead)}** {plain(' '.join(more))}",
        markdown_table(heads, rows, text=2),
    ]
    unknown = unknowable(told)
    if unknown:
        parts += ["## What cannot be said", "\n".join(f"- {plain(line)}" for line in unknown)]
    parts.append(f"The page, with every comparison and the distributions: {full}.")
    return "\n\n".join(parts) + "\n"


def _worth_telling(findings: Sequence[Told]) -> list[Told]:
    """What has drifted, then everybody's numbers."""
    drifted = [finding for finding in findings if finding["verdict"] == DRIFTED][: 2 * WORST]
    of_all = [finding for finding in findings if finding["attribute"] is None and finding["verdict"] != DRIFTED]
    return [*drifted, *of_all]


def table(told: Told) -> Any:
    """The same table for the terminal."""
    from rich import box
    from rich.markup import escape as markup
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("Measure", "Of whom", "Then", "Now", "Change", "Limit", "Verdict"):
        shown.add_column(head, justify="left" if head in ("Measure", "Of whom", "Verdict") else "right")
    for f in _worth_telling(told["findings"]):
        cells = [
            MEASURES[f["measure"]],
            subject(f),
            *values(f),
            change(f),
            f"{f['limit']:g}",
            capitalised(f["verdict"]),
        ]
        shown.add_row(*map(markup, cells), style="bold" if f["verdict"] == DRIFTED else None)
    return shown
