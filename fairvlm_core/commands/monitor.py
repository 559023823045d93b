"""`fairvlm monitor`: has a model in use drifted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

LIMITS, SAMPLES = "Limits", "Samples"


def monitor(
    reference: Annotated[
        Path, typer.Argument(help="Folder that evaluate wrote for the registered model, or its predictions.")
    ],
    current: Annotated[
        Path, typer.Argument(help="A month's predictions as Parquet or CSV, or the folder with predictions.parquet.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write: monitor.json, monitor.html, monitor.md.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="The month's scores are as predict wrote them: calibrate and decide.")
    ] = False,
    split: Annotated[
        str, typer.Option(help="Take only this split of the month; by default all rows.", rich_help_panel=SAMPLES)
    ] = "",
    reference_split: Annotated[str, typer.Option(help="The split of the reference.", rich_help_panel=SAMPLES)] = "test",
    max_score_shift: Annotated[
        float, typer.Option(help="Largest distance of the score distributions.", rich_help_panel=LIMITS)
    ] = 0.1,
    max_selection_shift: Annotated[
        float, typer.Option(help="Largest change of the share that is called positive.", rich_help_panel=LIMITS)
    ] = 0.1,
    max_prevalence_shift: Annotated[
        float, typer.Option(help="Largest change of how common a label is.", rich_help_panel=LIMITS)
    ] = 0.1,
    max_mix_shift: Annotated[
        float, typer.Option(help="Largest change of a group's share of the images.", rich_help_panel=LIMITS)
    ] = 0.1,
    max_dpd_rise: Annotated[float, typer.Option(help="Largest rise of a parity gap.", rich_help_panel=LIMITS)] = 0.1,
    max_eod_rise: Annotated[
        float, typer.Option(help="Largest rise of a gap in error rates.", rich_help_panel=LIMITS)
    ] = 0.1,
    max_auc_drop: Annotated[
        float, typer.Option(help="Largest drop of AUC, ES-AUC and the worst group's AUC.", rich_help_panel=LIMITS)
    ] = 0.05,
    max_ece_rise: Annotated[
        float, typer.Option(help="Largest rise of the calibration error.", rich_help_panel=LIMITS)
    ] = 0.05,
    max_dpd: Annotated[
        float | None, typer.Option(help="Largest parity gap, whatever it was; none by default.", rich_help_panel=LIMITS)
    ] = None,
    max_eod: Annotated[
        float | None, typer.Option(help="Largest gap in error rates, whatever it was.", rich_help_panel=LIMITS)
    ] = None,
    min_cell: Annotated[
        int, typer.Option(help="Groups with fewer images on a side are suppressed.", rich_help_panel=SAMPLES)
    ] = 10,
    resamples: Annotated[
        int, typer.Option(help="Resamples of the patients for the intervals.", rich_help_panel=SAMPLES)
    ] = 1000,
    level: Annotated[
        float, typer.Option(help="Level of the intervals and of the verdict.", rich_help_panel=SAMPLES)
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.", rich_help_panel=SAMPLES)] = 0,
) -> None:
    """Compare a month of predictions with those of the test set at registration.

    Exit status 1 where a change or a gap is beyond its limit for sure, 2 where the files cannot be compared, else 0.
    """
    from fairvlm_core.evaluation.monitoring import monitor as compare
    from fairvlm_core.evaluation.monitoring import print_monitor
    from fairvlm_core.evaluation.monitoring.evidence import DRIFTED, Asked, Limits

    limits = Limits(
        score_shift=max_score_shift,
        selection_shift=max_selection_shift,
        prevalence_shift=max_prevalence_shift,
        mix_shift=max_mix_shift,
        dpd_rise=max_dpd_rise,
        eod_rise=max_eod_rise,
        auc_drop=max_auc_drop,
        ece_rise=max_ece_rise,
        dpd=max_dpd,
        eod=max_eod,
    )
    asked = Asked(limits=limits, min_cell=min_cell, resamples=resamples, level=level, seed=seed)
    told = compare(reference, current, out, asked, raw=raw, reference_split=reference_split, split=split or None)
    print_monitor(told, out)
    if told["verdict"] == DRIFTED:
        raise typer.Exit(1)
