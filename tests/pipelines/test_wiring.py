"""dvc.yaml, the components and the pipeline are one graph, written down three times."""

from pathlib import Path

import pytest
import yaml
from graphs import dvc_edges, flags, interpolated, pipeline_edges, step_of, tasks_of
from kfp import compiler

import pipelines
from fairvlm_core.steps import STEPS, step_module
from pipelines.compile import compiled
from pipelines.fairvlm import default_params, graph
from pipelines.pools import STEP_POOLS

ROOT = Path(pipelines.__file__).parent.parent
MODELS = ("stage1", "stage2", "fair_moe")
PER_MODEL = ("predict", "tune_thresholds", "evaluate")


@pytest.fixture(scope="module")
def spec():
    return compiled(ROOT / "pipelines" / "fairvlm.yaml")[0]


@pytest.fixture(scope="module")
def dvc():
    return interpolated(yaml.safe_load((ROOT / "dvc.yaml").read_text()), default_params())


def ports():
    return {step: step_module(step).INPUTS for step in STEPS}


def test_dvc_has_the_steps_in_order(dvc):
    assert tuple(dvc["stages"]) == STEPS
    assert {step for step, stage in dvc["stages"].items() if "matrix" in stage} == set(PER_MODEL)
    assert all(set(dvc["stages"][step]["matrix"]["model"]) == set(MODELS) for step in PER_MODEL)


def test_the_pipeline_has_the_steps(spec):
    tasks = sorted(step_of(spec, task) for task in tasks_of(spec).values())
    once = [step for step in STEPS if step not in PER_MODEL]
    outside = ["fetch_dataset", "plan", *("pool" for _ in STEP_POOLS)]
    assert tasks == sorted([*outside, *once, *(step for step in PER_MODEL for _ in MODELS)])


def test_dvc_and_the_pipeline_are_wired_alike(dvc, spec):
    assert dvc_edges(dvc, ports()) == pipeline_edges(spec)


def test_fair_moe_can_start_from_stage_2_in_both(dvc, spec, tmp_path):
    """One parameter moves one wire, and nothing else."""
    params = default_params()
    params["fair_moe"] = {**params["fair_moe"], "init_from": "stage2"}
    compiler.Compiler().compile(graph(params), str(tmp_path / "pipeline.yaml"))
    edges = pipeline_edges(compiled(tmp_path / "pipeline.yaml")[0])
    assert edges == dvc_edges(interpolated(yaml.safe_load((ROOT / "dvc.yaml").read_text()), params), ports())
    moved = edges ^ pipeline_edges(spec)
    assert moved == {(("fair_moe", None), "start", (origin, None)) for origin in ("base_models", "stage2")}


def test_every_input_of_every_step_is_wired(spec):
    wired = {}
    for (step, model), port, _ in pipeline_edges(spec):
        wired.setdefault((step, model), set()).add(port)
    expected = {
        (step, model): set(ports()[step]) for step in STEPS for model in (MODELS if step in PER_MODEL else (None,))
    }
    assert wired == expected


def test_a_wire_that_is_moved_is_seen(dvc, spec):
    """The comparison can fail: Stage 2 fed with the unbalanced cohort is another graph."""
    moved = yaml.safe_load(yaml.safe_dump(dvc))
    stage = moved["stages"]["stage2"]
    given = flags(stage["cmd"], "stage2")
    stage["cmd"] = stage["cmd"].replace(f"--cohort {given['cohort']}", f"--cohort {given['images']}")
    assert dvc_edges(moved, ports()) != pipeline_edges(spec)


def test_dvc_depends_on_what_its_commands_read(dvc):
    """A path that a command reads and that is no dependency would leave a stage standing after its input changed."""
    for step, stage in dvc["stages"].items():
        given = flags(stage["cmd"], step)
        read = {given[port] for port in ports()[step] if port in given}
        assert read <= {dep for dep in stage["deps"] if isinstance(dep, str)}, step
        outs = {next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]}
        assert given["out"] in outs, step


@pytest.mark.parametrize("profile", sorted(path.parent.name for path in ROOT.glob("profiles/*/params.yaml")))
def test_a_profile_runs_the_same_stages(profile):
    """A copy, byte by byte: DVC cannot read a Git revision in which dvc.yaml is a symbolic link."""
    copy = ROOT / "profiles" / profile / "dvc.yaml"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (ROOT / "dvc.yaml").read_bytes()
