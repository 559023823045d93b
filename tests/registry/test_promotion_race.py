"""Several people promote at once on a real server: one wins, the others are told; whoever is killed is tidied up."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import nullcontext

import mlflow_servers as servers
import pytest
import registry_places
import small_versions
from mlflow import MlflowClient

from fairvlm_core.errors import FairVLMError
from fairvlm_core.registry import audit, ledger, promote, tracking, versions

NAME = small_versions.NAME
BECAUSE = "it is the turn of this one"
# What changes something on the server when a version is promoted, in order.
CALLS = ("create_model_version", "set_registered_model_alias", "set_model_version_tag", "delete_registered_model_alias")

# A child that starts where this process is: mlflow takes seconds to import. MLflow keeps one connection per process.
processes = multiprocessing.get_context("fork")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request, tmp_path_factory):
    """A server with four versions, on either kind of database."""
    folder = tmp_path_factory.mktemp("server")
    if request.param == "postgresql" and not servers.postgres_program("initdb"):
        pytest.skip("PostgreSQL is not installed")
    database = servers.postgres() if request.param == "postgresql" else nullcontext(f"sqlite:///{folder}/server.db")
    with registry_places.own_settings() as patch, database as uri:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        words = ["--backend-store-uri", uri, "--artifacts-destination", str(folder / "store")]
        with servers.mlflow_server(folder, *words) as server:
            with tracking.tracking(server.uri):
                for weight in (1.0, 2.0, 3.0, 4.0):
                    small_versions.make(folder, weight)
            yield server


@pytest.fixture
def server(running):
    """Its address."""
    return running.uri


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return registry_places.empty_database(tmp_path_factory.mktemp("empty"))


def look(address, name=NAME):
    with tracking.tracking(address):
        return ledger.look(name)


def promoting(address, number, who, barrier, together, results):
    """In a process of its own: wait for the others, promote, and say how it ended.

    Args:
        together: whether all wait once more when they have looked and checked, so that nobody can be late.
    """
    os.environ["MLFLOW_TRACKING_USERNAME"] = who
    barrier.wait(60)
    if together:
        claim = ledger.claim

        def after_the_others(*arguments, **options):
            barrier.wait(60)
            return claim(*arguments, **options)

        ledger.claim = after_the_others
    try:
        promote.promote(NAME, number, tracking_uri=address, because=BECAUSE, say=lambda _: None)
        results.put((who, number, None))
    except FairVLMError as error:
        results.put((who, number, str(error)))


def race(address, numbers, together):
    """Everybody promotes another version at the same moment; returns who, what and how it ended."""
    barrier, results = processes.Barrier(len(numbers)), processes.Queue()
    people = [
        processes.Process(target=promoting, args=(address, number, f"person{i}", barrier, together, results))
        for i, number in enumerate(numbers)
    ]
    for person in people:
        person.start()
    ends = [results.get(timeout=120) for _ in people]
    for person in people:
        person.join(60)
        assert person.exitcode == 0
    return ends


@pytest.mark.slow
@pytest.mark.parametrize(("racers", "rounds", "together"), [(2, 4, True), (3, 3, True), (2, 2, False)])
def test_one_wins_and_the_others_are_told(server, racers, rounds, together):
    for _ in range(rounds):
        before = look(server)
        candidates = [number for number in ("1", "2", "3", "4") if number != before.champion][:racers]
        ends = race(server, candidates, together)
        seen = look(server)
        made = [move for move in seen.made() if move.number > before.last]
        assert {(move.by, move.target) for move in made} == {(who, number) for who, number, error in ends if not error}
        # Whoever is so late that he sees the new champion makes a second promotion, with his reason: that is no race.
        assert len(made) == 1 if together else made
        assert seen.champion == made[-1].target == seen.recorded()
        assert seen.aliases.get("previous", "none") == made[-1].origin
        assert not seen.unfinished()
        for _, _, error in ends:
            if error is not None:
                assert "Nothing was changed" in error
                assert f"{made[0].by} promoted version {made[0].target} at" in error or not together
                assert "again" in error
        with tracking.tracking(server):
            found = audit.audit(NAME, server=server)
        assert not [finding for finding in found.findings if finding.about in ("champion", "unfinished", "ledger")]


def dying(address, number, call, moment):
    """In a process of its own: promote, and be killed before or after the n-th change on the server."""
    os.environ["MLFLOW_TRACKING_USERNAME"] = "unlucky"
    left = [call]

    def wrapped(method):
        def changing(*arguments, **options):
            left[0] -= 1
            if left[0] == 0 and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = method(*arguments, **options)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return changing

    for name in CALLS:
        setattr(MlflowClient, name, wrapped(getattr(MlflowClient, name)))
    promote.promote(NAME, number, tracking_uri=address, because=BECAUSE, say=lambda _: None)


def killed_while_promoting(address, number, call, moment):
    """Whether the process was killed; it is not where it makes fewer changes."""
    person = processes.Process(target=dying, args=(address, number, call, moment))
    person.start()
    person.join(120)
    assert person.exitcode in (0, -signal.SIGKILL)
    return person.exitcode != 0


@pytest.mark.slow
@pytest.mark.parametrize("running", ["sqlite"], indirect=True)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_whoever_comes_after_a_killed_one_tidies_up(server, moment):
    ends = []
    for call in range(1, 20):
        with tracking.tracking(server):
            if look(server).champion == "none":
                promote.promote(NAME, "4", tracking_uri=server, because=BECAUSE)
        before = look(server)
        unlucky, next_one, _ = (number for number in ("1", "2", "3", "4") if number != before.champion)
        if not killed_while_promoting(server, unlucky, call, moment):
            break
        seen = look(server)
        assert seen.champion in (before.champion, unlucky)
        reached = seen.champion == unlucky
        written = seen.last > before.last
        done = written and seen.state(seen.moves[-1]) == "done"
        if written and not done:
            with tracking.tracking(server):
                (finding,) = [item for item in audit.audit(NAME, server=server).findings if item.about == "unfinished"]
            assert ("The alias has moved" in finding.text) == reached
            # So soon after it nobody can know that it was killed.
            with pytest.raises(FairVLMError, match="right now: unlucky"):
                promote.promote(NAME, next_one, tracking_uri=server, because=BECAUSE)
            assert look(server).champion == seen.champion
        promote.promote(NAME, next_one, tracking_uri=server, because=BECAUSE, patience=0)
        after = look(server)
        assert after.champion == next_one == after.recorded()
        assert after.aliases["previous"] == seen.champion
        if written:
            entry = next(move for move in after.moves if move.number == before.last + 1)
            assert after.state(entry) == ("done" if reached else "abandoned")
        # Rolling back leads to what was really in use before.
        promote.rollback(NAME, tracking_uri=server)
        assert look(server).champion == seen.champion
        ends.append((written, reached, done))
    # Killed before anything, after the entry, after `previous`, after `champion`, and when all was done.
    expected = [(False, False, False)] if moment == "before" else [(True, True, True)]
    assert set(ends) == {(True, False, False), (True, True, False), *expected}


@pytest.mark.slow
@pytest.mark.parametrize("running", ["sqlite"], indirect=True)
@pytest.mark.parametrize("lost", ["model-versions/create", "registered-models/alias", "model-versions/set-tag"])
def test_an_answer_that_is_lost_makes_no_second_move(running, lost):
    times = [0]

    def rule(number, method, path):
        times[0] += method == "POST" and lost in path
        return servers.LOSE if method == "POST" and lost in path and times[0] == 1 else servers.PASS

    before = look(running.uri)
    number = next(number for number in ("1", "2", "3", "4") if number != before.champion)
    with servers.way_to(running.port, rule) as address:
        promote.promote(NAME, number, tracking_uri=address, because=BECAUSE)
    assert times[0] > 1  # MLflow's client has asked again
    seen = look(running.uri)
    made = [move for move in seen.made() if move.number > before.last]
    assert [(move.origin, move.target) for move in made] == [(before.champion, number)]
    assert seen.champion == number
    assert not seen.unfinished()


@pytest.mark.slow
@pytest.mark.parametrize("running", ["sqlite"], indirect=True)
def test_from_a_database_to_a_server_and_from_there_to_another_name(server, empty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    local = registry_places.place(tmp_path, empty)
    with tracking.tracking(local):
        small_versions.make(tmp_path, 9.0)
    first = promote.promote(NAME, "challenger", tracking_uri=local, to=promote.Target(server, "ward"))
    second = promote.promote(
        "ward", "champion", tracking_uri=server, to=promote.Target(server, "clinic"), because=BECAUSE
    )
    assert (first.champion, second.champion) == ("1", "1")
    again = look(server, "clinic")
    assert again.aliases == {"champion": "1", "challenger": "1"}
    assert [move.state for move in again.moves] == ["done"]
    with tracking.tracking(server):
        found = versions.find("clinic", "champion")
        assert versions.fingerprint(versions.fetch(found, tmp_path / "fetched")) == found.tags["fingerprint"]
        assert found.tags["copied_from"] == f"models:/ward/1 on {server}"
        with pytest.raises(FairVLMError, match="champion already"):
            promote.promote("ward", "1", tracking_uri=server, to=promote.Target(server, "clinic"))
