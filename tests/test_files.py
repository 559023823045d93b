"""Files and folders are whole or absent, also when the process is killed; fingerprints notice what changed."""

import hashlib
import math
import signal
import subprocess
import sys

import pytest

from fairvlm_core import files
from fairvlm_core.errors import FairVLMError
from fairvlm_core.files import (
    checkpoint_folder,
    fingerprint,
    folder_written,
    read_json,
    sha256,
    write_json,
    written,
)


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "new" / "file.txt"
    with written(target) as partial:
        partial.write_text("whole")
        assert partial.parent == target.parent  # a rename within a folder is atomic, across disks it is a copy
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names(target.parent) == ["file.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), written(target) as partial:  # noqa: PT012 - the write comes before the failure
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_failed_step_leaves_the_old_folder(tmp_path):
    out = tmp_path / "out"
    with folder_written(out) as partial:
        (partial / "a").write_text("old")
    with pytest.raises(RuntimeError), folder_written(out) as partial:  # noqa: PT012
        (partial / "b").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["a", "out"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    out = tmp_path / "out"
    for name in ("a", "b"):
        with folder_written(out) as partial:
            (partial / name).write_text(name)
    assert names(out) == ["b"]


@pytest.mark.parametrize("kind", ["written", "folder_written"])
def test_a_kill_leaves_the_old_output_and_the_next_run_completes(tmp_path, kind):
    """SIGKILL cannot be caught: what stands under the final name is still the old output, whole."""
    out = tmp_path / "out"
    script = f"""
import sys, pathlib, signal, os
from fairvlm_core.files import {kind}
with {kind}(pathlib.Path(sys.argv[1])) as partial:
    target = partial / "data" if partial.is_dir() else partial
    target.write_text(sys.argv[2])
    if sys.argv[2] == "half":
        os.kill(os.getpid(), signal.SIGKILL)
"""

    def run(word):
        return subprocess.run([sys.executable, "-c", script, str(out), word], check=False).returncode

    def content():
        return (out / "data" if out.is_dir() else out).read_text()

    assert run("old") == 0
    assert run("half") == -signal.SIGKILL
    assert content() == "old"
    assert run("new") == 0
    assert content() == "new"
    if kind == "folder_written":
        assert names(tmp_path) == ["data", "out"]


def test_json_is_readable_by_any_reader(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": None})
    assert read_json(tmp_path / "a.json", made_by="evaluate") == {"a": None, "b": [1, 2.5]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "b.json", {"auc": math.nan})
    assert names(tmp_path) == ["a.json"]


def test_json_that_cannot_be_read_says_which_step_writes_it(tmp_path):
    with pytest.raises(FairVLMError) as caught:
        read_json(tmp_path / "a.json", made_by="evaluate")
    assert "fairvlm evaluate" in caught.value.mend
    (tmp_path / "a.json").write_text('{"a": 1,\n"b": }')
    with pytest.raises(FairVLMError) as caught:
        read_json(tmp_path / "a.json", made_by="evaluate")
    assert caught.value.where == f"{tmp_path / 'a.json'}, line 2"


def test_checkpoints_stand_beside_the_output(tmp_path):
    assert checkpoint_folder(tmp_path / "stage1.partial") == tmp_path / "stage1.checkpoint"
    assert checkpoint_folder(tmp_path / "stage1") == tmp_path / "stage1.checkpoint"


def test_checkpoints_stand_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRVLM_CHECKPOINTS", str(tmp_path / "workspace"))
    for name in ("stage1", "stage1.partial", "stage1.rank1.partial"):
        assert checkpoint_folder(tmp_path / name) == tmp_path / "workspace" / "stage1.checkpoint"


def test_the_hash_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_fingerprint_notices_parameters_contents_names_and_inputs(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FINGERPRINT_BYTES", 10)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "small").write_text("12345")
    (folder / "large").write_text("1" * 20)

    def now(config=None, key="cohort"):
        return fingerprint(config or {"seed": 1}, {key: folder})

    first = now()
    assert now() == first
    assert now({"seed": 2}) != first
    assert now(key="base") != first
    (folder / "small").write_text("54321")
    assert now() != first
    (folder / "small").write_text("12345")
    assert now() == first
    (folder / "large").write_text("2" * 20)
    assert now() == first  # a large file counts by its size
    (folder / "large").write_text("2" * 21)
    assert now() != first
    (folder / "large").write_text("1" * 20)
    (folder / "small").rename(folder / "tiny")
    assert now() != first
