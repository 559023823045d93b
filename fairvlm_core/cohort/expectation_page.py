"""The page about a validation: one HTML file that needs nothing else, readable on screen, in the dark and on paper.

Great Expectations' own data docs load style sheets and scripts from elsewhere, so they stay blank offline.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fairvlm_core.cohort.document import STYLE
from fairvlm_core.cohort.expectation_drift import CHANCE, Drift, Panel
from fairvlm_core.cohort.expectation_shares import Line
from fairvlm_core.cohort.expectation_suites import Check

LONGEST = 20  # a panel with more lines shows those that changed, and folds all of them away
BAR = 120  # pixels of the largest share

MORE_STYLE = """
:root { --before: #b4bfc9; --now: #1273a3; --ok: #1b7f4b; }
@media screen and (prefers-color-scheme: dark) { :root { --before: #5b6874; --now: #55b0de; --ok: #66c594; } }
h3 { margin: 0; font-size: 1rem; } h3 + dl { margin-top: .6rem; }
.lead { margin: 1.5rem 0 0; padding: 1rem 1.25rem; max-width: none; border-left: 4px solid var(--ok);
  border-radius: 0 6px 6px 0; background: var(--panel); font-size: 1.1rem; font-weight: 600; }
.lead.open { border-color: var(--warning); }
.attention { margin: 1rem 0 0; padding: 0; list-style: none; }
.attention li { margin: 0 0 .75rem; padding: .75rem 1rem; border-radius: 6px; background: var(--wash); }
.attention b, .attention span { display: block; }
.note, .attention span, code, dd, .legend { color: var(--soft); }
.note { font-size: .9rem; }
.ok { color: var(--ok); } .alarm { color: var(--warning); font-weight: 600; } .ok, .alarm { white-space: nowrap; }
table { width: 100%; } .checks td:nth-child(4) { min-width: 13.5rem; }
code { display: block; font-size: .78em; }
figure { margin: 0 0 2rem; break-inside: avoid; }
figure .scroll { margin: 0; }
figcaption { display: flex; flex-wrap: wrap; gap: .1rem 1rem; align-items: baseline; }
figcaption p { margin: 0; white-space: normal; }
.shares { table-layout: fixed; min-width: 44rem; }
.shares th:first-child { width: 30%; } .shares .bars { width: 136px; } .shares .mark { width: 6.5rem; }
.before { fill: var(--before); } .now { fill: var(--now); }
.legend { display: flex; gap: 1.25rem; margin: 0 0 1.25rem; padding: 0; list-style: none; font-size: .9rem; }
.legend li { display: flex; align-items: center; gap: .45rem; }
summary { width: max-content; margin: .5rem 0; color: var(--accent); font-size: .9rem; cursor: pointer; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; margin: 0 0 .9rem; }
dt { font-weight: 600; } dd { margin: 0; }
@media (max-width: 40rem) { dl { display: block; } dd { margin: 0 0 .5rem; } }
@media print { .shares { min-width: 0; } .attention li { break-inside: avoid; } }
"""


def page(
    checks: Sequence[Check], drift: Drift | None, *, rows: int, patients: int, min_cell: int, reference: str = ""
) -> str:
    """The whole document.

    Args:
        checks: none of them a broken rule.
        drift: the cohort beside its reference, if there is one.
        rows: how many images the cohort has.
        patients: and of how many patients.
        min_cell: what is suppressed.
        reference: its folder.
    """
    warnings = [check for check in checks if not check.success]
    facts = f"{rows:,} images of {patients:,} patients · {len(checks)} expectations, {len(checks) - len(warnings)} hold"
    lead = (
        f"Nothing stops the run, but {len(warnings)} warning{'s need' if len(warnings) > 1 else ' needs'} attention."
        if warnings
        else "Every expectation holds."
    )
    body = f'<p class="lead{" open" if warnings else ""}">{lead}</p>' + _attention(warnings)
    if drift is not None:
        body += _drift(drift, min_cell, reference)
    body += f"<h2>Every expectation</h2>{_table(checks)}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # Nothing may be fetched, whatever a name in the data contains.
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
        f"<title>Validation of the cohort</title><style>{STYLE}{MORE_STYLE}</style></head><body>"
        f'<header><h1>The cohort passed its validation</h1><p class="facts">{facts}</p></header>'
        f"<main>{body}</main></body></html>\n"
    )


def _attention(warnings: Sequence[Check]) -> str:
    items = [
        f"<li><b>It does not hold that {escape(check.rule)}.</b>{escape(check.observed)}."
        f"<span>{escape(check.mend)}</span></li>"
        for check in warnings
    ]
    return f'<ul class="attention">{"".join(items)}</ul>' if items else ""


def _table(checks: Sequence[Check]) -> str:
    """A line per expectation, what needs attention first."""
    lines = []
    for check in sorted(checks, key=lambda check: check.success):
        status = '<td class="ok">✓ holds</td>' if check.success else '<td class="alarm">! warning</td>'
        cells = (check.column.replace("_", " "), check.observed, check.severity)
        shown = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rule = f"<td>{escape(check.rule)}<code>{escape(check.expectation)}</code></td>"
        lines.append(f"<tr>{status}{rule}{shown}</tr>")
    heads = ("Outcome", "Rule", "Column", "Observed", "Severity")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        '<div class="scroll" tabindex="0"><table class="checks">'
        f"<caption>An error stops the run, a warning does not.</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _drift(drift: Drift, min_cell: int, reference: str) -> str:
    """What was compared, a figure per panel, and how a change is judged."""
    told = (
        f"{drift.rows:,} images are compared with {drift.reference_rows:,} of the reference"
        f"{f' ({reference})' if reference else ''}. It has {drift.figures['images_seen']:.0%} of the cohort's images."
    )
    if drift.balanced:
        told += (
            " The training rows of the reference were balanced, so they do not say who came: its other rows are"
            " compared."
        )
    marks = "".join(
        f'<li><svg width="28" height="10" aria-hidden="true"><rect class="{name}" width="28" height="10" rx="2"/></svg>'
        f"{word}</li>"
        for name, word in (("before", "reference"), ("now", "this cohort"))
    )
    figures = "".join(_figure(panel, min_cell) for panel in drift.panels)
    return (
        f"<h2>Drift against the reference</h2><p>{escape(told)}</p>"
        f'<ul class="legend">{marks}</ul>{figures}{_judged(min_cell)}'
    )


def _figure(panel: Panel, min_cell: int) -> str:
    titles = {"age": "Age in years", "unknown": "How often it is unknown", "labels": "How frequent each label is"}
    title = titles.get(panel.title, panel.title.replace("_", " ").capitalize())
    told = f'<p class="note{" alarm" if panel.changed else ""}">{escape(panel.told)}</p>' if panel.told else ""
    heads = f"<figure><figcaption><h3>{escape(title)}</h3>{told}</figcaption>"
    if len(panel.lines) <= LONGEST:
        return f"{heads}{_shares(panel.lines)}</figure>"
    changed = [line for line in panel.lines if line.changed]
    shown = _shares(changed) if changed else '<p class="note">None of them changed by more than its limit.</p>'
    return f"{heads}{shown}<details><summary>All {len(panel.lines)}</summary>{_shares(panel.lines)}</details></figure>"


def _shares(lines: Sequence[Line]) -> str:
    """A table of shares before and now, with bars as long as they are large."""
    largest = max((share for line in lines for share in (line.before, line.now) if share is not None), default=0) or 1
    rows = []
    for line in lines:
        mark = '<td class="mark alarm">! changed</td>' if line.changed else '<td class="mark"></td>'
        if line.before is None or line.now is None:
            cells = '<td class="bars"></td><td class="n note" colspan="3">suppressed</td>'
        else:
            bars = "".join(
                f'<rect class="{name}" y="{y}" width="{share / largest * BAR:.1f}" height="6" rx="1.5"/>'
                for name, share, y in (("before", line.before, 0), ("now", line.now, 8))
            )
            points = f"{round(100 * line.now, 1) - round(100 * line.before, 1):+.1f}".replace("-", "−")
            cells = (
                f'<td class="bars"><svg width="{BAR}" height="14" aria-hidden="true">{bars}</svg></td>'
                f'<td class="n">{line.before:.1%}</td><td class="n">{line.now:.1%}</td><td class="n">{points}</td>'
            )
        rows.append(f'<tr><th scope="row">{escape(line.name)}</th>{cells}{mark}</tr>')
    return (
        '<div class="scroll" tabindex="0"><table class="shares"><thead><tr><th scope="col"></th>'
        '<th class="bars"></th><th scope="col" class="n">Reference</th><th scope="col" class="n">Now</th>'
        '<th scope="col" class="n">Points</th><th class="mark"></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _judged(min_cell: int) -> str:
    words = (
        ("Groups", "Kullback-Leibler divergence of their shares from those of the reference"),
        ("Ages", "Kolmogorov-Smirnov distance: how far the cumulative shares are apart at most"),
        ("Labels", "Cohen's h, the difference of 2 arcsin √p: 0.1 is 5 points at 50% and 2 points at 3%"),
        ("Unknown", "the difference of the shares"),
        ("Suppressed", f"fewer than {min_cell} patients, or hidden so that those cannot be had by subtraction"),
    )
    items = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in words)
    note = (
        "Each has a limit among the parameters of validate. A change is told when it is larger than its limit, and "
        f"larger than chance makes it in {CHANCE * 1000:g} of 1,000 comparisons of as many patients."
    )
    return f'<h3>How a change is judged</h3><dl>{items}</dl><p class="note">{escape(note)}</p>'
