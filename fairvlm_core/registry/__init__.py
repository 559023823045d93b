"""The model registry: what is logged to MLflow, how it is registered, where it comes from, and how it is fetched."""

import os
import re

# MLflow reads these when it is imported; what the user has set stays.
for _key, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a lock file in the working directory says nothing about the model
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",  # after 0, 4, 8, 16 and 32 seconds: a connection may be lost for a minute
    "AWS_RETRY_MODE": "standard",
    "AWS_MAX_ATTEMPTS": "8",  # likewise, of an artifact store on S3
}.items():
    os.environ.setdefault(_key, _value)


def is_alias(text: str) -> bool:
    """Whether MLflow takes this as an alias: letters, digits, - and _, but neither a version like v1 nor latest.

    >>> [is_alias(text) for text in ("champion", "v3", "latest", "chal lenger", "")]
    [True, False, False, False, False]
    """
    return bool(re.fullmatch(r"[\w-]+", text)) and not re.fullmatch(r"(?i)v\d+|latest", text)
