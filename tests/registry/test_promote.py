"""promote and rollback: what is refused and why, and what a promotion leaves behind, here and on another server."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import bases
import mlflow
import pipeline_outputs
import pytest
import registry_places
import small_versions
from mlflow import MlflowClient

from fairvlm_core.errors import ConfigError, FairVLMError
from fairvlm_core.registry import audit, ledger, lineage, promote, tracking, versions
from fairvlm_core.steps import execute, register

NAME = small_versions.NAME
BECAUSE = "The clinic's committee decided so on Monday."


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return registry_places.empty_database(tmp_path_factory.mktemp("empty"))


@pytest.fixture
def here(tmp_path, empty):
    """A working directory with an empty database; gives the folder."""
    with registry_places.own_settings(MLFLOW_TRACKING_USERNAME="anna") as patch:
        registry_places.place(tmp_path, empty)
        patch.chdir(tmp_path)
        yield tmp_path


def make(folder, weight, uri="sqlite:///mlflow.db", **how):
    with tracking.tracking(uri):
        return small_versions.make(folder, weight, **how)


def do(wanted="challenger", uri="sqlite:///mlflow.db", **options):
    said = []
    moved = promote.promote(NAME, wanted, tracking_uri=uri, say=said.append, **options)
    return moved, said


def look(name=NAME, uri="sqlite:///mlflow.db"):
    with tracking.tracking(uri):
        return ledger.look(name)


def refused(wanted="challenger", **options):
    """What the refusal says: its reasons, where, and how to mend it; and that nothing has moved."""
    before = dict(look().aliases)
    with pytest.raises(FairVLMError) as told:
        do(wanted, **options)
    assert dict(look().aliases) == before
    assert told.value.where
    assert told.value.mend
    return told.value


def client():
    return MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")


def test_champion_previous_and_the_record_of_each_move(here):
    make(here, 1.0)
    moved, said = do()
    assert (moved.champion, moved.previous, said) == ("1", None, [])
    make(here, 2.0, against="1")
    moved, said = do(because="Everything passed, and the ward agreed.")
    assert (moved.champion, moved.previous, said) == ("2", "1", [])
    make(here, 3.0, against="2")
    assert do()[0].previous == "2"
    seen = look()
    assert seen.aliases == {"challenger": "3", "champion": "3", "previous": "2"}
    told = [(move.kind, move.origin, move.target, move.after, move.by, move.state) for move in seen.moves]
    assert told == [
        ("promotion", "none", "1", 0, "anna", "done"),
        ("promotion", "1", "2", 1, "anna", "done"),
        ("promotion", "2", "3", 2, "anna", "done"),
    ]
    second = seen.moves[1].tags
    assert second["because"] == "Everything passed, and the ward agreed."
    assert (second["overridden"], second["gate_verdict"]) == ("", "pass")
    tags = client().get_model_version(NAME, "2").tags
    assert second["fingerprint"] == tags["fingerprint"]
    assert tags["promoted_by"] == "anna"
    assert tags["promoted_because"] == "Everything passed, and the ward agreed."
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", tags["promoted_at"])


def test_rollback_undoes_one_promotion_at_a_time(here):
    make(here, 1.0)
    for number in ("1", "2"):
        do()
        make(here, float(number) + 1, against=number)
    do()
    moved = promote.rollback(NAME, tracking_uri="sqlite:///mlflow.db", because="It was slow on the old scanner.")
    assert (moved.champion, moved.previous) == ("2", "1")
    moved = promote.rollback(NAME, tracking_uri="sqlite:///mlflow.db")
    assert (moved.champion, moved.previous) == ("1", None)
    assert look().aliases == {"challenger": "3", "champion": "1"}
    with pytest.raises(FairVLMError, match="no champion of fairvlm to go back to"):
        promote.rollback(NAME, tracking_uri="sqlite:///mlflow.db")
    last = look().moves[-2:]
    assert [(move.kind, move.origin, move.target) for move in last] == [("rollback", "3", "2"), ("rollback", "2", "1")]
    assert last[0].tags["because"] == "It was slow on the old scanner."
    assert "promoted_because" in client().get_model_version(NAME, "2").tags  # the promotion's, untouched


def test_rollback_goes_only_to_what_can_be_loaded(here):
    make(here, 1.0)
    do()
    make(here, 2.0, against="1")
    do()
    weights = here / "base model" / "model.safetensors"
    weights.rename(here / "elsewhere")
    with pytest.raises(FairVLMError, match="Version 1 of fairvlm was champion before, and cannot be again") as told:
        promote.rollback(NAME, tracking_uri="sqlite:///mlflow.db")
    assert "base model" in str(told.value)
    assert "FAIRVLM_BASE" in told.value.mend
    (here / "elsewhere").rename(weights)
    client().delete_model_version(NAME, "1")
    with pytest.raises(FairVLMError, match="champion before is gone"):
        promote.rollback(NAME, tracking_uri="sqlite:///mlflow.db")
    assert look().champion == "2"


def test_rollback_before_there_was_a_ledger_goes_to_previous(here):
    for weight in (1.0, 2.0):
        make(here, weight)
    client().set_registered_model_alias(NAME, "champion", "2")
    client().set_registered_model_alias(NAME, "previous", "1")
    moved = promote.rollback(NAME, tracking_uri="sqlite:///mlflow.db", say=lambda _: None)
    assert (moved.champion, moved.previous) == ("1", None)
    assert [move.kind for move in look().moves] == ["by hand", "rollback"]


@pytest.mark.parametrize(
    ("verdict", "mend"), [("fail", "train another one"), ("insufficient evidence", "More test patients")]
)
def test_a_gate_that_did_not_pass_is_overridden_only_with_a_reason(here, verdict, mend):
    make(here, 1.0, verdict=verdict)
    told = refused()
    assert f"The gate's verdict is {verdict}: AUC is 0.3 below the champion's." in told.what
    assert told.where == "models:/fairvlm/1 on sqlite:///mlflow.db"
    assert mend in told.mend
    assert "--because TEXT" in told.mend
    for reason in ("because", "two words", "x " * 600):
        with pytest.raises(ConfigError, match="no reason that somebody will understand"):
            do(because=reason)
    moved, _ = do(because=BECAUSE)
    assert moved.champion == "1"
    (move,) = look().moves
    assert (move.tags["overridden"], move.tags["gate_verdict"]) == ("gate", verdict)
    assert move.tags["because"] == BECAUSE
    assert "0.3 below" in move.tags["gate_reasons"]
    assert client().get_model_version(NAME, "1").tags["promoted_because"] == BECAUSE


def test_what_was_not_there_cannot_be_promoted(here):
    assert "No version of fairvlm has the alias challenger" in refused().what
    make(here, 1.0)
    told = refused("7", because=BECAUSE)
    assert "no version 7" in told.what
    assert told.where == "models:/fairvlm/7"
    do()
    told = refused("1", because=BECAUSE)
    assert "It is champion already" in told.what
    assert "--because" not in told.mend


def test_all_that_speaks_against_a_version_is_told_at_once(here):
    make(here, 1.0)
    do()
    make(here, 2.0, verdict="fail", git_dirty="true")
    make(here, 3.0, people="test set of the autumn")
    told = refused("2")
    for reason in (
        "verdict is fail",
        "files were changed and not committed (tag git_dirty)",
        "version 3, which is newer, was tested on other images",
        "absolute rules alone, without a champion, and version 1 of fairvlm is champion now",
    ):
        assert reason in told.what
    assert told.what.count("\n- ") == 4
    do("2", because=BECAUSE)
    assert look().moves[-1].tags["overridden"] == "code, gate, test set, champion"


def test_a_gate_that_judged_against_another_champion_is_told(here):
    for weight in (1.0, 2.0):
        make(here, weight)
    do("1")
    make(here, 3.0, against="1")
    do("2", because=BECAUSE)
    told = refused("3")
    assert "judged it against version 1 of fairvlm, and the champion in use is another model, version 2" in told.what
    client().delete_registered_model_alias(NAME, "champion")
    assert "judged it against version 1, and there is no champion in use" in refused("3").what
    client().set_registered_model_alias(NAME, "champion", "1")
    assert do("3")[0].champion == "3"


def test_a_champion_of_an_earlier_release_is_known_by_its_run(here):
    make(here, 1.0, without=("fingerprint", "gate_sha256"))
    client().set_registered_model_alias(NAME, "champion", "1")
    make(here, 2.0, against="1")
    assert do()[0].champion == "2"


def test_the_test_images_must_be_those_that_the_gate_saw(here):
    cohort = bases.write_cohort_with_images(here / "cohort", bases.TASKS["binary"], count=24)
    other = bases.write_cohort_with_images(here / "other", bases.TASKS["binary"], count=24, seed=1)
    make(here, 1.0)
    run = client().get_model_version(NAME, "1").run_id
    (path,) = here.glob(f"store/{run}/artifacts/report/gate.json")
    gate = json.loads(path.read_text()) | {"test_sha256": lineage.hash_test_rows(cohort)}
    path.write_text(json.dumps(gate))
    client().set_model_version_tag(NAME, "1", "gate_sha256", hashlib.sha256(path.read_bytes()).hexdigest())
    told = refused(cohort=other)
    assert f"The test images of {other} are not those" in told.what
    assert do(cohort=cohort)[0].champion == "1"


def test_a_version_without_a_gate_and_an_edited_one_are_noticed(here):
    make(here, 1.0, without=("gate_verdict", "gate_sha256"))
    assert "No gate judged it" in refused().what
    make(here, 2.0, verdict="fail")
    client().set_model_version_tag(NAME, "2", "gate_verdict", "pass")
    assert "Its tag gate_verdict says pass, and report/gate.json says fail" in refused().what
    make(here, 3.0, model="stage1")
    assert "The gate judged stage2, which compare selected, and not stage1" in refused().what
    make(here, 4.0)
    run = client().get_model_version(NAME, "4").run_id
    (path,) = here.glob(f"store/{run}/artifacts/report/gate.json")
    path.write_text(path.read_text().replace("fail", "pass") + "\n")
    told = refused()
    assert "report/gate.json" in told.what
    assert "is not the one that was registered (tag gate_sha256)" in told.what
    do(because=BECAUSE)
    assert look().moves[-1].tags["gate_verdict"] == "altered"
    path.unlink()
    do("1", because=BECAUSE)
    assert look().moves[-1].tags["gate_verdict"] == "no gate"
    assert "cannot be fetched, so nobody can see what the gate judged" in refused("4").what


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"without": ("fingerprint",)}, "an earlier release did: it has no fingerprint"),
        ({"without": ("cohort_sha256", "dvc_data_hash")}, "it has no cohort_sha256, dvc_data_hash"),
        ({"thresholds": {"melanoma": 0.5}}, "It has no threshold for glaucoma"),
        ({"thresholds": {"glaucoma": float("nan")}}, "It has no threshold for glaucoma"),
        ({"fingerprint": "0" * 64}, "Its files are not those that were registered (tag fingerprint)"),
    ],
)
def test_no_reason_outweighs_what_cannot_be_used_or_traced(here, how, reason):
    make(here, 1.0, **how)
    for because in ("", BECAUSE):
        told = refused(because=because)
        assert reason in told.what
        assert "--because" not in told.mend
    assert look().moves == []


def test_files_and_base_must_be_there(here):
    make(here, 1.0)
    weights = here / "base model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content + b"x")
    told = refused(because=BECAUSE)
    assert "not the one that this model was trained from" in told.what
    assert str(weights.parent) in told.what
    assert "FAIRVLM_BASE" in told.mend
    shutil.rmtree(weights.parent)
    assert "base model of this registered model is missing" in refused(because=BECAUSE).what
    run = client().get_model_version(NAME, "1").run_id
    shutil.rmtree(here / "store" / run / "artifacts" / "model" / "artifacts")
    assert "The files of this version are gone" in refused(because=BECAUSE).what


def test_a_commit_is_needed_unless_a_person_says_why(here):
    make(here, 1.0, without=("git_commit",))
    assert "registered outside a git repository" in refused().what
    do(because=BECAUSE)
    assert look().moves[-1].tags["overridden"] == "code"


def test_a_champion_moved_by_hand_is_written_down_before_the_next_move(here):
    for weight in (1.0, 2.0):
        make(here, weight, verdict="fail" if weight == 2 else "pass")
    do("1")
    client().set_registered_model_alias(NAME, "champion", "2")
    make(here, 3.0, against="2")
    moved, said = do()
    assert said == ["Somebody moved the champion by hand, from version 1 to version 2: this is written down first."]
    assert (moved.champion, moved.previous) == ("3", "2")
    noted = look().moves[1]
    assert (noted.kind, noted.origin, noted.target, noted.by, noted.state) == ("by hand", "1", "2", "unknown", "done")
    assert (noted.tags["noted_by"], noted.tags["gate_verdict"]) == ("anna", "fail")


def test_a_refusal_still_keeps_the_move_by_hand(here):
    for weight in (1.0, 2.0):
        make(here, weight)
    do("1")
    client().set_registered_model_alias(NAME, "champion", "2")
    refused("1")
    assert [move.kind for move in look().moves] == ["promotion", "by hand"]


def test_a_person_at_a_terminal_is_asked(here):
    make(here, 1.0, verdict="fail")
    asked = []
    with pytest.raises(FairVLMError, match="verdict is fail"):
        do(ask=lambda told: asked.append(told) or "")
    assert "verdict is fail" in asked[0]
    assert do(ask=lambda _: BECAUSE)[0].champion == "1"
    assert look().moves[0].tags["because"] == BECAUSE


@pytest.mark.parametrize(("alias", "reached"), [("previous", False), ("champion", False), ("", True)])
def test_a_connection_that_is_lost_on_the_way_is_told_and_tidied_up(here, monkeypatch, alias, reached):
    for weight in (1.0, 2.0, 3.0):
        make(here, weight)
    do("1")
    change = MlflowClient.set_registered_model_alias
    tag = MlflowClient.set_model_version_tag

    def lost(client, name, key, *rest):
        if key == alias:
            raise mlflow.MlflowException("the connection was lost")
        return change(client, name, key, *rest)

    def lost_later(client, name, number, key, value):
        if reached and key == "promoted_by":
            raise mlflow.MlflowException("the connection was lost")
        return tag(client, name, number, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", lost)
        patch.setattr(MlflowClient, "set_model_version_tag", lost_later)
        with pytest.raises(FairVLMError, match="the connection was lost") as told:
            do("2", because=BECAUSE)
    assert "Version 2 of fairvlm was to become champion; whether it did, `fairvlm audit` tells" in told.value.what
    assert look().champion == ("2" if reached else "1")
    with pytest.raises(FairVLMError, match="Somebody is moving the champion right now: anna"):
        do("3", because=BECAUSE)
    moved, said = do("3", because=BECAUSE, patience=0)
    assert said == []
    assert (moved.champion, moved.previous) == ("3", "2" if reached else "1")
    assert [look().state(move) for move in look().moves] == ["done", "done" if reached else "abandoned", "lost", "done"]


def test_the_commands(here, fairvlm):
    make(here, 1.0)
    make(here, 2.0, verdict="fail")
    status, out, err = fairvlm("promote", "1")
    assert (status, err) == (0, "")
    assert "Version 1 of fairvlm on sqlite:///mlflow.db is champion now; there is no version before it." in out
    status, out, err = fairvlm("promote")
    assert (status, out) == (2, "")
    assert "Where: models:/fairvlm/2" in err
    assert "Mend:" in err
    status, out, _ = fairvlm("promote", "--because", BECAUSE)
    assert status == 0
    assert "version 1 is `previous`" in out
    again = re.search(r"To go back: fairvlm (.*)", out)[1].split()
    status, out, _ = fairvlm(*again)
    assert status == 0
    assert "Version 1 of fairvlm" in out
    status, out, _ = fairvlm("audit")
    assert status == 0
    assert (
        f"Move 2: anna promoted version 2 against the checks of gate, champion (verdict: fail), because: {BECAUSE}"
        in out
    )


def test_onto_another_server(here, empty, tmp_path_factory):
    there = tmp_path_factory.mktemp("there")
    uri = registry_places.place(there, empty, "there.db")
    target = promote.Target(uri, "clinic")
    make(here, 1.0)
    do()
    make(here, 2.0, against="1")
    with tracking.tracking("sqlite:///mlflow.db"):
        run = client().get_model_version(NAME, "2").run_id
        client().log_text(run, "who is it", "private/rows.csv")
        client().log_text(run, "<p>card</p>", "card/model_card.html")
    # The gate judged version 2 against a champion that is not in use there.
    with pytest.raises(FairVLMError, match="judged it against version 1, and there is no champion in use"):
        do("2", to=target)
    assert look("clinic", uri).aliases == {}
    moved, said = do("1", to=target)
    assert (moved.name, moved.champion, moved.previous) == ("clinic", "1", None)
    assert said == [f"models:/fairvlm/1 on sqlite:///mlflow.db is version 1 of clinic on {uri} now."]
    moved, _ = do("2", to=target)
    assert (moved.champion, moved.previous) == ("2", "1")
    assert look("clinic", uri).aliases == {"champion": "2", "challenger": "2", "previous": "1"}
    assert look().champion == "1"
    mine = {key: value for key, value in client().get_model_version(NAME, "2").tags.items() if "promoted" not in key}
    copy = MlflowClient(uri).get_model_version("clinic", "2")
    copied = {key: value for key, value in copy.tags.items() if not key.startswith("promoted")}
    assert copied == {**mine, "copied_from": "models:/fairvlm/2 on sqlite:///mlflow.db"}
    record = MlflowClient(uri).get_run(copy.run_id)
    assert record.info.status == "FINISHED"
    assert record.data.metrics == {"test_auc": 0.52}
    assert record.data.params == {"seed": "0"}
    listed = {item.path for item in MlflowClient(uri).list_artifacts(copy.run_id)}
    assert {"report", "card"} <= listed
    assert "private" not in listed
    shutil.rmtree(here / "store")  # nothing there needs what is here
    with tracking.tracking(uri):
        artifact = versions.fetch(versions.find("clinic", "champion"), there / "fetched")
        assert versions.fingerprint(artifact) == mine["fingerprint"]
        assert not (artifact.parent.parent / "registered_model_meta").exists() or (
            "clinic" in (artifact.parent.parent / "registered_model_meta").read_text()
        )
        assert audit.audit("clinic", server=uri, files=True).fits


def test_a_copy_that_was_interrupted_is_not_made_twice(here, empty, tmp_path_factory, monkeypatch):
    there = tmp_path_factory.mktemp("there")
    uri = registry_places.place(there, empty, "there.db")
    target = promote.Target(uri, NAME)
    make(here, 1.0)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "claim", killed)
        with pytest.raises(KeyboardInterrupt):
            do(to=target)
    assert look(uri=uri).aliases == {"challenger": "1"}
    moved, said = do(to=target)
    assert moved.champion == "1"
    assert "is the same model: nothing is copied" in said[0]
    assert len(MlflowClient(uri).search_model_versions(f"name='{NAME}'")) == 1
    # A copy whose files are gone is no copy.
    shutil.rmtree(there / "mlartifacts")
    MlflowClient(uri).delete_registered_model_alias(NAME, "champion")
    moved, said = do(to=target)
    assert moved.champion == "2"


def test_passwords_are_neither_told_nor_sent_to_the_other_server(here, monkeypatch):
    make(here, 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret-here")
    with pytest.raises(FairVLMError) as told:
        do(to=promote.Target("http://bert:secret-there@127.0.0.1:9/mlflow", NAME))
    assert "secret" not in str(told.value)
    assert "http://127.0.0.1:9/mlflow" in str(told.value)
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "secret-here"
    assert "MLFLOW_TRACKING_URI" not in os.environ
    from fairvlm_core.registry.transfer import other_server

    with other_server("http://127.0.0.1:9"):
        assert "MLFLOW_TRACKING_PASSWORD" not in os.environ
        assert mlflow.get_tracking_uri() == "http://127.0.0.1:9"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "secret-here"


@pytest.mark.slow
def test_what_register_makes_can_be_promoted_and_taken_elsewhere(here, empty, tmp_path_factory):
    there = tmp_path_factory.mktemp("there")
    uri = registry_places.place(there, empty, "there.db")
    folders = pipeline_outputs.write_outputs(here / "outputs", "binary")
    inputs = {name: folders[name] for name in register.INPUTS if name in folders}
    made = execute("register", register.Config(), inputs, {"out": here / "registration"})
    told = refused(cohort=folders["cohort"])
    assert "registered outside a git repository" in told.what
    assert "test set" not in told.what
    moved, _ = do(because=BECAUSE)
    assert int(moved.champion) == made["version"]
    picture = tracking.example(bases.SIZE)
    with tracking.tracking("sqlite:///mlflow.db"):
        expected = mlflow.pyfunc.load_model("models:/fairvlm@champion").predict(picture)
    do("champion", to=promote.Target(uri, NAME), because=BECAUSE)
    shutil.rmtree(here / "mlartifacts")
    with tracking.tracking(uri):
        loaded = mlflow.pyfunc.load_model("models:/fairvlm@champion")
        version = MlflowClient().get_model_version_by_alias(NAME, "champion")
        logged = MlflowClient().get_logged_model(loaded.metadata.model_id)
    assert loaded.predict(picture).to_numpy() == pytest.approx(expected.to_numpy())
    assert (loaded.metadata.run_id, logged.source_run_id) == (version.run_id, version.run_id)
    assert loaded.metadata.signature is not None
