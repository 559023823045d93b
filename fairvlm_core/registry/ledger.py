"""The ledger: every move of the alias champion, in order.

MLflow keeps no history of aliases, and of two people who set one at the same time the last one wins without noticing.
But it numbers the versions of a registered model without ever giving a number twice, not even that of a deleted one.
So the moves of `fairvlm` are the versions of a second registered model, `fairvlm-promotions`: they hold no files, and
their tags say who moved what, when and why. docs/registry.md tells the whole protocol.

Call everything here inside `tracking.tracking`.
"""

from __future__ import annotations

import getpass
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from fairvlm_core.errors import FairVLMError
from fairvlm_core.registry import tracking
from fairvlm_core.registry.versions import MISSING, Registered, aliases

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
NONE = "none"
SUFFIX = "-promotions"
PROMOTION, ROLLBACK, BY_HAND = "promotion", "rollback", "by hand"
INTENDED, DONE, LOST, ABANDONED = "intended", "done", "lost", "abandoned"
# Tags of a version that was promoted: at, by and because.
PROMOTED = "promoted_"
# Seconds after which a move that was begun counts as interrupted. MLflow's client repeats a request for one minute.
PATIENCE = 120
DESCRIPTION = (
    "The ledger of promotions: each version is one move of the alias champion of {name}, with its tags. "
    "fairvlm promote and fairvlm rollback write it, fairvlm audit reads it. Delete nothing here."
)


@dataclass(frozen=True)
class Move:
    """One entry.

    Attributes:
        number: of the entry; the ledger's order.
        made: when the server took it, in milliseconds since 1970 by the server's clock.
        kind: promotion, rollback or by hand.
        origin, target: number of the version that was champion, and of the one to become it; or "none".
        after: number of the last entry that its writer had seen; 0 where there was none.
        state: intended, done, lost or abandoned, as the tag says; `Ledger.state` knows better.
        token: of the one attempt to write it. MLflow's client repeats a request whose answer was lost.
        tags: all of them: by, because, overridden, gate_verdict, gate_reasons, fingerprint, at ...
    """

    number: int
    made: int
    kind: str
    origin: str
    target: str
    after: int
    state: str
    token: str
    tags: Mapping[str, str]

    @property
    def at(self) -> str:
        """When the server took it, to the second, in UTC."""
        return f"{datetime.fromtimestamp(self.made / 1000, UTC):%Y-%m-%d %H:%M:%S}"

    @property
    def by(self) -> str:
        """Who moved it."""
        return self.tags.get("by", "unknown")

    def told(self) -> str:
        """The move in words, for a message."""
        who = "Somebody" if self.by == "unknown" else self.by
        what = {
            PROMOTION: f"{who} promoted version {self.target}",
            ROLLBACK: f"{who} rolled back to version {self.target}",
            BY_HAND: f"Somebody moved the champion to {version(self.target)} by hand",
        }[self.kind]
        return f"{what} at {self.at} UTC"


@dataclass(frozen=True)
class Ledger:
    """What the ledger and the aliases said at one moment.

    Attributes:
        name: of the registered model whose moves these are.
        moves: all entries, in order.
        aliases: alias -> number of the version.
    """

    name: str
    moves: Sequence[Move]
    aliases: Mapping[str, str]

    @property
    def last(self) -> int:
        """Number of the last entry; 0 where there is none."""
        return self.moves[-1].number if self.moves else 0

    @property
    def champion(self) -> str:
        """The version that the alias means, whoever moved it."""
        return self.aliases.get(CHAMPION, NONE)

    def state(self, move: Move) -> str:
        """What became of an entry: of those that were written after the same one, only the first counts."""
        return move.state if first_after(self.moves, move.after).number == move.number else LOST

    def unfinished(self) -> list[Move]:
        """The moves that somebody is making, or was making when he was interrupted."""
        return [move for move in self.moves if self.state(move) == INTENDED]

    def made(self) -> list[Move]:
        """The moves that were made, those included that reached the alias and were interrupted then."""
        return [
            move
            for move in self.moves
            if (state := self.state(move)) == DONE or (state == INTENDED and move.target == self.champion)
        ]

    def recorded(self) -> str:
        """The version that is champion if nobody moved the alias by hand."""
        made = self.made()
        return made[-1].target if made else NONE

    def champions(self) -> list[str]:
        """The champions, of which each one replaced the one before it; the last one is in use. Rollbacks undo."""
        found: list[str] = []
        for move in self.made():
            if move.kind != ROLLBACK:
                found.append(move.target)
            elif move.target in found:
                del found[len(found) - found[::-1].index(move.target) :]
            else:  # to what the alias `previous` meant before there was a ledger
                found = [move.target]
        return found

    def earlier(self) -> list[str]:
        """The champions before the one in use, the nearest last; before there was a ledger, what `previous` means."""
        champions = self.champions()
        found = [number for number in champions[:-1] if number != NONE]
        if len(champions) < 2 and PREVIOUS in self.aliases:
            found = [self.aliases[PREVIOUS]]
        while found and found[-1] == self.champion:
            found.pop()
        return found


def ledger_name(name: str) -> str:
    """The registered model that holds the moves of `name`."""
    return f"{name}{SUFFIX}"


def look(name: str) -> Ledger:
    """Read the ledger and the aliases; there may be none of either."""
    return Ledger(name, [], {}) if is_absent() else Ledger(name, read(name), aliases(name))


def is_absent() -> bool:
    """Whether the server is a database file that does not exist; MLflow would create it when it is asked."""
    database = tracking.SQLITE.fullmatch(mlflow.get_registry_uri())
    return database is not None and not Path(database[1]).is_file()


def read(name: str) -> list[Move]:
    """All entries, in order."""
    client, found, page = mlflow.MlflowClient(), [], None
    while True:
        part = client.search_model_versions(f"name='{ledger_name(name)}'", max_results=1000, page_token=page)
        found += [move for item in part if (move := _move(item)) is not None]
        page = part.token
        if not page:
            return sorted(found, key=lambda move: move.number)


def first_after(moves: Iterable[Move], after: int) -> Move:
    """Of the entries whose writers had seen the same last one, the one that was first: it alone counts."""
    return min((move for move in moves if move.after == after), key=lambda move: move.number)


def claim(
    seen: Ledger,
    kind: str,
    target: str,
    tags: Mapping[str, str],
    *,
    origin: str | None = None,
    by: str | None = None,
    patience: float = PATIENCE,
) -> Move:
    """Write the intention to move the champion; what was `seen` must still hold, and nobody else may be moving it.

    Returns:
        The entry; only its writer may move the alias now.

    Raises:
        FairVLMError: when somebody else was faster, or is moving it right now.
    """
    token = uuid.uuid4().hex
    entry = {
        **tags,
        "kind": kind,
        "alias": CHAMPION,
        "from": origin or seen.champion,
        "to": target,
        "after": str(seen.last),
        "by": by or who(),
        "at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "state": INTENDED,
        "token": token,
    }
    _write(seen.name, entry, (target, seen.champion))
    now = look(seen.name)
    written = [move for move in now.moves if move.token == token]
    mine = written[0]
    winner = first_after(now.moves, mine.after)
    if winner.token != token:
        _drop(now.name, written)
        raise _late(now.name, f"{winner.told()}, in the meantime.")
    begun = [move for move in now.unfinished() if move.number < mine.number]
    for move in begun:
        waited = (mine.made - move.made) / 1000
        if waited < patience:
            _drop(now.name, written)
            raise FairVLMError(
                f"Somebody is moving the champion right now: {move.by}, since {move.at} UTC, to "
                f"{version(move.target)}. Nothing was changed.",
                where=f"entry {move.number} of {ledger_name(now.name)}",
                mend=f"Try again in {max(1, round(patience - waited))} seconds: if it was interrupted, it no longer "
                "counts then.",
            )
    for move in begun:
        # What a person who is gone had in mind is not done in his name: it is written down how far it came.
        mark(now.name, move, DONE if now.champion == move.target else ABANDONED)
    if now.champion != seen.champion:
        _drop(now.name, written)
        raise _late(now.name, f"The champion was moved in the meantime, to {version(now.champion)}.")
    return mine


def carry_out(name: str, mine: Move, below: str | None) -> None:
    """Let `previous` mean `below` (or nothing), then `champion` the target of the entry, and see that it stayed so.

    Raises:
        FairVLMError: when somebody took over meanwhile.
    """
    client = mlflow.MlflowClient()
    told = (
        f"Version {mine.target} of {name} was to become champion; whether it did, `fairvlm audit` tells. The next "
        f"promotion or rollback, {PATIENCE} seconds from now or later, tidies up."
    )
    with tracking.noting(told):
        _require_mine(name, mine)
        if below is None:
            client.delete_registered_model_alias(name, PREVIOUS)
        else:
            client.set_registered_model_alias(name, PREVIOUS, below)
        _require_mine(name, mine)
        client.set_registered_model_alias(name, CHAMPION, mine.target)
        if mine.kind == PROMOTION:
            because = mine.tags.get("because") or "All checks passed."
            for key, value in {"at": mine.tags["at"], "by": mine.by, "because": because}.items():
                client.set_model_version_tag(name, mine.target, f"{PROMOTED}{key}", value)
        mark(name, mine, DONE)
        now = look(name)
    entry = next(move for move in now.moves if move.number == mine.number)
    later = [move for move in now.moves if move.number > mine.number and now.state(move) in (DONE, INTENDED)]
    if not later and (now.champion, now.state(entry)) != (mine.target, DONE):
        raise FairVLMError(
            f"Version {mine.target} became champion, and at once somebody moved the alias to {version(now.champion)}.",
            where=f"models:/{name}@{CHAMPION}",
            mend="Look at `fairvlm audit`, agree with whoever did it, and promote again.",
        )


def note_by_hand(seen: Ledger, tags: Mapping[str, str], *, patience: float = PATIENCE) -> Ledger:
    """Write down that somebody moved the champion without `fairvlm`; returns what the ledger says then."""
    told = {**tags, "noted_by": who()}
    # The alias has moved already; from where, the ledger knows.
    mine = claim(seen, BY_HAND, seen.champion, told, origin=seen.recorded(), by="unknown", patience=patience)
    mark(seen.name, mine, DONE)
    return look(seen.name)


def judged(found: Registered | None) -> dict[str, str]:
    """What an entry keeps of a version: its identity and how the gate judged it."""
    tags = found.tags if found else {}
    return {
        "gate_verdict": tags.get("gate_verdict", "no gate"),
        "gate_reasons": shortened(tags.get("gate_reasons", ""), 500),
        "fingerprint": tags.get("fingerprint", "unknown"),
    }


def mark(name: str, move: Move, state: str) -> None:
    """Write what became of an entry."""
    mlflow.MlflowClient().set_model_version_tag(ledger_name(name), str(move.number), "state", state)


def who() -> str:
    """Whose name an entry bears: the server's user, else the machine's."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that has no name
        return f"user {os.getuid()}"


def version(number: str) -> str:
    """A version in a sentence.

    >>> version("3"), version("none")
    ('version 3', 'no version')
    """
    return "no version" if number == NONE else f"version {number}"


def shortened(text: str, length: int) -> str:
    """The text, cut with an ellipsis where it is longer."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _move(item: Any) -> Move | None:
    """An entry as MLflow gives it; none where a version of the ledger is no entry."""
    tags = dict(item.tags)
    if tags.get("kind") not in (PROMOTION, ROLLBACK, BY_HAND) or not tags.get("after", "").isdecimal():
        return None
    return Move(
        number=int(item.version),
        made=item.creation_timestamp,
        kind=tags["kind"],
        origin=tags.get("from", NONE),
        target=tags.get("to", NONE),
        after=int(tags["after"]),
        state=tags.get("state", INTENDED),
        token=tags.get("token", ""),
        tags=tags,
    )


def _write(name: str, entry: Mapping[str, str], numbers: Iterable[str]) -> None:
    """Append an entry. MLflow wants a source that exists: the version that it is about, or any other one."""
    client = mlflow.MlflowClient()
    ledger = ledger_name(name)
    try:
        client.get_registered_model(ledger)
    except MlflowException as error:
        if error.error_code != MISSING:
            raise
        tracking.ensure_registered_model(ledger)
        client.update_registered_model(ledger, DESCRIPTION.format(name=name))
    there = sorted((str(item.version) for item in client.search_model_versions(f"name='{name}'")), key=int)
    source = next((number for number in (*numbers, *there[::-1]) if number in there), None)
    if source is None:
        raise FairVLMError(
            f"The registered model {name} has no version.", where=f"models:/{name}", mend="Register a model first."
        )
    client.create_model_version(ledger, f"models:/{name}/{source}", tags=dict(entry), await_creation_for=0)


def _require_mine(name: str, mine: Move) -> None:
    """Between two steps of a move, which may be minutes apart on a bad line: nobody has given it up in my place."""
    tags = mlflow.MlflowClient().get_model_version(ledger_name(name), str(mine.number)).tags
    if tags["state"] != INTENDED:
        raise FairVLMError(
            f"This took so long that somebody else took it for interrupted: version {mine.target} is not promoted.",
            where=f"entry {mine.number} of {ledger_name(name)}",
            mend="Look at `fairvlm audit`, and try again.",
        )


def _drop(name: str, written: Iterable[Move]) -> None:
    for move in written:
        mark(name, move, LOST)


def _late(name: str, what: str) -> FairVLMError:
    return FairVLMError(
        f"{what} Nothing was changed.",
        where=f"models:/{name}@{CHAMPION}",
        mend="Look at it with `fairvlm audit`, and try again: the checks are made against the champion in use.",
    )
