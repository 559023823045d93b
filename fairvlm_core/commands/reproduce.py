"""`fairvlm reproduce`: how a registered version was made, and what of it is the same here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    version: Annotated[str, typer.Argument(help="Number or alias of the version.")] = "champion",
    *,
    registered_name: Annotated[str, typer.Option(help="Name in the model registry.")] = "fairvlm",
    tracking_uri: Annotated[
        str, typer.Option(help="Server where MLFLOW_TRACKING_URI is not set.")
    ] = "sqlite:///mlflow.db",
    cohort: Annotated[Path | None, typer.Option(help="Folder that stratify wrote; without one, data/balanced.")] = None,
    base: Annotated[Path | None, typer.Option(help="Folder that base_models wrote; without one, models/base.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="What compare or a training step wrote in a repeated run, or where that was made."),
    ] = None,
) -> None:
    """Print the commands that make a registered version again, and check what is the same here; it runs none of them.

    The exit status is 1 if anything differs.
    """
    import tempfile

    from rich.console import Console
    from rich.table import Table

    from fairvlm_core.registry import repeat, tracking
    from fairvlm_core.registry.reproduce import DIFFERS, UNKNOWN, checks, fetched

    root = Path.cwd()
    with tracking.tracking(tracking_uri) as server, tempfile.TemporaryDirectory() as scratch:
        recorded = fetched(registered_name, version, Path(scratch))
        told = repeat.commands(recorded, root, server=server)
        found = repeat.against(recorded, against) if against else checks(recorded, root, cohort=cohort, base=base)
    number = recorded.version.number
    if not against:
        typer.echo(f"# To make version {number} of {registered_name} again:")
        for what, lines in told:
            typer.echo("\n".join([f"\n# {what}.", *lines]))
        typer.echo()
    shown = {DIFFERS: "bold red", UNKNOWN: "yellow"}
    table = Table(title=f"Version {number} of {registered_name}", title_justify="left")
    for head in ("check", "recorded", "found", "verdict"):
        table.add_column(head, overflow="fold")
    for row in found:
        verdict = f"{row.verdict}: {row.why}" if row.why else row.verdict
        table.add_row(row.what, row.recorded, row.found, verdict, style=shown.get(row.verdict))
    Console().print(table, markup=False)
    differ = sum(row.verdict == DIFFERS for row in found)
    unknown = sum(row.verdict == UNKNOWN for row in found)
    typer.echo(f"{differ} of {len(found)} checks differ; {unknown} cannot be made here.")
    if differ:
        raise typer.Exit(1)
