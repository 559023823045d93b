"""`make run` with a profile: what is missing is said in one message, what is at hand is linked in."""

import shutil
import subprocess
from pathlib import Path

import pytest

import fairvlm_core

ROOT = Path(fairvlm_core.__file__).parent.parent


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "checkout"
    (root / "profiles" / "derma").mkdir(parents=True)
    (root / "datasets").mkdir()
    shutil.copy(ROOT / "Makefile", root)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "profiles" / "derma" / "params.yaml").write_text("ingest: {}\n")
    for folder in ("data/derma", "models/tower"):
        (tmp_path / "elsewhere" / folder).mkdir(parents=True)
    return root


def make(checkout, *arguments):
    return subprocess.run(["make", "profile", *arguments], cwd=checkout, capture_output=True, text=True)


def test_an_unknown_profile_is_named_with_the_ones_there_are(checkout):
    result = make(checkout, "PROFILE=dermo")
    assert result.returncode == 2
    assert 'no profile "dermo"' in result.stderr
    assert "derma" in result.stderr


def test_a_missing_release_is_said_once(checkout):
    result = make(checkout, "PROFILE=derma", "DATA=nowhere", "MODELS=../elsewhere/models")
    assert result.returncode == 2
    assert "datasets/derma is missing" in result.stderr
    assert "DATA=FOLDER" in result.stderr
    assert not (checkout / "pretrained").exists()


def test_missing_weights_are_said(checkout):
    result = make(checkout, "PROFILE=derma", "DATA=../elsewhere/data", "MODELS=nowhere")
    assert result.returncode == 2
    assert "pretrained is missing" in result.stderr


def test_release_and_weights_are_linked_and_the_stages_copied(checkout):
    for _ in range(2):  # the second time, everything is there
        result = make(checkout, "PROFILE=derma", "DATA=../elsewhere/data", "MODELS=../elsewhere/models")
        assert result.returncode == 0, result.stderr
    assert (checkout / "datasets" / "derma").resolve() == checkout.parent / "elsewhere" / "data" / "derma"
    assert (checkout / "pretrained" / "tower").is_dir()
    assert (checkout / "profiles" / "derma" / "dvc.yaml").read_text() == "stages: {}\n"


def test_a_release_in_the_repository_is_left_as_it_is(checkout):
    (checkout / "datasets" / "derma").mkdir()
    (checkout / "pretrained").mkdir()
    assert make(checkout, "PROFILE=derma", "DATA=../elsewhere/data").returncode == 0
    assert not (checkout / "datasets" / "derma").is_symlink()
    assert not (checkout / "pretrained").is_symlink()
