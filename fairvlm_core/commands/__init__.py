"""The commands of `fairvlm` that are no steps, a module each: functions whose annotations are their flags.

What is heavy is imported inside them, so that `fairvlm --help` answers at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

# Command -> its module here, in the order in which the help lists them.
COMMANDS = {
    "report": "report",
    "summary": "report",
    "experiment": "experiment",
    "export": "export",
    "submit": "submit",
    "monitor": "monitor",
    "serve": "serve",
    "promote": "promotion",
    "rollback": "promotion",
    "audit": "promotion",
    "reproduce": "reproduce",
}


def command(name: str) -> Callable[..., Any]:
    """The function of a command."""
    found: Callable[..., Any] = getattr(importlib.import_module(f"{__name__}.{COMMANDS[name]}"), name)
    return found
