"""What a run is told: the server without credentials, names that MLflow takes, nothing about small groups."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys

import generated_predictions as generated
import mlflow
import pytest
import urllib3
from sqlalchemy.exc import OperationalError

from fairvlm_core.cohort.table import Task
from fairvlm_core.errors import FairVLMError
from fairvlm_core.evaluation.judgement import judge
from fairvlm_core.evaluation.predictions import scores
from fairvlm_core.evaluation.thresholds import decided
from fairvlm_core.registry import tracking


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:pass@mlflow.example.org/team", "https://mlflow.example.org/team"),
        ("postgresql+psycopg2://me:a/b@c@db:5432/mlflow", "postgresql+psycopg2://db:5432/mlflow"),
        ("https://mlflow.example.org?token=abc", "https://mlflow.example.org"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
    ],
)
def test_credentials_are_left_out(uri, shown):
    assert tracking.without_credentials(uri) == shown


@pytest.mark.parametrize(
    "error",
    [
        mlflow.MlflowException("cannot reach https://me:secret@example.org"),
        OperationalError("SELECT 1", {}, Exception("unable to open database file")),
        ModuleNotFoundError("No module named 'psycopg2'"),
    ],
)
def test_errors_of_the_server_are_told_and_the_environment_is_put_back(monkeypatch, error):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def use():
        with tracking.tracking("https://me:secret@example.org") as shown:
            assert shown == "https://example.org"
            assert mlflow.get_tracking_uri() == "https://me:secret@example.org"
            raise error

    with pytest.raises(FairVLMError, match=r"example\.org|unable to open|psycopg2") as told:
        use()
    assert "secret" not in str(told.value)
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_errors_say_what_was_done_and_full_disks_are_called_that(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def use(error, done):
        with tracking.tracking("sqlite:///m.db"), tracking.noting(done):
            raise error

    class Refused(Exception):
        """As a library of an artifact store raises: of no common class."""

    Refused.__module__ = "botocore.exceptions"
    for error, words in (
        (mlflow.MlflowException("no"), "MLflow refused this: no Half is done."),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/file"), "A disk is full. Half is done."),
        (shutil.Error([("a", "b", f"[Errno 28] {os.strerror(errno.ENOSPC)}: 'b'")]), "A disk is full. Half is done."),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "/closed"), "A file cannot be used: Permission denied. Half"),
        (
            OperationalError("INSERT", {}, Exception("database or disk is full")),
            "The disk of the database is full. Half",
        ),
        (
            Refused("https://me:secret@s3.example.org is gone"),
            "refused this: https://s3.example.org is gone Half is done.",
        ),
    ):
        with pytest.raises(FairVLMError) as told:
            use(error, "Half is done.")
        assert words in told.value.what
        assert told.value.where == (getattr(error, "filename", None) or "sqlite:///m.db")
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is not MLflow's
        use(ZeroDivisionError(), "Half is done.")


def test_a_lost_connection_is_retried_for_a_minute_unless_the_user_says_otherwise():
    code = "import os, fairvlm_core.registry; print(os.environ['MLFLOW_HTTP_REQUEST_MAX_RETRIES'])"
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}

    def told(**more):
        words = [sys.executable, "-c", code]
        return subprocess.run(words, env={**plain, **more}, capture_output=True, text=True, check=True).stdout.strip()

    assert told(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1") == "1"
    # As urllib3 counts: no pause before the first repetition, then the doubled factor of MLflow, 2.
    retry = urllib3.Retry(
        total=int(told()), backoff_factor=mlflow.environment_variables.MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get()
    )
    pauses = []
    with contextlib.suppress(urllib3.exceptions.MaxRetryError):
        while True:
            retry = retry.increment("POST", "/", error=urllib3.exceptions.ConnectTimeoutError())
            pauses.append(retry.get_backoff_time())
    assert 45 <= sum(pauses) <= 75


def test_metrics_have_valid_names_and_no_suppressed_group():
    given = decided(scores(generated.table("multilabel"), "test"), dict.fromkeys(generated.LABELS["multilabel"], 0.3))
    judged = judge(given, min_cell=10)
    assert judged["attributes"]["race"]["suppressed"] == ["Pacific Islander"]
    # With a bound that no group reaches, no gap can be published, and none is logged.
    hidden = judge(given, min_cell=10_000)
    flat = tracking.metrics({"validation": hidden, "test": judged})
    for name in flat:
        mlflow.utils.validation._validate_metric_name(name)
    assert flat["test_es_auc_sex"] == judged["attributes"]["sex"]["es_auc"]
    assert flat["test_eod_sex_x_age_group"] == judged["attributes"]["sex x age_group"]["eod"]
    assert flat["test_n"] == 600
    assert flat["validation_auc"] == hidden["overall"]["auc"]
    assert flat["test_ece"] == judged["overall"]["ece"]
    assert flat["test_worst_group_ece_sex"] == judged["attributes"]["sex"]["worst_group_ece"]
    gaps = [name for name in flat if name.startswith("validation_") and any(gap in name for gap in tracking.GAPS)]
    assert gaps == []


def test_parameters_have_valid_names_and_say_what_was_registered():
    task = Task("binary", ("CD4+ cells (low)",), ("low CD4+ cells",), ("normal CD4+ cells",))
    described = {
        "name": "fair_moe",
        "family": "dual",
        "task": task,
        "image_size": 64,
        "seed": 3,
        "experts": {"count": 4, "top_k": 2},
    }
    comparison = {
        "min_cell": 10,
        "criterion": {"name": "dto", "attributes": ["sex", "race"]},
        "models": {"fair_moe": {"thresholds": {"CD4+ cells (low)": 0.25}}},
    }
    flat = tracking.parameters(described, comparison, {"epochs": 3, "attributes": ["sex", "race"]})
    for name in flat:
        mlflow.utils.validation._validate_param_name(name)
    assert flat["experts.count"] == 4
    assert flat["seed"] == 3
    assert flat["training.epochs"] == 3
    assert flat["training.attributes"] == "sex, race"
    assert flat["selection.attributes"] == "sex, race"
    assert flat["threshold.CD4_cells_low_"] == 0.25
    assert flat["calibration"] == "none"

    model = comparison["models"]["fair_moe"]
    found = {"slope": 1.5, "intercept": -0.25, "reason": None}
    model["calibration"] = {"method": "platt", "labels": {"CD4+ cells (low)": found}}
    flat = tracking.parameters(described, comparison, {})
    for name in flat:
        mlflow.utils.validation._validate_param_name(name)
    assert (flat["calibration"], flat["calibration.slope.CD4_cells_low_"]) == ("platt", 1.5)
    assert flat["calibration.intercept.CD4_cells_low_"] == -0.25
    model["calibration"] = {"method": "temperature", "temperature": 1.25, "reason": None}
    flat = tracking.parameters(described, comparison, {})
    assert (flat["calibration"], flat["calibration.temperature"]) == ("temperature", 1.25)
