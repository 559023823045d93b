"""`fairvlm serve`: a registered version behind MLflow's scoring server."""

from __future__ import annotations

from typing import Annotated

import typer


def serve(
    model: Annotated[
        str, typer.Argument(help="What to serve: fairvlm (its champion), fairvlm@ALIAS, fairvlm/NUMBER or models:/...")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is open to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 5001,
    workers: Annotated[int, typer.Option(help="Processes; each loads the base model.", min=1)] = 1,
    tracking_uri: Annotated[
        str, typer.Option(help="Tracking server where MLFLOW_TRACKING_URI is not set.")
    ] = "sqlite:///mlflow.db",
) -> None:
    """Serve a registered version: pictures in, calibrated scores, decisions and the version's number out."""
    import tempfile
    from pathlib import Path

    from fairvlm_core.registry import serving
    from fairvlm_core.registry.tracking import tracking

    with tempfile.TemporaryDirectory() as scratch:
        with tracking(tracking_uri):
            served = serving.fetch_served(model, Path(scratch))
        typer.echo(serving.described(served, host, port))
        serving.serve(served, host=host, port=port, workers=workers)
