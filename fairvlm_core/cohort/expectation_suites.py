"""Suites of Great Expectations, run over frames: outcomes in words, and its own results fit for publication."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

NAMED = 20  # of the lines at fault, so many are named
# Of a result, what is published: no values, no places of people, no shares of groups.
PUBLISHED = (
    "element_count",
    "unexpected_count",
    "unexpected_percent",
    "unexpected_percent_total",
    "unexpected_percent_nonmissing",
    "missing_count",
    "missing_percent",
    "observed_value",
)


@dataclass(frozen=True)
class Check:
    """The outcome of one expectation.

    Attributes:
        rule: what must hold, in words.
        column: of the cohort.
        severity: an `error` stops the run.
        success: whether it holds.
        observed: how often it does not, in words.
        row: the first row that breaks it, counted from 0.
        mend: what to do about it.
        expectation: its type in Great Expectations, or `schema`.
    """

    rule: str
    column: str
    severity: Literal["error", "warning"]
    success: bool
    observed: str
    row: int | None
    mend: str
    expectation: str


def expect(kind: str, column: str, rule: str, mend: str, *, of: str = "", warn: bool = False, **arguments: Any) -> Any:
    """An expectation with what we say about it.

    Args:
        kind: its class in Great Expectations.
        column: of the frame; not used where the arguments name several (`column_list`, `column_A`) or the whole table.
        rule: what must hold, as a clause.
        mend: what to do where it does not.
        of: the column of the cohort, where it is not `column`.
        warn: a warning instead of an error.
        arguments: of the expectation.
    """
    single = kind.startswith("ExpectColumn") and "column_A" not in arguments
    return getattr(great_expectations().expectations, kind)(
        **({"column": column} if single else {}),
        **arguments,
        meta={"rule": rule, "mend": mend, "of": of or column},
        severity="warning" if warn else "critical",
    )


def validated(
    frame: pd.DataFrame, expectations: Sequence[Any], *, unit: str, min_cell: int, names: Sequence[str] | None = None
) -> tuple[list[Check], dict[str, Any]]:
    """Run a suite over a frame whose index is 0, 1, ...

    Args:
        unit: what a line of the frame is; also the name of the suite.
        min_cell: a warning does not tell the number of rows where it is smaller.
        names: of the lines; then what is observed names those at fault, and no row is given.

    Returns:
        The outcomes in the order of the expectations, and Great Expectations' result as JSON that its own
        `ExpectationSuiteValidationResultSchema` reads, without what must not be published.
    """
    gx = great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("cohort").add_dataframe_asset(unit)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    # The places of what is unexpected are all we need of it: values must not leave the frame, and a query of all
    # places costs more than the check.
    wanted = {
        "result_format": "SUMMARY",
        "partial_unexpected_count": NAMED,
        "exclude_unexpected_values": True,
        "return_unexpected_index_query": False,
    }
    validation = batch.validate(gx.ExpectationSuite(name=unit, expectations=list(expectations)), result_format=wanted)
    order = {expectation.meta["rule"]: place for place, expectation in enumerate(expectations)}
    validation.results.sort(key=lambda result: order[result.expectation_config.meta["rule"]])
    checks = [_check(result, unit=unit, names=names, min_cell=min_cell) for result in validation.results]
    return checks, _published(validation.to_json_dict(), min_cell)


def _check(result: Any, *, unit: str, names: Sequence[str] | None, min_cell: int) -> Check:
    config, found = result.expectation_config, result.result
    warn = str(getattr(config.severity, "value", config.severity)) == "warning"
    lines = found.get("partial_unexpected_index_list") or []
    if "unexpected_count" in found:
        observed = _counted(found["unexpected_count"], found["element_count"], unit, min_cell if warn else 0)
        if names is not None and lines:
            named, more = ", ".join(names[i] for i in lines), found["unexpected_count"] - len(lines)
            observed = named if found["element_count"] == 1 else f"{observed}: {named}"
            observed += f" and {more:,} more" if more else ""
    elif "observed_value" in found:
        observed = _measured(found["observed_value"], config.kwargs)
    else:
        raise RuntimeError(f"Great Expectations could not evaluate {config.type}: {result.exception_info}")
    return Check(
        rule=config.meta["rule"],
        column=config.meta["of"],
        severity="warning" if warn else "error",
        success=bool(result.success),
        observed=observed,
        row=int(lines[0]) if lines and names is None else None,
        mend=config.meta["mend"],
        expectation=config.type,
    )


def _counted(count: int, total: int, unit: str, min_cell: int) -> str:
    """How many break a rule, in words."""
    if unit == "rows" and 0 < count < min_cell:
        return f"fewer than {min_cell} of {total:,} rows break it"
    share = f" ({_percent(count / total)})" if unit == "rows" and count else ""
    return f"{count:,} of {total:,} {unit} break it{share}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1%"


def _measured(value: float, arguments: dict[str, Any]) -> str:
    if "threshold" in arguments:
        return f"divergence {value:.3f}, at most {arguments['threshold']:.3f} allowed"
    return f"{value:,} found"


def _published(found: dict[str, Any], min_cell: int) -> dict[str, Any]:
    """Great Expectations' result without values, places, times, fingerprints, shares of groups and small counts."""
    for result in found["results"]:
        arguments = result["expectation_config"]["kwargs"]
        if "partition_object" in arguments:
            arguments["partition_object"] = {"values": arguments["partition_object"]["values"], "weights": None}
        kept = {key: value for key, value in result["result"].items() if key in PUBLISHED}
        if isinstance(kept.get("observed_value"), float):
            kept["observed_value"] = round(float(kept["observed_value"]), 4)
        for name in ("unexpected", "missing"):
            count = kept.get(f"{name}_count", 0)
            small = 0 < count < min_cell or 0 < kept.get("element_count", 0) - count < min_cell
            if found["suite_name"] == "rows" and small:
                kept = {key: None if key.startswith(name) else value for key, value in kept.items()}
        result["result"] = kept
    found["meta"] = {"great_expectations_version": found["meta"]["great_expectations_version"]}
    return found


def great_expectations() -> Any:
    """Import it late (it takes seconds), and without its analytics."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations

    return great_expectations
