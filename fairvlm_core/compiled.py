"""Plain loops over NumPy arrays, compiled for the processor at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function with numba at its first call; the result is kept on disk where a folder can be written.

    `NUMBA_CACHE_DIR` names that folder; without it numba takes __pycache__ or the user's own cache.
    """
    try:
        made = numba.njit(cache=True)(function)
    except RuntimeError:  # a read-only installation of a user without a home
        made = numba.njit(function)
    return cast("Callable[P, R]", made)
