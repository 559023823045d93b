"""Compiled loops: said once when they are compiled, silent when they come from the disk."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fairvlm_core.compiled import KEPT, NOT_KEPT

LOOPS = """
import numpy as np
from fairvlm_core.compiled import compiled

@compiled
def inner(x):
    return x + 1

@compiled
def total(values):
    found = 0.0
    for value in values:
        found += inner(value)
    return found

if __name__ == "__main__":
    print(total(np.ones(3)), total(np.ones(3, dtype=np.float32)))
"""


@pytest.fixture
def call(tmp_path):
    script = tmp_path / "loops.py"
    script.write_text(LOOPS)

    def run(**environment):
        done = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, check=True, env={**os.environ, **environment}
        )
        assert done.stdout.split() == ["6.0", "6.0"]
        return done.stderr

    return run


def test_compiling_is_announced_once_and_what_is_kept_is_silent(call, tmp_path):
    folder = str(tmp_path / "kept")
    assert call(NUMBA_CACHE_DIR=folder) == KEPT + "\n"
    assert call(NUMBA_CACHE_DIR=folder) == ""


def test_without_a_folder_the_announcement_says_how_to_have_one(call):
    # The only place numba may keep a loop in is that of a module in a ZIP file, which this one is not.
    nowhere = {"NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}
    assert call(**nowhere) == NOT_KEPT + "\n"
    assert call(**nowhere) == NOT_KEPT + "\n"
