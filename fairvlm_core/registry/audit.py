"""Audit: every move of the champion against the gate's verdicts, and what does not fit. Nothing is changed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow

from fairvlm_core.errors import CheckpointError, FairVLMError
from fairvlm_core.registry import evidence, ledger, versions
from fairvlm_core.registry.ledger import BY_HAND, CHALLENGER, CHAMPION, NONE, PREVIOUS, PROMOTED, Ledger
from fairvlm_core.registry.versions import Registered

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Finding:
    """Something that does not fit.

    Attributes:
        about: champion, verdict, unfinished, gate, files or ledger.
        current: whether it is about what is in use or about to be; what a later promotion has replaced is history.
    """

    about: str
    current: bool
    text: str


@dataclass(frozen=True)
class Audit:
    """What the ledger and the registry say, and where they do not agree."""

    name: str
    server: str
    aliases: Mapping[str, str]
    moves: Sequence[Mapping[str, Any]]
    findings: Sequence[Finding]

    @property
    def fits(self) -> bool:
        """Whether nothing is wrong with what is in use."""
        return not any(finding.current for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return {**asdict(self), "fits": self.fits}


def audit(name: str, *, server: str, files: bool = False) -> Audit:
    """Compare the aliases, the ledger, the gate's reports and, if wanted, the files of a registered model.

    Call it inside `tracking.tracking`; nothing is written.

    Args:
        server: the URI of this server without credentials, for the record.
        files: whether to fetch the files behind the aliases, and compare their fingerprint with the registered one.

    Raises:
        FairVLMError: when there is nothing of this name.
    """
    seen = _settled(name)
    there = {} if ledger.is_absent() else {str(item.version): _registered(item) for item in _all(name)}
    if not there and not seen.moves:
        raise FairVLMError(
            f"There is no version of {name}.", where=server, mend="Give the name and the server of the registry."
        )
    with tempfile.TemporaryDirectory() as scratch:
        findings = [
            *_by_hand(seen),
            *_verdicts(seen),
            *_unfinished(seen),
            *_gates(seen, there, Path(scratch)),
            *_ledger(seen, there),
            *(_files(seen, there, Path(scratch)) if files else ()),
        ]
    return Audit(name, server, dict(seen.aliases), [_row(seen, move) for move in seen.moves], findings)


def record(name: str) -> bool:
    """Write down a move that was made by hand; whether there was one."""
    seen = _settled(name)
    if seen.champion == seen.recorded():
        return False
    found = None if seen.champion == NONE else versions.find(name, seen.champion)
    ledger.note_by_hand(seen, ledger.judged(found))
    return True


def audit_table(found: Audit) -> Table:
    """The moves, for a person at a terminal; why they were made is told by `reasons`, for it may be long."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, title=f"Champions of {found.name} on {found.server}", title_justify="left")
    for heading in ("", "when (UTC)", "who", "what", "version", "gate", "state"):
        table.add_column(heading, no_wrap=heading in ("when (UTC)", "what", "version"))
    for move in found.moves:
        when = move["at"].replace("T", " ").removesuffix("Z")[:16]
        moved = f"{move['from']} → {move['to']}"
        cells = (move["number"], when, move["by"], move["kind"], moved, move["gate_verdict"], move["state"])
        # What people wrote is shown as it is: no markup, no control characters.
        table.add_row(*(Text(plain(str(cell))) for cell in cells))
    return table


def reasons(found: Audit) -> list[str]:
    """Why moves were made, where somebody said so; the findings tell it of those that were made against a check."""
    return [
        plain(f"Move {move['number']}, because: {move['because']}")
        for move in found.moves
        if move["because"] and not move["overridden"]
    ]


def _row(seen: Ledger, move: ledger.Move) -> dict[str, Any]:
    kept = ("because", "overridden", "gate_verdict", "gate_reasons", "fingerprint", "noted_by")
    return {
        "number": move.number,
        "at": move.at,
        "by": move.by,
        "kind": move.kind,
        "from": move.origin,
        "to": move.target,
        "state": seen.state(move),
        **{key: move.tags.get(key, "") for key in kept},
    }


def _settled(name: str) -> Ledger:
    """The ledger and the aliases of one moment: read until nobody has written in between."""
    seen = ledger.look(name)
    for _ in range(5):
        again = ledger.look(name)
        if again == seen:
            break
        seen = again
    return seen


def _by_hand(seen: Ledger) -> Iterator[Finding]:
    made = seen.made()
    if seen.champion != seen.recorded():
        yield Finding(
            "champion",
            True,
            f"Somebody moved the champion by hand: the ledger left it at {ledger.version(seen.recorded())}, and it is "
            f"{ledger.version(seen.champion)}. Promote a version, or write it down with --record.",
        )
    for move in made:
        if move.kind == BY_HAND:
            yield Finding(
                "champion",
                _in_use(seen, move),
                f"Move {move.number}: somebody moved the champion by hand from {ledger.version(move.origin)} to "
                f"{ledger.version(move.target)}, whose verdict was: {move.tags.get('gate_verdict', 'no gate')}.",
            )


def _verdicts(seen: Ledger) -> Iterator[Finding]:
    for move in seen.made():
        if move.kind == ledger.PROMOTION and move.tags.get("overridden"):
            yield Finding(
                "verdict",
                _in_use(seen, move),
                f"Move {move.number}: {move.by} promoted version {move.target} against the checks of "
                f"{move.tags['overridden']} (verdict: {move.tags.get('gate_verdict', 'no gate')}), because: "
                f"{move.tags.get('because', '')}",
            )


def _unfinished(seen: Ledger) -> Iterator[Finding]:
    for move in seen.unfinished():
        reached = "The alias has moved" if move.target == seen.champion else "The alias has not moved"
        yield Finding(
            "unfinished",
            True,
            f"Move {move.number} ({move.kind} to {ledger.version(move.target)} by {move.by}, {move.at} UTC) is being "
            f"made right now, or was interrupted. {reached}. The next promotion or rollback tidies up.",
        )


def _gates(seen: Ledger, there: Mapping[str, Registered], folder: Path) -> Iterator[Finding]:
    """Versions behind the aliases without a gate; and reports of the gate that are no longer what was registered."""
    aliased = {seen.aliases[alias]: alias for alias in (PREVIOUS, CHALLENGER, CHAMPION) if alias in seen.aliases}
    promoted = {move.target for move in seen.made()} - {NONE}
    for number in sorted({*aliased, *promoted} & there.keys(), key=int):
        found = there[number]
        current = aliased.get(number) in (CHAMPION, CHALLENGER)
        _, verdict, doubt = evidence.read_gate(found, folder / number)
        if doubt and (current or verdict == "altered"):
            alias = f" ({aliased[number]})" if number in aliased else ""
            yield Finding("gate", current, f"Version {number}{alias}: {doubt.reason}")


def _ledger(seen: Ledger, there: Mapping[str, Registered]) -> Iterator[Finding]:
    """Whether the ledger and the versions' tags are what they were."""
    numbers = {move.number for move in seen.moves}
    gone = sorted(set(range(1, seen.last + 1)) - numbers)
    if gone:
        yield Finding("ledger", True, f"Entries of the ledger were deleted: {', '.join(map(str, gone))}.")
    made = [move for move in seen.made() if move.target != NONE]
    promoted = {move.target for move in made}
    for number, found in there.items():
        if f"{PROMOTED}at" in found.tags and number not in promoted:
            yield Finding(
                "ledger",
                True,
                f"Version {number} was promoted at {found.tags[f'{PROMOTED}at']}, and the ledger has no such move.",
            )
    for number in promoted & there.keys():
        last = [move for move in made if move.target == number][-1]
        now, then = there[number].tags.get("fingerprint", "unknown"), last.tags.get("fingerprint", "unknown")
        if now != then:
            text = f"Version {number} has another fingerprint than when it became champion (move {last.number})."
            yield Finding("ledger", number == seen.champion, text)


def _files(seen: Ledger, there: Mapping[str, Registered], folder: Path) -> Iterator[Finding]:
    for alias in (CHAMPION, PREVIOUS, CHALLENGER):
        found = there.get(seen.aliases.get(alias, NONE))
        if found is None:
            continue
        try:
            artifact = versions.fetch(found, folder / f"files-{alias}")
        except CheckpointError as error:
            yield Finding("files", True, f"Version {found.number} ({alias}): {error.what}")
            continue
        if versions.fingerprint(artifact) != found.tags.get("fingerprint"):
            text = f"Version {found.number} ({alias}): its files are not those that were registered."
            yield Finding("files", True, text)


def _in_use(seen: Ledger, move: ledger.Move) -> bool:
    """Whether this is the move that made the champion in use champion."""
    return move.target == seen.champion and seen.made()[-1] == move


def _all(name: str) -> Iterator[Any]:
    page = None
    while True:
        part = mlflow.MlflowClient().search_model_versions(f"name='{name}'", max_results=1000, page_token=page)
        yield from part
        page = part.token
        if not page:
            return


def _registered(item: Any) -> Registered:
    return Registered(item.name, str(item.version), None, item.run_id, dict(item.tags))


def plain(text: str) -> str:
    """What people wrote, without what a terminal would take for a command.

    >>> plain("so it\\x1b[31m was")
    'so it [31m was'
    """
    return "".join(letter if letter.isprintable() else " " for letter in text)
