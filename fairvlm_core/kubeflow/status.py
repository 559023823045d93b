"""How a run ended: as Markdown for its page, and as one message to an address that the operator has set."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path

WEBHOOK = "FAIRVLM_WEBHOOK"
SECONDS = 10


def tell(*, state: str, run: str, task: str, error: str, summary: str | Path) -> None:
    """Write the summary, print it, and post it where FAIRVLM_WEBHOOK says (`{"text": ...}`, as chat services take it).

    The message names the run and its state, never an error's text: that stays on the cluster. A service that does not
    answer is said and does no harm, for the run has ended.
    """
    lines = [f"The run {run} ended: **{state}**."]
    if error:
        lines += ["", f"What {task} reported:", "", *(f"    {line}" for line in error.splitlines())]
    text = "\n".join(lines) + "\n"
    Path(summary).write_text(text, encoding="utf-8")
    print(text, flush=True)
    address = os.environ.get(WEBHOOK)
    if not address:
        return
    message = json.dumps({"text": f"fairvlm: the run {run} ended: {state}."}).encode()
    try:
        request = urllib.request.Request(address, message, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass
    except (OSError, ValueError) as failure:  # also every HTTP error
        print(f"The address in {WEBHOOK} could not be told ({type(failure).__name__}).", flush=True)
