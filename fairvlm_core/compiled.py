"""Plain loops over NumPy arrays, compiled for the processor at hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba
from numba.core import event

P = ParamSpec("P")
R = TypeVar("R")

KEPT = "Compiling loops for this processor, once on this machine."
NOT_KEPT = "Compiling loops for this processor; only once if NUMBA_CACHE_DIR names a folder that can be written."

_announcements: dict[Any, str] = {}  # compiled function -> what is said when it is compiled


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function with numba at its first call; the result is kept on disk where a folder can be written.

    `NUMBA_CACHE_DIR` names that folder; without it numba takes __pycache__ or the user's own cache. Compiling takes
    seconds, so a process says so on stderr, once; it says nothing where all that it calls comes from the disk.
    """
    try:
        made, announcement = numba.njit(cache=True)(function), KEPT
    except RuntimeError:  # a read-only installation of a user without a home
        made, announcement = numba.njit(function), NOT_KEPT
    _announcements[made] = announcement
    return cast("Callable[P, R]", made)


class _Announcer(event.Listener):
    """Hears of what numba compiles, not of what it finds on disk; other libraries' loops are not ours to announce."""

    silent = False

    def on_start(self, event: event.Event) -> None:
        announcement = _announcements.get(event.data["dispatcher"])
        if announcement is not None and not self.silent:
            self.silent = True
            print(announcement, file=sys.stderr, flush=True)

    def on_end(self, event: event.Event) -> None:
        pass


event.register("numba:compile", _Announcer())
