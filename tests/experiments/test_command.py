"""`fairvlm experiment`: it says which tables there are, and hands over what was asked for."""

from __future__ import annotations

import sys

import pytest

from fairvlm_core.cli import main
from fairvlm_core.errors import FairVLMError
from fairvlm_core.experiments import EXPERIMENTS, load_experiment, runner


@pytest.fixture
def fairvlm(monkeypatch, capsys):
    """Run the command in this interpreter: exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fairvlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
        return exited.value.code, *capsys.readouterr()

    return run


def test_without_a_name_it_lists_them_all(fairvlm, tmp_path):
    for arguments in ((), ("--out", tmp_path / "out")):
        status, shown, _ = fairvlm("experiment", *arguments)
        assert status == 2
        for name in EXPERIMENTS:
            assert any(line.split(None, 1) == [name, load_experiment(name).title] for line in shown.splitlines())
    assert not list(tmp_path.iterdir())


def test_help_names_them_all(fairvlm, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    status, shown, _ = fairvlm("experiment", "--help")
    assert status == 0
    assert all(name in shown for name in EXPERIMENTS)


def test_an_unknown_name_points_to_the_nearest_and_to_the_list(fairvlm, tmp_path):
    status, _, told = fairvlm("experiment", "fairmoe_tabel3", "--out", tmp_path / "out")
    assert status == 2
    assert 'Did you mean "fairmoe_table3"?' in told
    assert "`fairvlm experiment` says" in told


@pytest.mark.parametrize(("flags", "apart"), [((), True), (("--together",), False)])
def test_one_flag_asks_for_one_model_for_all_attributes(flags, apart, fairvlm, tmp_path, monkeypatch):
    asked = []

    def stop(grid, params, out, *, seeds, root, **_):
        asked.append((grid.name, grid.apart, params["fair_moe"]["attributes"], seeds))
        raise FairVLMError("Stopped.")

    monkeypatch.setattr(runner, "run_experiment", stop)
    status, _, told = fairvlm("experiment", "fairmoe_table1", "--out", tmp_path / "out", "--seeds", 3, "--toy", *flags)
    assert (status, told.strip()) == (2, "Stopped.")
    assert asked == [("fairmoe_table1", apart, ("race", "sex", "ethnicity", "language"), 3)]
