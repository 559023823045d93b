"""The command line: it starts light, knows every step, and answers a mistake with what, where and mend."""

import dataclasses
import shutil
import subprocess
import sys

import pytest

from fairvlm_core.config import build
from fairvlm_core.steps import STEPS, execute, step_module

HEAVY = ("torch", "transformers", "numpy", "pandas", "pyarrow", "mlflow", "great_expectations", "sklearn", "kfp", "PIL")


def fresh(*arguments):
    """Run the command in a new interpreter, and list the modules it imported."""
    script = f"""
import sys
from fairvlm_core.cli import main
sys.argv = {["fairvlm", *arguments]!r}
try:
    main()
finally:
    print("imported", *sorted({{name.split(".")[0] for name in sys.modules}}))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return run.returncode, set(run.stdout.splitlines()[-1].split()), run.stdout + run.stderr


@pytest.fixture
def fairvlm(monkeypatch, capsys):
    """Run the command in this interpreter: exit status, standard output, standard error."""

    def run(*arguments):
        from fairvlm_core.cli import main

        monkeypatch.setattr(sys, "argv", ["fairvlm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capsys.readouterr()
        return exited.value.code, captured.out, captured.err

    return run


@pytest.mark.parametrize("arguments", [["--help"], ["stratify", "--help"]], ids=["all", "step"])
def test_help_imports_nothing_heavy(arguments):
    status, imported, shown = fresh(*arguments)
    assert status == 0, shown
    assert not imported & set(HEAVY)
    assert "fairvlm_core" in imported


def test_help_names_every_command(fairvlm):
    status, shown, _ = fairvlm("--help")
    assert status == 0
    for name in (*STEPS, "report", "summary", "experiment"):
        assert f" {name} " in shown


@pytest.mark.parametrize("step", STEPS)
def test_each_step_explains_its_inputs_outputs_and_parameters(step, fairvlm, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, shown, _ = fairvlm(step, "--help")
    assert status == 0
    module = step_module(step)
    fields = [field.name for field in dataclasses.fields(module.Config)]
    for name in (*module.INPUTS, *module.OUTPUTS, *fields, "params"):
        assert f"--{name.replace('_', '-')} " in shown
    assert module.__doc__.split(".")[0].split()[0] in shown
    assert set(module.OUTPUTS) == {"out"}
    assert build(module.Config, {}, where="") == module.Config()
    taken = {"params", *module.INPUTS, *module.OUTPUTS}
    assert not taken & set(fields)  # one flag cannot be both


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ingested") / "cohort"
    execute("ingest", step_module("ingest").Config(image_size=16, options={"patients": 120}), {}, {"out": folder})
    return folder


@pytest.fixture
def cohort(tmp_path, ingested):
    """A folder that holds a small generated cohort, to work in."""
    shutil.copytree(ingested, tmp_path / "cohort")
    return tmp_path


def refused(result, *words):
    """Exit status 2, the words on standard error, and no traceback."""
    status, _, shown = result
    assert status == 2
    assert "Traceback" not in shown
    for word in words:
        assert word in shown


def test_a_misspelt_parameter_stops_before_anything_is_written(cohort, fairvlm):
    params = cohort / "params.yaml"
    params.write_text("stratify:\n  oversample_cup: 1.2\n")
    result = fairvlm("stratify", "--cohort", cohort / "cohort", "--out", cohort / "out", "--params", params)
    refused(
        result, "oversample_cup", f"{params}, section stratify, key oversample_cup", 'Did you mean "oversample_cap"?'
    )
    assert sorted(path.name for path in cohort.iterdir()) == ["cohort", "params.yaml"]


def test_a_misspelt_section_stops_every_step(cohort, fairvlm):
    params = cohort / "params.yaml"
    params.write_text("stratefy:\n  seed: 1\n")
    result = fairvlm("validate", "--cohort", cohort / "cohort", "--out", cohort / "out", "--params", params)
    refused(result, 'There is no section "stratefy".', 'Did you mean "stratify"?')
    assert not (cohort / "out").exists()


def test_a_mistake_has_no_traceback_in_a_process_of_its_own(tmp_path):
    status, _, shown = fresh("stratify", "--cohort", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"))
    assert status == 2
    assert "Traceback" not in shown
    lines = [line for line in shown.splitlines() if not line.startswith("imported")]
    assert lines == [
        "The input cohort of stratify does not exist.",
        f"Where: {tmp_path / 'nowhere'}",
        "Mend:  It should be: Folder that ingest wrote.",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--seed", "-1", ["stratify.seed cannot be -1", "at least 0"]),
        ("--seed", "x", ["--seed"]),
        ("--majority-cap", "x", ["--majority-cap cannot be 'x'", "number or nothing"]),
        ("--attributes", "sex,age_grop", ['no groups for the attribute "age_grop"', 'Did you mean "age_group"?']),
        ("--oversample-cup", "1", ["--oversample-cup"]),
    ],
)
def test_a_flag_that_cannot_be(cohort, fairvlm, flag, value, words):
    result = fairvlm("stratify", "--cohort", cohort / "cohort", "--out", cohort / "out", flag, value)
    refused(result, *words)
    assert sorted(path.name for path in cohort.iterdir()) == ["cohort"]


@pytest.mark.parametrize("value", ["[1, 2]", "{a: ", "patients"])
def test_a_mapping_that_is_none(tmp_path, fairvlm, value):
    refused(fairvlm("ingest", "--out", tmp_path / "out", "--options", value), "--options is not a mapping")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"seed": 7, "oversample_cap": 1.2}),  # from the file
        (["--seed", "8"], {"seed": 8, "oversample_cap": 1.2}),  # a flag wins
        (["--attributes", "sex, race"], {"attributes": ("sex", "race")}),
        (["--attributes", "none"], {"attributes": ()}),
        (["--majority-cap", "none"], {"majority_cap": None}),
        (["--majority-cap", "2"], {"majority_cap": 2.0}),
        (["--allow-empty-cells"], {"allow_empty_cells": True}),
        (["--no-allow-empty-cells"], {"allow_empty_cells": False}),
    ],
)
def test_flags_and_the_params_file_make_the_config(tmp_path, fairvlm, monkeypatch, arguments, expected):
    given = []
    monkeypatch.setattr("fairvlm_core.cli.execute", lambda name, config, inputs, outputs: given.append((name, config)))
    params = tmp_path / "params.yaml"
    params.write_text("stratify: {seed: 7, oversample_cap: 1.2}\nvalidate: {min_group: 3}\n")
    base = ("stratify", "--cohort", tmp_path, "--out", tmp_path / "out", "--params", params)
    assert fairvlm(*base, *arguments)[0] == 0
    ((name, config),) = given
    assert name == "stratify"
    assert {key: getattr(config, key) for key in expected} == expected


def test_a_required_input_is_named(tmp_path, fairvlm):
    refused(fairvlm("stratify", "--out", tmp_path / "out"), "--cohort")


def test_the_output_never_replaces_an_input(cohort, fairvlm):
    before = sorted(path.relative_to(cohort) for path in cohort.rglob("*"))
    for out in (cohort / "cohort", cohort):
        refused(fairvlm("stratify", "--cohort", cohort / "cohort", "--out", out), "would replace the input cohort")
    assert sorted(path.relative_to(cohort) for path in cohort.rglob("*")) == before


def test_the_output_never_replaces_what_no_step_wrote(cohort, fairvlm):
    (cohort / "thesis").mkdir()
    (cohort / "thesis" / "chapter.txt").write_text("years of work")
    (cohort / "file").write_text("more work")
    for name in ("thesis", "file"):
        refused(fairvlm("stratify", "--cohort", cohort / "cohort", "--out", cohort / name), "not written by a step")
    assert (cohort / "thesis" / "chapter.txt").read_text() == "years of work"
    assert (cohort / "file").read_text() == "more work"


def test_mistakes_about_an_experiment_stop_before_anything_is_written(tmp_path, fairvlm):
    out = tmp_path / "out"
    refused(fairvlm("experiment", "fairmed_tabel4", "--out", out), 'Did you mean "fairmed_table4"?')
    params = tmp_path / "params.yaml"
    params.write_text("stage2: {lamda: 1}\n")
    refused(
        fairvlm("experiment", "fairmed_table4", "--out", out, "--params", params),
        'There is no parameter "lamda".',
        "fairmed_table4, stage2, key lamda",
    )
    refused(fairvlm("experiment", "fairmed_table4", "--out", out, "--seeds", "0"), "--seeds")
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_ingest_validate_stratify_from_the_command_line(cohort, fairvlm):
    status, _, shown = fairvlm("validate", "--cohort", cohort / "cohort", "--out", cohort / "validation")
    assert status == 0, shown
    arguments = ("--cohort", cohort / "cohort", "--validation", cohort / "validation", "--out", cohort / "balanced")
    for _ in range(2):  # a step may replace what it wrote before
        status, shown, _ = fairvlm("stratify", *arguments, "--allow-empty-cells")
        assert status == 0
    assert "Images per cell" in shown
    assert sorted(path.name for path in (cohort / "balanced").iterdir()) == [
        "cohort.parquet",
        "config.json",
        "metrics.json",
        "strata.json",
        "strata.png",
    ]
