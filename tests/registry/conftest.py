"""What the tests of the registry's commands share."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def fairvlm(monkeypatch, capsys):
    """Run the command: exit status, standard output, standard error."""

    def run(*arguments):
        from fairvlm_core.cli import main

        monkeypatch.setattr(sys, "argv", ["fairvlm", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "300")
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        return exited.value.code, *capsys.readouterr()

    return run
