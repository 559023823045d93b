"""`fairvlm promote`, `fairvlm rollback` and `fairvlm audit`: which registered version is in use, and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fairvlm_core.registry.promote import Moved

Name = Annotated[str, typer.Option(help="Name in the model registry.")]
Server = Annotated[str, typer.Option(help="Tracking server where MLFLOW_TRACKING_URI is not set.")]
LOCAL = "sqlite:///mlflow.db"


def promote(
    version: Annotated[str, typer.Argument(help="Alias or number of the version.")] = "challenger",
    *,
    registered_name: Name = "fairvlm",
    because: Annotated[
        str, typer.Option(help="Why, in a sentence: needed where the gate or another check speaks against it.")
    ] = "",
    cohort: Annotated[
        Path | None,
        typer.Option(
            help="Folder with today's cohort.parquet: the gate must have judged on its test images. By default on "
            "those of the newest version."
        ),
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            envvar="FAIRVLM_PROMOTE_TO",
            help="Another server, onto which the version is copied and where it becomes champion; its user and "
            "password stand in this address.",
        ),
    ] = "",
    to_name: Annotated[str, typer.Option(help="The name there, if it is another one.")] = "",
    tracking_uri: Server = LOCAL,
) -> None:
    """Make a registered version champion, if the gate let it pass and nothing has changed since; or say why not."""
    from fairvlm_core.registry.promote import Target
    from fairvlm_core.registry.promote import promote as make_champion

    moved = make_champion(
        registered_name,
        version,
        tracking_uri=tracking_uri,
        because=because,
        cohort=cohort,
        to=Target(to, to_name or registered_name) if to else None,
        ask=_ask if sys.stdin.isatty() else None,
        say=typer.echo,
    )
    _tell(moved, "To go back")


def rollback(
    *,
    registered_name: Name = "fairvlm",
    because: Annotated[str, typer.Option(help="Why, in a sentence, for the record.")] = "",
    tracking_uri: Server = LOCAL,
) -> None:
    """Make the champion before the one in use champion again."""
    from fairvlm_core.registry.promote import rollback as go_back

    moved = go_back(registered_name, tracking_uri=tracking_uri, because=because, say=typer.echo)
    _tell(moved, "To go back further")


def audit(
    *,
    registered_name: Name = "fairvlm",
    out: Annotated[Path | None, typer.Option(help="JSON file to write it to as well.")] = None,
    files: Annotated[
        bool,
        typer.Option("--files", help="Fetch the files behind the aliases, and see that they are the registered ones."),
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write a move that was made by hand into the ledger, as such.")
    ] = False,
    tracking_uri: Server = LOCAL,
) -> None:
    """List every move of the champion with the gate's verdict, and what does not fit; if so, exit status 1.

    What a later promotion has replaced is history: it is listed, and does not count.
    """
    from rich.console import Console

    from fairvlm_core.files import write_json
    from fairvlm_core.registry import tracking
    from fairvlm_core.registry.audit import audit as look_through
    from fairvlm_core.registry.audit import audit_table, plain, reasons
    from fairvlm_core.registry.audit import record as write_down

    with tracking.tracking(tracking_uri) as server:
        if record and write_down(registered_name):
            typer.echo("A move that was made by hand is in the ledger now.")
        found = look_through(registered_name, server=server, files=files)
    console = Console()
    console.print(audit_table(found))
    for reason in reasons(found):
        typer.echo(reason)
    for current, heading in ((True, "Does not fit:"), (False, "History:")):
        texts = [finding.text for finding in found.findings if finding.current == current]
        if texts:
            typer.echo("\n".join([heading, *(f"- {plain(text)}" for text in texts)]))
    if out:
        write_json(out, found.as_json())
    if not found.fits:
        raise typer.Exit(1)
    typer.echo("Everything that is in use fits.")


def _ask(told: str) -> str:
    typer.echo(told)
    return str(typer.prompt("Why is it promoted all the same? (nothing: it is not)", default="", show_default=False))


def _tell(moved: Moved, back: str) -> None:
    before = f"version {moved.previous} is `previous`" if moved.previous else "there is no version before it"
    typer.echo(f"Version {moved.champion} of {moved.name} on {moved.server} is champion now; {before}.")
    if moved.previous:
        typer.echo(f"{back}: fairvlm rollback --registered-name {moved.name} --tracking-uri {moved.server}")
