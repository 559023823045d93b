"""audit: every move is listed, and what does not fit is found; what was replaced since is history."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import registry_places
import small_versions
from mlflow import MlflowClient

from fairvlm_core.errors import FairVLMError
from fairvlm_core.registry import audit, ledger, promote, tracking

NAME = small_versions.NAME
URI = "sqlite:///mlflow.db"
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


def make(folder, weight, **how):
    with tracking.tracking(URI):
        return small_versions.make(folder, weight, **how)


def do(wanted="challenger", **options):
    return promote.promote(NAME, wanted, tracking_uri=URI, say=lambda _: None, **options)


def look_through(**options):
    with tracking.tracking(URI) as server:
        return audit.audit(NAME, server=server, **options)


def findings(**options):
    """What is found, as (about, whether it counts)."""
    return [(finding.about, finding.current) for finding in look_through(**options).findings]


def client():
    return MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")


def test_moves_that_the_gate_let_pass_fit(here):
    make(here, 1.0)
    assert look_through(files=True).fits  # nothing has been promoted yet
    do()
    make(here, 2.0, against="1")
    do(because="All passed, and everybody agreed.")
    found = look_through(files=True)
    assert found.fits
    assert list(found.findings) == []
    assert [(move["number"], move["by"], move["from"], move["to"]) for move in found.moves] == [
        (1, "anna", "none", "1"),
        (2, "anna", "1", "2"),
    ]
    assert [move["gate_verdict"] for move in found.moves] == ["pass", "pass"]
    assert found.moves[1]["because"] == "All passed, and everybody agreed."
    assert audit.reasons(found) == ["Move 2, because: All passed, and everybody agreed."]


def test_a_promotion_against_the_verdict_counts_until_it_is_replaced(here):
    make(here, 1.0, verdict="fail")
    do(because=BECAUSE)
    found = look_through()
    assert not found.fits
    (finding,) = found.findings
    assert finding.text == (
        f"Move 1: anna promoted version 1 against the checks of gate (verdict: fail), because: {BECAUSE}"
    )
    make(here, 2.0, against="1")
    do()
    found = look_through()
    assert found.fits
    assert [finding.current for finding in found.findings] == [False]


def test_a_move_by_hand_counts_until_it_is_replaced_recorded_or_not(here):
    for weight in (1.0, 2.0):
        make(here, weight, verdict="pass" if weight == 1 else "fail")
    do("1")
    client().set_registered_model_alias(NAME, "champion", "2")
    (finding,) = look_through().findings
    assert "moved the champion by hand: the ledger left it at version 1, and it is version 2" in finding.text
    assert finding.current
    with tracking.tracking(URI):
        assert audit.record(NAME)
        assert not audit.record(NAME)
    (finding,) = look_through().findings
    assert finding.current
    assert "Move 2: somebody moved the champion by hand from version 1 to version 2, whose verdict was: fail" in (
        finding.text
    )
    promote.rollback(NAME, tracking_uri=URI)
    assert findings() == [("champion", False)]
    client().delete_registered_model_alias(NAME, "champion")
    assert "and it is no version" in look_through().findings[0].text


def test_versions_behind_the_aliases_need_a_gate(here):
    make(here, 1.0, without=("gate_verdict", "gate_sha256"))
    (finding,) = look_through().findings
    assert finding.text == "Version 1 (challenger): No gate judged it: it has no tag gate_verdict."
    assert finding.current


def test_a_report_of_the_gate_that_was_edited_later_is_found(here):
    make(here, 1.0)
    do()
    make(here, 2.0, against="1")
    do()
    for number, current in (("1", False), ("2", True)):
        run = client().get_model_version(NAME, number).run_id
        (path,) = here.glob(f"store/{run}/artifacts/report/gate.json")
        whole = path.read_text()
        path.write_text(whole.replace('"pass"', '"fail"'))
        (finding,) = look_through().findings
        assert (finding.about, finding.current) == ("gate", current)
        assert f"Version {number}" in finding.text
        assert "not the one that was registered" in finding.text
        path.write_text(whole)
    client().set_model_version_tag(NAME, "2", "gate_verdict", "insufficient evidence")
    assert findings() == [("gate", True)]


def test_files_that_changed_are_found_where_they_are_asked_for(here):
    make(here, 1.0)
    do()
    run = client().get_model_version(NAME, "1").run_id
    folder = here / "store" / run / "artifacts" / "model" / "artifacts" / "fairvlm"
    path = folder / "thresholds.json"
    path.write_text(path.read_text().replace("0.5", "0.1"))
    assert findings() == []
    assert findings(files=True) == [("files", True), ("files", True)]  # it is champion and challenger
    path.rename(here / "thresholds.json")
    assert "its files are not those that were registered" in look_through(files=True).findings[0].text
    folder.rename(here / "gone")
    assert "files of this version are gone" in look_through(files=True).findings[0].text


def test_an_unfinished_move_is_told(here):
    make(here, 1.0)
    with tracking.tracking(URI):
        ledger.claim(ledger.look(NAME), ledger.PROMOTION, "1", {})
    (finding,) = look_through().findings
    assert (finding.about, finding.current) == ("unfinished", True)
    assert "Move 1 (promotion to version 1 by anna" in finding.text
    assert "The alias has not moved" in finding.text


def test_a_ledger_that_was_tampered_with_is_told(here):
    make(here, 1.0)
    do()
    make(here, 2.0, against="1")
    do()
    client().delete_model_version("fairvlm-promotions", "1")
    found = look_through()
    assert [finding.text for finding in found.findings] == [
        "Entries of the ledger were deleted: 1.",
        f"Version 1 was promoted at {client().get_model_version(NAME, '1').tags['promoted_at']}, and the ledger has "
        "no such move.",
    ]
    assert not found.fits
    client().set_model_version_tag(NAME, "2", "fingerprint", "0" * 64)
    texts = [finding.text for finding in look_through().findings]
    assert "Version 2 has another fingerprint than when it became champion (move 2)." in texts
    client().delete_registered_model("fairvlm-promotions")
    assert ("champion", True) in findings()
    assert findings().count(("ledger", True)) == 2


def test_the_command_is_fit_for_cron(here, fairvlm):
    make(here, 1.0, verdict="fail")
    status, out, _ = fairvlm("audit", "--files")
    assert status == 0
    assert "Everything that is in use fits." in out
    do(because="[bold]so[/bold] it was decided")
    client().set_model_version_tag("fairvlm-promotions", "1", "because", "[bold]so[/bold] it was\x1b[31m decided")
    status, out, err = fairvlm("audit", "--out", "audit.json")
    assert (status, err) == (1, "")
    (row,) = [line for line in out.splitlines() if "promotion" in line and "fail" in line and "done" in line]
    assert "anna" in row
    assert "none → 1" in row
    assert "Does not fit:\n- Move 1" in out
    assert "[bold]so[/bold] it was [31m decided" in out
    assert "\x1b" not in out
    written = json.loads(Path("audit.json").read_text())
    assert not written["fits"]
    assert written["moves"][0]["overridden"] == "gate"
    assert written["aliases"] == {"challenger": "1", "champion": "1"}
    client().delete_registered_model_alias(NAME, "champion")
    assert "is in the ledger now" not in fairvlm("audit")[1]
    assert "is in the ledger now" in fairvlm("audit", "--record")[1]


def test_a_registry_that_is_not_there_is_no_good_news(tmp_path, fairvlm, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with registry_places.own_settings():
        status, _, err = fairvlm("audit")
    assert status == 2
    assert "There is no version of fairvlm." in err
    assert not list(tmp_path.iterdir())


def test_a_name_that_was_mistyped_is_no_good_news(here):
    make(here, 1.0)
    with tracking.tracking(URI), pytest.raises(FairVLMError, match="no version of fairvlm2"):
        audit.audit("fairvlm2", server=URI)
