"""Promote a version to champion, or roll back to the one before; docs/registry.md tells both from the user's side."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fairvlm_core.errors import ConfigError, FairVLMError
from fairvlm_core.registry import evidence, ledger, tracking, transfer, versions
from fairvlm_core.registry.evidence import Evidence, Objection
from fairvlm_core.registry.ledger import NONE, Ledger
from fairvlm_core.registry.transfer import Package
from fairvlm_core.registry.versions import Registered

WORDS = 3  # a reason has at least so many
LENGTH = 1000  # and at most so many characters
ALL_THE_SAME = "Or give the reason to do it all the same with --because TEXT: it is kept with your name."


@dataclass(frozen=True)
class Moved:
    """What a promotion or rollback did: numbers of the champion, and of the version that `previous` means now."""

    name: str
    server: str
    champion: str
    previous: str | None


@dataclass(frozen=True)
class Target:
    """Another server, and the name there."""

    uri: str
    name: str


def promote(
    name: str,
    wanted: str,
    *,
    tracking_uri: str,
    because: str = "",
    cohort: Path | None = None,
    to: Target | None = None,
    ask: Callable[[str], str] | None = None,
    say: Callable[[str], None] = print,
    patience: float = ledger.PATIENCE,
) -> Moved:
    """Make a version champion, here or on another server.

    Args:
        wanted: alias or number of the version.
        because: why, of at least three words where something speaks against it that can be overridden.
        cohort: folder with cohort.parquet, whose test images must be those that the gate saw; without one, those of
            the newest version must be.
        ask: asks the user why, when something speaks against it and no reason was given; is told what.
        say: tells the user what was found on the way.
        patience: seconds after which somebody else's move counts as interrupted.

    Raises:
        FairVLMError: when something speaks against it, with all of it; or somebody else was faster.
    """
    because = _reason(because)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with tracking.tracking(tracking_uri) as server:
            found = versions.find(name, wanted)
            if found is None:
                raise FairVLMError(
                    f"No version of {name} has the alias {wanted}.",
                    where=server,
                    mend="Give the number of a version, or register one: it becomes challenger.",
                )
            known = evidence.examine(found, folder / "version")
            changed = evidence.against_test_set(known, name, cohort)
            if to is None:
                seen = _noted(ledger.look(name), say, patience)
                told = _weighed(known, [*changed, *_champion(known, seen)], because, server, ask)
                return _moved(seen, found.number, told, server, patience)
            package = None if _final(known) else transfer.pack(found, known.artifact, folder / "record", server)
        with transfer.other_server(to.uri) as there:
            seen = _noted(ledger.look(to.name), say, patience)
            told = _weighed(known, [*changed, *_champion(known, seen)], because, there, ask)
            number = _brought(package, to.name, folder / "there", there, say)
            return _moved(seen, number, told, there, patience)


def rollback(
    name: str,
    *,
    tracking_uri: str,
    because: str = "",
    say: Callable[[str], None] = print,
    patience: float = ledger.PATIENCE,
) -> Moved:
    """Make the champion before the one in use champion again; the gate is not asked, its files must be whole.

    Raises:
        FairVLMError: when there was none before, or it cannot be loaded any more; or somebody else was faster.
    """
    because = _reason(because)
    with tempfile.TemporaryDirectory() as scratch, tracking.tracking(tracking_uri) as server:
        seen = _noted(ledger.look(name), say, patience)
        earlier = seen.earlier()
        if not earlier:
            raise FairVLMError(
                f"There is no champion of {name} to go back to.",
                where=f"models:/{name}@{ledger.PREVIOUS} on {server}",
                mend="Promote the version that is to be in use.",
            )
        target = earlier[-1]
        try:
            found = versions.find(name, target)
        except FairVLMError as error:
            mend = "Promote another version: what was deleted does not come back."
            raise FairVLMError(f"The champion before is gone. {error.what}", where=error.where, mend=mend) from None
        assert found
        _, broken = evidence.whole(found, Path(scratch))
        if broken:
            raise _refused(
                f"Version {target} of {name} was champion before, and cannot be again:", broken, found, server
            )
        told = {**ledger.judged(found), "because": because}
        mine = ledger.claim(seen, ledger.ROLLBACK, target, told, patience=patience)
        below = _there(name, earlier, target)
        ledger.carry_out(name, mine, below)
        return Moved(name, server, target, below)


def _noted(seen: Ledger, say: Callable[[str], None], patience: float) -> Ledger:
    """If somebody moved the champion in MLflow's UI, write that down first, so that the evidence is not lost."""
    if seen.champion == seen.recorded():
        return seen
    say(
        f"Somebody moved the champion by hand, from {ledger.version(seen.recorded())} to "
        f"{ledger.version(seen.champion)}: this is written down first."
    )
    return ledger.note_by_hand(seen, ledger.judged(_in_use(seen)), patience=patience)


def _champion(known: Evidence, seen: Ledger) -> list[Objection]:
    return evidence.against_champion(known, seen.name, _in_use(seen))


def _in_use(seen: Ledger) -> Registered | None:
    return None if seen.champion == NONE else versions.find(seen.name, seen.champion)


def _final(known: Evidence) -> bool:
    return any(objection.final for objection in known.objections)


def _weighed(
    known: Evidence, others: Sequence[Objection], because: str, server: str, ask: Callable[[str], str] | None
) -> dict[str, str]:
    """What the ledger is to keep of the decision, where nothing stands against it that the reason does not outweigh."""
    objections = [*known.objections, *others]
    final = any(objection.final for objection in objections)
    if objections and (final or not because):
        heading = f"Version {known.found.number} of {known.found.name} is not promoted:"
        refused = _refused(heading, objections, known.found, server)
        if final or ask is None:
            raise refused
        because = _reason(ask(str(refused)))
        if not because:
            raise refused
    overridden = ", ".join(dict.fromkeys(objection.about for objection in objections))
    verdict = {"gate_verdict": known.verdict}
    return {**ledger.judged(known.found), **verdict, "because": because, "overridden": overridden}


def _refused(heading: str, objections: Sequence[Objection], found: Registered, server: str) -> FairVLMError:
    """Everything that speaks against it, and how to mend it."""
    lines = [f"- {objection.reason}" for objection in objections]
    mends = list(dict.fromkeys(objection.mend for objection in objections))
    if not any(objection.final for objection in objections):
        mends.append(ALL_THE_SAME)
    return FairVLMError("\n".join([heading, *lines]), where=f"{found.uri} on {server}", mend=" ".join(mends))


def _brought(package: Package | None, name: str, folder: Path, server: str, say: Callable[[str], None]) -> str:
    """The number of the version here that is the same model; it is logged here if none is."""
    assert package  # without its files, it has been refused
    number = transfer.copied(name, package.tags, folder)
    if number is not None:
        say(f"Version {number} of {name} on {server} is the same model: nothing is copied.")
        return number
    with tracking.noting(f"Nothing was promoted on {server}. Promote again: what has arrived is not sent twice."):
        number = transfer.log_again(package, name, folder)
    say(f"{package.tags['copied_from']} is version {number} of {name} on {server} now.")
    return number


def _moved(seen: Ledger, number: str, told: Mapping[str, str], server: str, patience: float) -> Moved:
    """Claim the move in the ledger, and make it."""
    mine = ledger.claim(seen, ledger.PROMOTION, number, told, patience=patience)
    earlier = [*seen.earlier(), *([seen.champion] if seen.champion != NONE else [])]
    below = _there(seen.name, earlier, number)
    ledger.carry_out(seen.name, mine, below)
    return Moved(seen.name, server, number, below)


def _there(name: str, numbers: Sequence[str], but: str) -> str | None:
    """The last of these versions that still exists and is another one."""
    for number in reversed(numbers):
        if number == but:
            continue
        with suppress(FairVLMError):
            versions.find(name, number)
            return number
    return None


def _reason(text: str) -> str:
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    if text and (len(text.split()) < WORDS or len(text) > LENGTH):
        raise ConfigError(
            f'"{ledger.shortened(text, 40)}" is no reason that somebody will understand in a year.',
            where="--because",
            mend=f"Write a sentence, of {WORDS} words or more and at most {LENGTH} characters.",
        )
    return text
