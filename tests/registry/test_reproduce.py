"""`fairvlm reproduce`: a version that was registered in a real repository, and one thing at a time that is other."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from dataclasses import asdict
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
import pipeline_outputs
import pyarrow as pa
import pytest
import yaml
from mlflow import MlflowClient
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from fairvlm_core.cli import app
from fairvlm_core.cohort.table import read_cohort, write_cohort
from fairvlm_core.errors import FairVLMError
from fairvlm_core.files import write_json
from fairvlm_core.registry import lineage, record, repeat, reproduce, tracking
from fairvlm_core.registry.reproduce import DIFFERS, SAME, UNKNOWN
from fairvlm_core.steps import compare, execute
from fairvlm_core.steps.register import INPUTS, Config

IMAGE = "registry.example.org/fairvlm@sha256:" + "ab" * 32
SECRET = "s3cret"
PARAMS = {
    **{name: {"epochs": 1, "learning_rate": 0.001} for name in ("stage1", "stage2", "fair_moe")},
    "base_models": {"preset": "published", "vlm": "/home/alice smith/llava-med", "dual": "openai/clip-vit"},
    "champion": {"tracking_uri": f"postgresql://alice:{SECRET}@db.example.org/mlflow?password={SECRET}"},
    "compare": {"gate": {"max_eod": 0.3, "max_dpd": 0.3}},  # what the step wrote is sorted
    "register": {"alias": "challenger"},
}


def git(folder, *arguments):
    name = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *name, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def write_lock(root, **changes):
    """dvc.lock as DVC writes it, of the folders that are there; `changes`: path -> another md5."""

    def item(path):
        return {"path": path, "hash": "md5", "md5": changes.get(path, lineage.dvc_md5(root / path))}

    stages = {
        "ingest": {"cmd": "x", "deps": [item("datasets/release"), item("fairvlm_core")], "outs": []},
        "stratify": {"cmd": "x", "outs": [item("data/balanced")]},
        "stage2": {"cmd": "x", "outs": [item("models/stage2")]},
        "register": {"cmd": "x", "outs": [{"path": "results/registration", "md5": changes.get("register", "1" * 32)}]},
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def alone(patch):
    """Nothing of this machine's settings."""
    for name in ("TRACKING_URI", "REGISTRY_URI", "RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME"):
        patch.delenv(f"MLFLOW_{name}", raising=False)
    for name in ("BASE", "PARAMS", "DATASET_REPO", "DATASET_PATH", "IMAGE", "KFP_RUN_ID", "GIT_COMMIT"):
        patch.delenv(f"FAIRVLM_{name}", raising=False)


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A working directory in a repository, and the database in which its stage 2 is registered."""
    outputs = pipeline_outputs.write_outputs(tmp_path_factory.mktemp("outputs"), "binary")
    place = tmp_path_factory.mktemp("work")
    root, database = place / "repository", place / "mlflow.db"
    logging.getLogger("alembic").setLevel(logging.ERROR)
    MlflowClient(f"sqlite:///{database}").search_experiments()
    names = {"cohort": "data/balanced", "base": "models/base", "comparison": "results/comparison"}
    inputs = {}
    for name in INPUTS:
        inputs[name] = root / names.get(name, f"models/{name}")
        shutil.copytree(outputs[name], inputs[name])
    write_json(inputs["comparison"] / "config.json", asdict(compare.Config(**PARAMS["compare"])))
    (root / "datasets" / "release").mkdir(parents=True)
    (root / "datasets" / "release" / "images.txt").write_text("images")
    (root / "fairvlm_core").mkdir()
    (root / "fairvlm_core" / "code.py").write_text("x = 1\n")
    (root / ".gitignore").write_text("/data\n/models\n/results\n/datasets\nparams.yaml\ndvc.lock\n")
    (root / "params.yaml").write_text(f"# alice's run, {SECRET}\n{yaml.safe_dump(PARAMS)}")
    write_lock(root)
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    with pytest.MonkeyPatch.context() as patch:
        alone(patch)
        patch.setenv("FAIRVLM_IMAGE", IMAGE)
        patch.chdir(root)
        config = Config(model="stage2", tracking_uri=f"sqlite:///{database}")
        execute("register", config, inputs, {"out": root / "results" / "registration"})
    return root, database


@pytest.fixture
def here(registered, tmp_path, monkeypatch):
    """A copy of the working directory to change, and its registry."""
    root, database = registered
    shutil.copytree(root, tmp_path / "copy")
    alone(monkeypatch)
    monkeypatch.setenv("FAIRVLM_IMAGE", IMAGE)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy", f"sqlite:///{database}"


def recorded(uri, folder):
    with tracking.tracking(uri):
        return reproduce.fetched("fairvlm", "1", folder)


def found(here, tmp_path, **options):
    """Every check: what -> its row."""
    return {row.what: row for row in reproduce.checks(recorded(here[1], tmp_path / "fetched"), here[0], **options)}


def differing(rows):
    return {what for what, row in rows.items() if row.verdict == DIFFERS}


def test_where_nothing_has_changed_all_is_the_same(here, tmp_path):
    rows = found(here, tmp_path)
    assert {row.verdict for row in rows.values()} == {SAME}
    assert {
        "the version's files",
        "gate.json of its run",
        "git commit",
        "working tree",
        "fairvlm",
        "container image",
        "environment: python",
        "packages",
        "parameters",
        "balanced cohort, as DVC names it",
        "cohort.parquet",
        "test rows",
        "base model, model.safetensors",
        "dvc.lock",
    } <= set(rows)
    # The release, the cohort and the model; neither the code nor the registration.
    assert rows["dvc.lock"].found == "3 folders"
    done = CliRunner().invoke(app, ["reproduce", "challenger", "--tracking-uri", here[1]])
    assert done.exit_code == 0, done.output
    assert "0 of" in done.output


def commit_again(root):
    git(root, "commit", "--quiet", "--allow-empty", "-m", "second")


def edit_code(root):
    (root / "fairvlm_core" / "code.py").write_text("x = 2\n")


def edit_params(root):
    (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "stage1": {"epochs": 2, "learning_rate": 0.001}}))


def other_release(root):
    write_lock(root, **{"datasets/release": "2" * 32})


def other_outputs(root):
    write_lock(root, **{"models/stage2": "2" * 32, "register": "2" * 32})


def other_row(root, split):
    """Another sex for one row of a split."""
    table = read_cohort(root / "data" / "balanced")
    row = table.column("split").to_pylist().index(split)
    place = table.schema.get_field_index("sex")
    values = table.column("sex").to_pylist()
    values[row] = "male" if values[row] != "male" else "female"
    write_cohort(
        table.set_column(place, table.schema.field("sex"), pa.array(values, pa.string())), root / "data" / "balanced"
    )


def other_base(root):
    path = root / "models" / "base" / "llava" / "model.safetensors"
    tensors = load_file(path)
    first = sorted(tensors)[0]
    save_file({**tensors, first: tensors[first] + 1}, path)


COHORT = {"cohort.parquet", "balanced cohort, as DVC names it"}


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (commit_again, {"git commit"}),
        (edit_code, {"working tree"}),
        (edit_params, {"parameter stage1.epochs"}),
        (other_release, {"dvc.lock: datasets/release"}),
        (other_outputs, {"dvc.lock: models/stage2"}),
        (lambda root: other_row(root, "train"), COHORT),
        (lambda root: other_row(root, "test"), {*COHORT, "test rows"}),
        (other_base, {"base model, model.safetensors"}),
    ],
)
def test_one_thing_that_is_other_is_named_and_no_other(here, tmp_path, change, differs):
    change(here[0])
    rows = found(here, tmp_path)
    assert differing(rows) == differs
    assert all(row.verdict == SAME for what, row in rows.items() if what not in differs)
    for what in differs:
        assert rows[what].recorded != rows[what].found
        assert rows[what].why


def test_what_is_other_in_the_environment_is_named(here, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRVLM_IMAGE", "registry.example.org/fairvlm:latest")
    others = {**record.packages(), "torch": "1.0"}
    monkeypatch.setattr(record, "packages", lambda: others)
    rows = found(here, tmp_path)
    assert differing(rows) == {"container image", "package torch"}
    assert (rows["package torch"].recorded, rows["package torch"].found) == (installed("torch"), "1.0")
    done = CliRunner().invoke(app, ["reproduce", "1", "--tracking-uri", here[1]])
    assert done.exit_code == 1
    assert "2 of" in done.output


@pytest.mark.parametrize(
    ("pattern", "what"),
    [("thresholds.json", "the version's files"), ("report/gate.json", "gate.json of its run")],
)
def test_files_changed_in_the_store_are_noticed(registered, here, tmp_path, pattern, what):
    (path,) = (registered[1].parent / "mlartifacts").rglob(pattern)
    content = path.read_text()
    path.write_text(content.replace("}", " }", 1))
    try:
        assert differing(found(here, tmp_path)) == {what}
    finally:
        path.write_text(content)


def test_what_cannot_be_checked_says_why(here, tmp_path, monkeypatch):
    for name in (".git", "data", "models", "params.yaml", "dvc.lock"):
        path = here[0] / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.delenv("FAIRVLM_IMAGE")
    rows = found(here, tmp_path, base=here[0] / "nowhere")
    unknown = {what: row.why for what, row in rows.items() if row.verdict == UNKNOWN}
    assert not differing(rows)
    assert unknown["git commit"] == unknown["working tree"] == "This is no git repository."
    assert "dvc pull" in unknown["cohort.parquet"]
    assert "params.yaml" in unknown["parameters"]
    assert "dvc.lock" in unknown["dvc.lock"]
    assert "container" in unknown["container image"]
    # The base model is still where it was when the version was registered.
    assert rows["base model, model.safetensors"].verdict == SAME
    done = CliRunner().invoke(app, ["reproduce", "1", "--tracking-uri", here[1]])
    assert done.exit_code == 0


def test_a_commit_that_is_nowhere_here_is_told(here, tmp_path):
    shutil.rmtree(here[0] / ".git")
    git(here[0], "init", "--quiet")
    git(here[0], "add", ".")
    git(here[0], "commit", "--quiet", "-m", "another project")
    assert "git fetch" in found(here, tmp_path)["git commit"].why


def test_unknown_versions_are_refused(here, tmp_path):
    with tracking.tracking(here[1]):
        for version, words in (("champion", "has the alias champion"), ("7", "no version 7")):
            with pytest.raises(FairVLMError, match=words):
                reproduce.fetched("fairvlm", version, tmp_path)


def test_the_lineage_names_no_person_no_machine_and_no_secret(registered, here, tmp_path):
    kept = recorded(here[1], tmp_path / "fetched").lineage
    names = {path.name for path in kept.iterdir()}
    assert names == {"dvc.lock", "params.yaml", "steps.json", "environment.json", "origin.json"}
    whole = "".join(path.read_text() for path in kept.iterdir())
    for word in ("alice", "smith", SECRET, str(registered[0].parent), "/tmp", "/home"):
        assert word not in whole, word
    told = yaml.safe_load((kept / "params.yaml").read_text())
    assert told["base_models"]["vlm"] == f"{record.LEFT_OUT}/llava-med"
    assert told["stage1"] == PARAMS["stage1"]
    steps = json.loads((kept / "steps.json").read_text())
    assert steps["stage2"] == {"epochs": 1, "learning_rate": 0.001}
    assert steps["compare"]["criterion"] == "es_auc"
    assert set(steps["register"]) == set(asdict(Config()))
    packages = json.loads((kept / "environment.json").read_text())["packages"]
    for name in ("torch", "transformers", "mlflow", "numpy", "huggingface-hub"):  # the last is needed by needs alone
        assert packages[name] == installed(name)
    client = MlflowClient(here[1])
    described = client.get_model_version("fairvlm", "1").description
    assert "no medical device" in described
    assert "## Known failures" in described
    run = client.get_model_version("fairvlm", "1").run_id
    assert {item.path for item in client.list_artifacts(run, "card")} == {"card/model_card.md", "card/model_card.html"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/alice/llava med", "(left out)/llava med"),
        ("~/models/x", "(left out)/x"),
        ("C:\\Users\\alice\\x", "(left out)/x"),
        (
            "fairvlm predict --model /srv/alice/m --out results/a",
            "fairvlm predict --model (left out)/m --out results/a",
        ),
        ("s3://key:pass@bucket/x?token=1", "s3://bucket/x"),
        ("file:///home/alice/x", "file://(left out)/x"),
        ("sqlite:////srv/alice/mlflow.db", "sqlite:///(left out)/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("datasets/ham10000", "datasets/ham10000"),
        ("../../fairvlm_core", "../../fairvlm_core"),
        ("Does this show {concept} and/or a fracture?", "Does this show {concept} and/or a fracture?"),
        ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16"),
    ],
)
def test_paths_and_credentials_are_left_out(text, told):
    assert record.stripped({"a": [text]}) == {"a": [told]}


def test_the_same_run_again_is_the_same_bits(here, tmp_path):
    own = recorded(here[1], tmp_path / "fetched")
    rows = repeat.against(own, here[0])
    assert {row.what for row in rows} >= {"comparison.json", "model: model.json"}
    assert sum(row.what.endswith(".safetensors") for row in rows) == 2
    assert {row.verdict for row in rows} == {SAME}
    done = CliRunner().invoke(app, ["reproduce", "1", "--tracking-uri", here[1], "--against", "results/comparison"])
    assert done.exit_code == 0
    assert "git clone" not in done.output


def test_another_run_is_told_with_how_far_apart_they_are(here, tmp_path):
    (path,) = (here[0] / "models" / "stage2" / "adapter-stage2").glob("*.safetensors")
    tensors = load_file(path)
    first = sorted(tensors)[0]
    tensors[first].flat[0] += np.float32(0.25)
    save_file(tensors, path)
    file = here[0] / "results" / "comparison" / "comparison.json"
    comparison = json.loads(file.read_text())
    comparison["models"]["stage2"]["test"]["overall"]["auc"] += 0.125
    file.write_text(json.dumps(comparison))
    rows = {row.what: row for row in repeat.against(recorded(here[1], tmp_path / "fetched"), here[0])}
    assert differing(rows) == {"comparison.json", "numbers of stage2", f"model: adapter-stage2/{path.name}"}
    assert rows["numbers of stage2"].why == "The largest difference is 0.125, of test.overall.auc."
    assert rows[f"model: adapter-stage2/{path.name}"].why == f"The largest difference of a weight is 0.25, in {first}."
    with pytest.raises(FairVLMError, match="no repeated run"):
        repeat.against(recorded(here[1], tmp_path / "again"), here[0] / "data")


def test_another_champion_does_not_make_the_numbers_other(here, tmp_path):
    file = here[0] / "results" / "comparison" / "comparison.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "champion": {"version": "9"}}))
    rows = {row.what: row for row in repeat.against(recorded(here[1], tmp_path / "fetched"), file.parent)}
    assert rows["comparison.json"].verdict == DIFFERS
    assert rows["numbers of stage2"].verdict == SAME


def lines(told):
    return [line for _, commands in told for line in commands]


def test_commands_in_their_order(registered, here, tmp_path):
    commit = git(registered[0], "rev-parse", "HEAD")
    git(here[0], "remote", "add", "origin", f"https://alice:{SECRET}@git.example.org/team/fairvlm.git")
    told = lines(repeat.commands(recorded(here[1], tmp_path / "fetched"), here[0], server="sqlite:///mlflow.db"))
    wanted = [
        "git clone https://git.example.org/team/fairvlm.git fairvlm",
        f"git checkout {commit}",
        IMAGE,
        "mlflow artifacts download --run-id",
        "dvc pull",
        "model.safetensors: sha256",
        "cp lineage/params.yaml .",
        "dvc repro compare",
        "fairvlm reproduce 1 --registered-name fairvlm --against results/comparison",
    ]
    places = [next(k for k, line in enumerate(told) if part in line) for part in wanted]
    assert places == sorted(places)
    assert SECRET not in "".join(told)
    assert any(record.LEFT_OUT in line for line in told)  # a path has to be filled in


def test_commands_of_a_run_on_kubeflow(registered, here, tmp_path, monkeypatch):
    """What the component says in the environment comes back as the command that submits the same run."""
    root, uri = here
    told = {
        "params": json.dumps({"ingest": {"dataset": "ham10000"}, "stage1": {"epochs": 3}}),
        "dataset_repo": f"https://token:{SECRET}@git.example.org/data.git",
        "dataset_path": "datasets/ham10000",
        "dataset_commit": "c0ffee",
        "kfp_run_id": "run-7",
    }
    for name, value in told.items():
        monkeypatch.setenv(f"FAIRVLM_{name.upper()}", value)
    (root / "params.yaml").unlink()
    names = {"cohort": "data/balanced", "base": "models/base", "comparison": "results/comparison"}
    inputs = {name: root / names.get(name, f"models/{name}") for name in INPUTS}
    shutil.copyfile(registered[1], tmp_path / "other.db")
    uri = f"sqlite:///{tmp_path}/other.db"
    execute("register", Config(model="fair_moe", tracking_uri=uri), inputs, {"out": tmp_path / "out"})
    with tracking.tracking(uri):
        own = reproduce.fetched("fairvlm", "challenger", tmp_path / "fetched")
    told = lines(repeat.commands(own, root, server=uri))
    submit = next(line for line in told if line.startswith("fairvlm submit"))
    assert submit == (
        "fairvlm submit --params lineage/params.json --set fetch_dataset_repo=https://git.example.org/data.git "
        "--set fetch_dataset_revision=c0ffee --set fetch_dataset_path=datasets/ham10000"
    )
    assert not any("dvc repro" in line for line in told)
    assert own.json("params.json")["stage1"] == {"epochs": 3}
    assert not list(Path(own.lineage).glob("params.yaml"))
