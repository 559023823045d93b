"""The gate's verdict as the reader sees it: in the terminal, on the page and in the short report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairvlm_core.registry.gate import FAIL, PASS, UNSURE


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
