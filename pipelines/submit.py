"""Upload the compiled pipeline to Kubeflow and start a run, now or on a schedule: what `fairvlm submit` does.

It compiles nothing. Whatever the task `plan` would refuse for what the form says is refused here, before the server is
asked anything. The server is spoken to through kfp.Client.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import urllib3
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

from fairvlm_core.errors import ConfigError, FairVLMError
from pipelines.compile import COMPILED
from pipelines.form import Pipeline, arguments, cron, read_pipeline

TOKEN, TOKEN_FILE, AUTHORITY = "KFP_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH", "SSL_CERT_FILE"
ANSWER = 20  # seconds in which the server must answer
EVERY = 10.0  # seconds between two looks at a run
PATIENCE = 30  # looks in a row that may fail before waiting is given up
ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")


class Client(kfp.Client):
    """kfp.Client, whose question whether the server is there asks once instead of five times, 5 seconds apart."""

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        """What the server says about itself.

        Raises:
            FairVLMError: when what answers is not Kubeflow Pipelines, such as a page to log in.
        """
        health, _, headers = self._healthz_api.healthz_service_get_healthz_with_http_info(_request_timeout=ANSWER)
        if "json" not in headers.get("Content-Type", ""):
            raise FairVLMError(
                "What answers is not the API of Kubeflow Pipelines; perhaps a page to log in.",
                where=self._existing_config.host,
                mend=f"Check the address (often it ends in /pipeline), and set {TOKEN} in the environment.",
            )
        return health


def connect(host: str, namespace: str) -> Client:
    """A client of the server at an address, with the token that the environment has, if any.

    Raises:
        FairVLMError: when the address is none, or the server has profiles and no namespace was given.
    """
    if not re.match(r"https?://[^/\s]", host):
        raise ConfigError(
            "The address of Kubeflow Pipelines is missing or has no http:// or https:// before it.",
            where="--host",
            mend="Give the address of its UI, such as https://kubeflow.example.org/pipeline.",
        )
    token, file = os.environ.get(TOKEN), os.environ.get(TOKEN_FILE)
    if file and not token and not os.access(file, os.R_OK):
        raise ConfigError("The file with the token cannot be read.", where=f"{TOKEN_FILE}, {file}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns everybody of servers before 2.0
        client = Client(
            host=host,
            namespace=namespace,
            existing_token=token,
            credentials=ServiceAccountTokenVolumeCredentials(file) if file and not token else None,
            ssl_ca_cert=os.environ.get(AUTHORITY),
        )
    if client.get_kfp_healthz().multi_user and not (namespace or client.get_user_namespace()):
        raise FairVLMError(
            "This Kubeflow has profiles, and none was named.",
            where="--namespace",
            mend="Give your profile's namespace.",
        )
    return client


@contextlib.contextmanager
def speaking(host: str) -> Iterator[None]:
    """Tell of a server that does not answer, or refuses, in one error."""
    chatty = logging.getLogger("urllib3")
    before = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        yield
    except kfp_server_api.ApiException as error:
        if error.status in (401, 403):
            raise FairVLMError(
                f"The server refuses ({error.status}). {_said(error)}".strip(),
                where=host,
                mend=f"Set {TOKEN} in the environment to a token of an account that may do this in the namespace.",
            ) from None
        raise FairVLMError(f"The server answers with an error ({error.status}). {_said(error)}", where=host) from None
    except urllib3.exceptions.HTTPError as error:
        reason = type(getattr(error, "reason", None) or error).__name__
        mend = "Check the address and the way to it: kubectl port-forward service/ml-pipeline-ui 8080:80 makes one."
        if "SSL" in reason:
            mend = f"Set {AUTHORITY} in the environment to the file of the authority that signed its certificate."
        raise FairVLMError(f"The server does not answer ({reason}).", where=host, mend=mend) from None
    finally:
        chatty.setLevel(before)


def _said(error: kfp_server_api.ApiException) -> str:
    """The server's own message, without headers and stack."""
    try:
        said = json.loads(error.body)["message"]
    except (ValueError, TypeError, KeyError):
        return ""
    return str(said).splitlines()[0][:300] if said else ""


def _equals(name: str) -> str:
    """The server's way to ask for what has this name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def upload(client: Client, pipeline: Pipeline, namespace: str) -> tuple[str, str, bool]:
    """Bring the file to the server, unless it is there: a pipeline, and in it a version per content.

    Returns:
        The ids of pipeline and version, and whether anything had to be uploaded.
    """
    own = {"namespace": namespace} if namespace else {}
    found = client.list_pipelines(filter=_equals(pipeline.name), **own).pipelines
    if not found:
        body = kfp_server_api.V2beta1Pipeline(name=pipeline.name, display_name=pipeline.name, **own)
        found = [client.pipelines.pipeline_service_create_pipeline(body)]
    known = found[0].pipeline_id
    versions = client.list_pipeline_versions(known, filter=_equals(pipeline.version)).pipeline_versions
    if versions:
        return known, versions[0].pipeline_version_id, False
    made = client.upload_pipeline_version(str(pipeline.path), pipeline.version, pipeline_id=known)
    return known, made.pipeline_version_id, True


def recur(client: Client, experiment: str, name: str, **asked: Any) -> str:
    """Make a recurring run, and return its id.

    Raises:
        FairVLMError: when the experiment has an enabled one of the same name: two of them would train everything twice.
    """
    found = client.list_recurring_runs(experiment_id=experiment, filter=_equals(name)).recurring_runs or []
    if any(run.status == "ENABLED" for run in found):
        raise FairVLMError(
            f'There is a recurring run "{name}" already, and it is enabled.',
            where="--schedule",
            mend="Disable or delete it under Recurring Runs in the UI, or name another --experiment.",
        )
    return client.create_recurring_run(experiment, name, no_catchup=True, **asked).recurring_run_id


def wait(client: Client, run: str, tasks: Mapping[str, str], say: Any = print) -> str:
    """Wait until a run has ended, say whenever a task changes its state, and return the run's state.

    A server that does not answer for some minutes is waited for, too: training takes hours.
    """
    seen: dict[str, str] = {}
    failures = 0
    while True:
        try:
            found = client.runs.run_service_get_run(run, _request_timeout=ANSWER)
        except (kfp_server_api.ApiException, urllib3.exceptions.HTTPError) as error:
            failures += 1
            if failures > PATIENCE or 400 <= (getattr(error, "status", None) or 0) < 500:
                raise
        else:
            failures = 0
            for task in (found.run_details and found.run_details.task_details) or ():
                name = tasks.get(task.display_name)
                if name and task.state and seen.get(task.task_id) != task.state:
                    seen[task.task_id] = task.state
                    ended = sum(state in ENDED for state in seen.values())
                    say(f"{name}: {task.state.lower()} ({ended} of {len(tasks)} tasks have ended)")
            if found.state in ENDED:
                return found.state
        time.sleep(EVERY)


def submit(
    path: Path | None,
    *,
    host: str,
    namespace: str = "",
    experiment: str = "fairvlm",
    params: Path | None = None,
    changes: Sequence[str] = (),
    service_account: str = "",
    schedule: str = "",
    upload_only: bool = False,
    until_ended: bool = False,
    say: Any = print,
) -> bool:
    """Upload, start or schedule, and maybe wait; see `fairvlm submit --help`.

    Returns:
        False when the run was waited for and did not succeed.

    Raises:
        FairVLMError: for a mistake in the form, before the server is asked; or when the server refuses.
    """
    if upload_only + bool(schedule) + until_ended > 1:
        raise ConfigError(
            "Of --upload-only, --schedule and --wait only one can be done.", mend="Leave out all but one of them."
        )
    pipeline = read_pipeline(path or COMPILED)
    form = arguments(pipeline, params, changes)
    trigger = cron(schedule) if schedule else ""
    for name, value in form.items():
        if value != pipeline.form[name]["defaultValue"]:
            say(f"{name}: {json.dumps(value) if name == 'params' else value}")
    pages = f"{os.environ.get('KF_PIPELINES_UI_ENDPOINT', host).rstrip('/')}/#"
    with speaking(host):
        client = connect(host, namespace)
        with _unheard():
            known, version, new = upload(client, pipeline, namespace)
        state = "uploaded" if new else "was there already"
        say(f"Version {pipeline.version} {state}: {pages}/pipelines/details/{known}/version/{version}")
        if upload_only:
            return True
        asked = {
            "params": form,
            "pipeline_id": known,
            "version_id": version,
            "service_account": service_account or None,
        }
        with _unheard():
            folder = client.create_experiment(experiment, namespace=namespace or None).experiment_id
        if schedule:
            recurring = recur(client, folder, f"{pipeline.name}, {schedule}", cron_expression=trigger, **asked)
            say(f"Scheduled: {pages}/recurringrun/details/{recurring}")
            return True
        name = f"{pipeline.name} {datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
        with _unheard():
            run = client.run_pipeline(folder, name, **asked).run_id
        page = f"{pages}/runs/details/{run}"
        say(f"Started: {page}")
        if not until_ended:
            return True
        ended = wait(client, run, pipeline.tasks, say)
    say(f"The run ended: {ended}. {page}")
    return ended == "SUCCEEDED"


def _unheard() -> contextlib.redirect_stdout[io.StringIO]:
    """kfp prints addresses of its own, some of which end nowhere behind a proxy."""
    return contextlib.redirect_stdout(io.StringIO())
