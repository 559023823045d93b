"""`fairvlm submit`: the pipeline on a cluster."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer


def submit(
    pipeline: Annotated[
        Path | None, typer.Argument(help="The compiled pipeline; without one, pipelines/fairvlm.yaml.")
    ] = None,
    *,
    host: Annotated[
        str, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Address of the UI of Kubeflow Pipelines.")
    ] = "",
    namespace: Annotated[str, typer.Option(help="Your profile's; none where Kubeflow has no profiles.")] = "",
    experiment: Annotated[
        str, typer.Option(help="Under which the UI lists the run; made if it is not there.")
    ] = "fairvlm",
    params: Annotated[
        Path | None, typer.Option(help="A params.yaml for this run; what it leaves out has the step's default.")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="field=value of the form, or step.field=value; wins over --params."),
    ] = None,
    service_account: Annotated[
        str, typer.Option(help="Account of the pods, as deploy/ makes it; an empty one: the cluster's own.")
    ] = "fairvlm",
    schedule: Annotated[
        str, typer.Option(help='Instead of once, whenever this says: "0 3 * * 1" is Mondays at 3, in UTC mostly.')
    ] = "",
    upload_only: Annotated[bool, typer.Option("--upload-only", help="Start nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until the run has ended; exit status 1 if it failed.")] = False,
) -> None:
    """Upload the compiled pipeline to Kubeflow and start a run there, now or on a schedule.

    A token is read from KFP_TOKEN in the environment, or from the file that KF_PIPELINES_SA_TOKEN_PATH names.
    """
    code = importlib.import_module("pipelines.submit")  # by name: nothing here may import kfp
    succeeded = code.submit(
        pipeline,
        host=host,
        namespace=namespace,
        experiment=experiment,
        params=params,
        changes=set or (),
        service_account=service_account,
        schedule=schedule,
        upload_only=upload_only,
        until_ended=wait,
        say=typer.echo,
    )
    if not succeeded:
        raise typer.Exit(1)
