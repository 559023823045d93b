"""Work done in several processes is the work done in one; what cannot be done is told, and what is done stays done."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits

from fairvlm_core.errors import CohortError, FairVLMError
from fairvlm_core.experiments import load_experiment, schedule
from fairvlm_core.experiments.baselines import with_baselines
from fairvlm_core.experiments.chain import Run, Work, plan, work_of
from fairvlm_core.experiments.grid import Recipe, changed
from fairvlm_core.experiments.provenance import provenance, told
from fairvlm_core.experiments.runner import run_experiment
from fairvlm_core.experiments.schedule import Clock, carry_out, place

TABLE = load_experiment("fairmed_table4")
# No training: the yardsticks alone, one of them in the part of the method that others are tested against.
YARDSTICKS = dataclasses.replace(
    TABLE, name="yardsticks", recipes=tuple(with_baselines(TABLE, {}).recipes[5:]), reference="linear_probe"
)
SMALL = {
    "ingest.options": {"patients": 240, "pixels": 32},
    "base_models.clip_steps": 1,
    "base_models.llava_steps": 1,
}
PARAMS = changed(changed({}, TABLE.toy, where=""), SMALL, where="")
# What differs from run to run: when, how fast, and how it was drawn.
TIMES = {"work.json", "metrics.json"}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same experiment in one process and in two, each with one thread: the last digits depend on how many."""
    folder, threads = tmp_path_factory.mktemp("jobs"), torch.get_num_threads()
    found = {}
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for jobs in (1, 2):
            out = folder / str(jobs)
            made = run_experiment(YARDSTICKS, PARAMS, out, seeds=1, jobs=jobs, command="fairvlm experiment")
            found[jobs] = (out, made)
    torch.set_num_threads(threads)
    return found


def files(out):
    return {
        # A base model notes where its tower was made.
        path.relative_to(out).as_posix(): path.read_bytes().replace(str(out).encode(), b"out")
        for path in out.rglob("*")
        if path.is_file() and path.name not in TIMES and path.parts[len(out.parts)] == schedule.STEPS_FOLDER
    }


def test_two_processes_write_the_same_bytes_as_one(both):
    one, two = (files(both[jobs][0]) for jobs in (1, 2))
    assert one.keys() == two.keys()
    assert len([name for name in one if name.endswith("predictions.parquet")]) == 2 * 5
    assert any(name.endswith(".safetensors") for name in one)  # the base models were trained
    assert [name for name in one if one[name] != two[name]] == []
    tables = [{k: v for k, v in both[jobs][1].items() if k != "provenance"} for jobs in (1, 2)]
    assert tables[0] == tables[1]


def test_what_a_process_prints_is_kept(both):
    out, _ = both[2]
    logs = {path.stem for path in (out / schedule.LOGS_FOLDER).iterdir()}
    assert logs == {path.name for path in (out / schedule.STEPS_FOLDER).iterdir() if path.is_dir()}
    assert not (both[1][0] / schedule.LOGS_FOLDER).exists()


def test_each_piece_says_what_it_took_and_the_table_adds_it_up(both):
    out, summary = both[2]
    noted = [json.loads(path.read_text()) for path in out.glob("steps/*/work.json")]
    found = summary["provenance"]
    assert found["pieces"] == len(noted) == len(list(out.glob("steps/*/metrics.json")))
    assert found["hours"] == pytest.approx(sum(one["seconds"] for one in noted) / 3600, abs=0.01)
    assert found["untimed"] == 0
    assert sum(found["work_commits"].values()) == len(noted)
    assert found["seeds"] == []  # a yardstick has none
    assert found["machine"]["cores"] >= 1
    assert {"python", "torch", "scikit-learn"} <= set(found["versions"])
    page = (out / "yardsticks.md").read_text()
    assert "## Where this comes from" in page
    assert found["machine"]["cpu"] in page
    assert found["command"] in page


def test_a_piece_that_is_deleted_is_made_again_and_the_rest_is_not(both, monkeypatch):
    out, _ = both[2]
    runs = plan(YARDSTICKS, PARAMS, seeds=1)
    lost = place(runs[0].work["evaluate"], out)
    for path in lost.iterdir():
        path.unlink()
    lost.rmdir()
    done, whole = [], schedule.do
    monkeypatch.setattr(schedule, "do", lambda piece: done.append(piece.folder.name) or whole(piece))
    assert carry_out(runs, out) == {}
    assert done == [lost.name]


def test_without_the_notes_of_a_piece_the_table_says_so(both):
    out, _ = both[1]
    runs = plan(YARDSTICKS, PARAMS, seeds=1)
    (place(runs[0].work["ingest"], out) / "work.json").unlink()
    found = provenance(runs, out, command="c")
    assert found["untimed"] == 1
    assert "1 of them not timed" in told(found)


def wrong(tmp_path, *names):
    """Runs of a piece that cannot be done, for want of its cohort, and one behind it."""
    runs = []
    for name in names:
        first = Work("majority", {"splits": ["test"]}, {"cohort": tmp_path / name}, f"{name:<12}first")
        then = Work("postprocess", {}, {"predictions": first}, f"{name:<12}then")
        runs.append(Run(Recipe(name, name.capitalize()), 0, None, {"predict": first, "postprocess": then}))
    return runs


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_cannot_be_done_stops_the_rest_or_is_left_out(jobs, tmp_path):
    runs = wrong(tmp_path, "here", "there")
    with pytest.raises(CohortError) as caught:
        carry_out(runs, tmp_path / "out", jobs=jobs)
    assert str(tmp_path) in caught.value.where  # the whole message comes back from the other process
    failed = carry_out(runs, tmp_path / "out", jobs=jobs, tolerant=True)
    assert set(failed) == {work.key for work, _ in work_of(runs)}
    assert not [path for path in (tmp_path / "out" / "steps").glob("*") if path.is_dir()]


def test_a_process_that_dies_is_told(tmp_path, monkeypatch):
    runs = wrong(tmp_path, "here")
    monkeypatch.setattr(schedule, "do_quietly", die)
    with pytest.raises(FairVLMError, match=r"ended from outside(.|\n)*stays done"):
        carry_out(runs, tmp_path / "out", jobs=2, tolerant=True)


def die(piece, log):
    os._exit(1)


SLEEPER = """
import sys, time
from pathlib import Path
from fairvlm_core.experiments import schedule
from fairvlm_core.experiments.schedule import Piece, _workers

if __name__ == "__main__":
    with _workers(2, Path(sys.argv[1])) as start:
        start(Piece("ingest", None, {}, Path(sys.argv[1]), {}))  # fails, and leaves the process waiting for more
        time.sleep(3)
        print(*[process.pid for process in __import__("multiprocessing").active_children()], flush=True)
        time.sleep(600)
"""


def test_workers_end_with_whoever_is_killed(tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    parent = subprocess.Popen([sys.executable, script, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert workers
    parent.kill()
    parent.wait()
    for _ in range(120):
        if not any(running(pid) for pid in workers):
            break
        time.sleep(0.5)
    assert not any(running(pid) for pid in workers)


def running(pid):
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_the_clock_says_nothing_before_it_knows():
    from collections import Counter

    clock = Clock(Counter({"stage2": 4, "predict": 2}), jobs=2)
    assert clock.left("stage2", 600.0) == ""
    assert clock.left("predict", 60.0) == " About 16 min left."  # (3 x 600 + 1 x 60) / 2
    assert Clock(Counter({"stage2": 1}), 1).left("stage2", 5.0) == ""
