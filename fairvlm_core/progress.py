"""Progress on long work: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show how far the work is, on standard error."""
    from tqdm import tqdm

    from fairvlm_core.files import process_rank

    # In a log file a bar that redraws itself is noise: there, one line every twenty seconds.
    interval = 0.2 if sys.stderr.isatty() else 20.0
    yield from tqdm(items, desc=description, total=total, mininterval=interval, disable=process_rank() > 0)
