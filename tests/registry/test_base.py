"""References to base models: found where they were, where FAIRVLM_BASE says, or in the hub's cache."""

from __future__ import annotations

import hashlib
import shutil

import huggingface_hub.constants
import numpy as np
import pytest
from safetensors.numpy import save_file

from fairvlm_core.errors import CheckpointError
from fairvlm_core.files import write_json
from fairvlm_core.registry.base import base_reference, find_base, require_there


def write_base(folder, value=0.0, name="llava"):
    (folder / name).mkdir(parents=True)
    for part in (1, 2):
        save_file({"w": np.full(3, value + part)}, folder / name / f"model-0000{part}-of-00002.safetensors")
    write_json(folder / "bases.json", {"vlm": name})
    return folder


def test_local_base_is_found_where_it_was(tmp_path, monkeypatch):
    monkeypatch.delenv("FAIRVLM_BASE", raising=False)
    base = write_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    reference = base_reference(base.relative_to(tmp_path), "vlm")
    files = sorted((base / "llava").iterdir())
    assert reference == {
        "family": "vlm",
        "checkpoint": str(base / "llava"),
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        "size": {file.name: len(file.read_bytes()) for file in files},
    }
    monkeypatch.chdir("/")
    assert find_base(reference) == str(base / "llava")


def test_moved_base_is_found_through_the_environment(tmp_path, monkeypatch):
    reference = base_reference(write_base(tmp_path / "base"), "vlm")
    shutil.move(tmp_path / "base", tmp_path / "moved")
    monkeypatch.delenv("FAIRVLM_BASE", raising=False)
    with pytest.raises(CheckpointError, match="FAIRVLM_BASE"):
        find_base(reference)
    monkeypatch.setenv("FAIRVLM_BASE", str(tmp_path / "moved"))
    assert find_base(reference) == str(tmp_path / "moved" / "llava")


def test_another_base_is_refused(tmp_path, monkeypatch):
    reference = base_reference(write_base(tmp_path / "base"), "vlm")
    monkeypatch.setenv("FAIRVLM_BASE", str(write_base(tmp_path / "other", value=1.0)))
    with pytest.raises(CheckpointError, match="not the one") as error:
        find_base(reference)
    assert "model-00001-of-00002.safetensors: other weights" in str(error.value)
    monkeypatch.delenv("FAIRVLM_BASE")
    (tmp_path / "base" / "llava" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: missing"):
        find_base(reference)


def test_a_given_base_comes_first_where_its_weights_are_the_same(tmp_path, monkeypatch):
    reference = base_reference(write_base(tmp_path / "base"), "vlm")
    same, other = write_base(tmp_path / "same"), write_base(tmp_path / "other", value=1.0)
    monkeypatch.delenv("FAIRVLM_BASE", raising=False)
    assert find_base(reference, same) == str(same / "llava")
    assert find_base(reference, other) == str(tmp_path / "base" / "llava")
    assert find_base({**reference, "family": "dual"}, same) == str(tmp_path / "base" / "llava")
    shutil.rmtree(tmp_path / "base")
    assert find_base(reference, same) == str(same / "llava")
    with pytest.raises(CheckpointError, match="FAIRVLM_BASE"):
        find_base(reference, other)


def test_recorded_hashes_are_taken_where_files_of_that_size_are_there(tmp_path):
    base = write_base(tmp_path / "base")
    hashed = base_reference(base, "vlm")
    names = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    recorded = {name: {"sha256": str(i) * 64, "size": hashed["size"][name]} for i, name in enumerate(names)}
    write_json(base / "weights.json", {"vlm": recorded})
    told = base_reference(base, "vlm")
    assert told == {**hashed, "sha256": {name: recorded[name]["sha256"] for name in names}}
    with pytest.raises(CheckpointError, match="not the one"):  # loading a model never takes them at their word
        find_base(told)
    for changed in (
        {**recorded, names[0]: {**recorded[names[0]], "size": 1}},
        {names[0]: recorded[names[0]]},
        {},
    ):
        write_json(base / "weights.json", {"vlm": changed})
        assert base_reference(base, "vlm") == hashed


def test_the_quick_check_looks_at_names_and_sizes_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("FAIRVLM_BASE", raising=False)
    base = write_base(tmp_path / "base")
    reference = base_reference(base, "vlm")
    other = write_base(tmp_path / "other", value=1.0)  # as large
    assert require_there(reference) == str(base / "llava")
    monkeypatch.setenv("FAIRVLM_BASE", str(other))
    assert require_there(reference) == str(other / "llava")
    shard = other / "llava" / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match=r"00002\.safetensors: other weights"):
        require_there(reference)
    require_there({key: reference[key] for key in ("family", "checkpoint", "sha256")})  # of an earlier release
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"00002\.safetensors: missing"):
        require_there(reference)
    monkeypatch.delenv("FAIRVLM_BASE")
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match="is missing"):
        require_there(reference)


def test_base_without_safetensors_is_refused(tmp_path):
    base = write_base(tmp_path / "base")
    for file in (base / "llava").iterdir():
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="no safetensors"):
        base_reference(base, "vlm")


@pytest.mark.parametrize("sharded", [False, True])
def test_hub_name_is_kept_and_its_cached_weights_are_hashed(tmp_path, monkeypatch, sharded):
    repository = tmp_path / "hub" / "models--team--llava"
    snapshot = repository / "snapshots" / ("0" * 40)
    write_base(snapshot.parent, name=snapshot.name)
    (snapshot.parent / "bases.json").unlink()
    if sharded:
        shards = {f"w{part}": f"model-0000{part}-of-00002.safetensors" for part in (1, 2)}
        write_json(snapshot / "model.safetensors.index.json", {"weight_map": shards})
    else:
        next(snapshot.glob("*1-of*")).rename(snapshot / "model.safetensors")
        next(snapshot.glob("*2-of*")).unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("FAIRVLM_BASE", raising=False)
    (tmp_path / "base").mkdir()
    write_json(tmp_path / "base" / "bases.json", {"vlm": "team/llava"})
    reference = base_reference(tmp_path / "base", "vlm")
    assert reference["checkpoint"] == "team/llava"
    assert reference["sha256"] == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(snapshot.glob("*.safetensors"))
    }
    assert find_base(reference) == "team/llava"
    assert require_there(reference) == "team/llava"
    shutil.rmtree(repository)
    with pytest.raises(CheckpointError, match="missing"):
        require_there(reference)
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        find_base(reference)
