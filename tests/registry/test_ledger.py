"""The ledger explains every state of the aliases, whatever people do to them: checked against a plain list."""

from __future__ import annotations

import shutil
from contextlib import ExitStack

import pytest
import registry_places
import small_versions
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mlflow import MlflowClient

from fairvlm_core.errors import FairVLMError
from fairvlm_core.registry import audit, ledger, promote, tracking, versions

NUMBERS = ("1", "2", "3")
NAME = small_versions.NAME
BECAUSE = "it is the turn of this one"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A folder with a database of three versions that were never promoted."""
    root = tmp_path_factory.mktemp("registry")
    with registry_places.own_settings():
        uri = registry_places.place(root, registry_places.empty_database(root), "three.db")
        with tracking.tracking(uri):
            for number in NUMBERS:
                small_versions.make(root, float(number))
        yield root


@pytest.fixture
def server(registry, tmp_path):
    """The registry, as it was, on a database of one test."""
    with tracking.tracking(registry_places.place(tmp_path, registry / "three.db")):
        yield


def entry(seen, target="1", **options):
    return ledger.claim(seen, ledger.PROMOTION, target, {"because": ""}, **options)


def states():
    seen = ledger.look(NAME)
    return [(move.number, seen.state(move)) for move in seen.moves]


class Moves(RuleBasedStateMachine):
    """Champions as a list that promotions and hands lengthen and rollbacks shorten."""

    folder = None
    count = 0

    @initialize()
    def start(self):
        Moves.count += 1
        self.place = self.folder / str(Moves.count)
        self.place.mkdir()
        self.uri = registry_places.place(self.place, self.folder / "three.db")
        self.champions = []
        self.left = "none"  # what fairvlm knows to be champion
        self.champion = "none"
        self.open = ExitStack()
        self.open.enter_context(tracking.tracking(self.uri))
        self.client = MlflowClient()

    def noticed(self):
        """What promote and rollback do first."""
        if self.champion != self.left:
            self.champions.append(self.champion)
            self.left = self.champion

    def expected_previous(self, champions):
        known = [number for number in champions[:-1] if number != "none"]
        while known and known[-1] == champions[-1]:
            known.pop()
        return known[-1] if known else None

    def moved(self, moved, to):
        self.left = self.champion = to
        assert moved.champion == to
        assert moved.previous == self.expected_previous(self.champions)
        found = versions.aliases(NAME)
        assert (found.get("champion"), found.get("previous")) == (to, moved.previous)

    @rule(number=st.sampled_from(NUMBERS))
    def promote(self, number):
        def attempt():
            return promote.promote(NAME, number, tracking_uri=self.uri, because=BECAUSE, say=lambda _: None)

        if number == self.champion:
            with pytest.raises(FairVLMError, match="champion already"):
                attempt()
            self.noticed()
            return
        moved = attempt()
        self.noticed()
        self.champions.append(number)
        self.moved(moved, number)

    @rule()
    def rollback(self):
        before = versions.aliases(NAME).get("previous")
        self.noticed()
        known = [number for number in self.champions[:-1] if number != "none"]
        if len(self.champions) < 2 and before:
            known = [before]
        while known and known[-1] == self.champion:
            known.pop()
        if not known:
            with pytest.raises(FairVLMError, match="no champion of fairvlm to go back to"):
                promote.rollback(NAME, tracking_uri=self.uri, say=lambda _: None)
            return
        moved = promote.rollback(NAME, tracking_uri=self.uri, say=lambda _: None)
        target, earlier = known[-1], self.champions[:-1]
        undone = earlier[::-1].index(target) if target in earlier else len(earlier)
        self.champions = earlier[: len(earlier) - undone] or [target]
        self.moved(moved, known[-1])

    @rule(number=st.sampled_from(NUMBERS))
    def by_hand(self, number):
        self.client.set_registered_model_alias(NAME, "champion", number)
        self.champion = number

    @precondition(lambda self: self.champion != "none")
    @rule()
    def taken_away(self):
        self.client.delete_registered_model_alias(NAME, "champion")
        self.champion = "none"

    @rule()
    def recorded(self):
        assert audit.record(NAME) == (self.champion != self.left)
        self.noticed()

    @invariant()
    def audit_explains_the_alias(self):
        seen = ledger.look(NAME)
        assert seen.champion == self.champion
        assert seen.recorded() == self.left
        assert not seen.unfinished()
        assert seen.champions() == self.champions
        found = audit.audit(NAME, server="here")
        unexplained = [finding for finding in found.findings if "the ledger left it" in finding.text]
        assert len(unexplained) == (self.champion != self.left)
        assert all(finding.current for finding in unexplained)

    def teardown(self):
        if hasattr(self, "open"):
            if self.champion != "none":
                artifact = versions.fetch(versions.find(NAME, "champion"), self.place / "fetched")
                assert versions.fingerprint(artifact) == versions.find(NAME, "champion").tags["fingerprint"]
            self.open.close()
            shutil.rmtree(self.place)


@pytest.mark.slow
def test_any_order_of_moves_is_explained(registry, tmp_path):
    shutil.copyfile(registry / "three.db", tmp_path / "three.db")
    Moves.folder = tmp_path
    run_state_machine_as_test(
        Moves,
        settings=settings(
            max_examples=12,
            stateful_step_count=10,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_of_two_who_saw_the_same_the_first_one_counts(server):
    seen = ledger.look(NAME)
    first = entry(seen, "1", by="anna")
    with pytest.raises(FairVLMError, match=r"anna promoted version 1 at .* UTC, in the meantime") as told:
        entry(seen, "2", by="bert")
    assert "Nothing was changed" in str(told.value)
    assert "try again" in told.value.mend
    assert states() == [(1, "intended"), (2, "lost")]
    ledger.carry_out(NAME, first, None)
    assert versions.aliases(NAME)["champion"] == "1"
    assert states() == [(1, "done"), (2, "lost")]
    # Whoever dies before he can write that he lost has lost all the same.
    MlflowClient().set_model_version_tag(ledger.ledger_name(NAME), "2", "state", "done")
    assert states() == [(1, "done"), (2, "lost")]
    assert ledger.look(NAME).recorded() == "1"


def test_a_move_that_somebody_is_making_is_waited_for(server):
    entry(ledger.look(NAME), "1", by="anna")
    seen = ledger.look(NAME)
    with pytest.raises(FairVLMError, match="Somebody is moving the champion right now: anna") as told:
        entry(seen, "2", by="bert")
    assert "entry 1 of fairvlm-promotions" in told.value.where
    assert int(told.value.mend.split()[3]) in range(1, ledger.PATIENCE + 1)
    assert states() == [(1, "intended"), (2, "lost")]
    # By the server's clock it began longer ago than anybody waits.
    entry(ledger.look(NAME), "2", by="bert", patience=0)
    assert states() == [(1, "abandoned"), (2, "lost"), (3, "intended")]


def test_who_was_given_up_moves_nothing(server):
    slow = entry(ledger.look(NAME), "1", by="anna")
    fast = entry(ledger.look(NAME), "2", by="bert", patience=0)
    with pytest.raises(FairVLMError, match="took so long that somebody else took it for interrupted"):
        ledger.carry_out(NAME, slow, None)
    assert "champion" not in versions.aliases(NAME)
    ledger.carry_out(NAME, fast, None)
    assert versions.aliases(NAME) == {"champion": "2", "challenger": "3"}
    assert states() == [(1, "abandoned"), (2, "done")]


def test_a_champion_that_was_moved_after_the_checks_stops_the_move(server):
    seen = ledger.look(NAME)
    MlflowClient().set_registered_model_alias(NAME, "champion", "3")
    with pytest.raises(FairVLMError, match="champion was moved in the meantime, to version 3"):
        entry(seen, "1")
    assert states() == [(1, "lost")]
    assert versions.aliases(NAME)["champion"] == "3"


def test_a_request_that_mlflow_repeats_does_not_stand_in_its_own_way(server, monkeypatch):
    create = MlflowClient.create_model_version

    def twice(*arguments, **options):
        create(*arguments, **options)
        return create(*arguments, **options)

    monkeypatch.setattr(MlflowClient, "create_model_version", twice)
    mine = entry(ledger.look(NAME), "1")
    monkeypatch.undo()
    ledger.carry_out(NAME, mine, None)
    assert states() == [(1, "done"), (2, "lost")]
    assert versions.aliases(NAME)["champion"] == "1"


def test_the_ledger_says_what_it_is_and_holds_no_files(server, registry):
    before = sorted(path for path in registry.rglob("*") if path.is_file())
    ledger.carry_out(NAME, entry(ledger.look(NAME), "1"), None)
    assert sorted(path for path in registry.rglob("*") if path.is_file()) == before
    client = MlflowClient()
    assert "ledger of promotions" in client.get_registered_model("fairvlm-promotions").description
    (found,) = client.search_model_versions("name='fairvlm-promotions'")
    assert found.source == "models:/fairvlm/1"
    assert {"kind", "alias", "from", "to", "after", "by", "because", "at", "state"} <= found.tags.keys()


def test_what_is_no_entry_is_not_read_as_one(server):
    client = MlflowClient()
    client.create_registered_model("fairvlm-promotions")
    client.create_model_version("fairvlm-promotions", "models:/fairvlm/1", tags={"kind": "promotion"})
    client.create_model_version("fairvlm-promotions", "models:/fairvlm/1", tags={"after": "0"})
    assert ledger.look(NAME).moves == []
    entry(ledger.look(NAME), "1")
    assert [move.number for move in ledger.look(NAME).moves] == [3]


def test_a_database_that_does_not_exist_is_not_created(tmp_path):
    with registry_places.own_settings(), tracking.tracking(f"sqlite:///{tmp_path}/mlflow.db"):
        assert ledger.look(NAME).last == 0
    assert not list(tmp_path.iterdir())
