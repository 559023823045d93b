"""The model registry: what is logged to MLflow, how it is registered, where it comes from, and how it is fetched."""

import os
import re

# MLflow reads these when it is imported; what the user has set stays.
for _key, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a lock file in the working directory says nothing about the model
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_key, _value)


def is_alias(text: str) -> bool:
    """Whether MLflow takes this as an alias: letters, digits, - and _, but neither a version like v1 nor latest.

    >>> [is_alias(text) for text in ("champion", "v3", "latest", "chal lenger", "")]
    [True, False, False, False, False]
    """
    return bool(re.fullmatch(r"[\w-]+", text)) and not re.fullmatch(r"(?i)v\d+|latest", text)
