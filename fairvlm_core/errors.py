"""The one family of errors that users see: what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FairVLMError(Exception):
    """A mistake in the input that the user can mend.

    The CLI prints it without a traceback and exits with status 2.

    Args:
        what: one sentence that says what is wrong.
        where: file, row and column, as far as they are known.
        mend: one sentence that says what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__(what, where, mend)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"Where: {self.where}")
        if self.mend:
            lines.append(f"Mend:  {self.mend}")
        return "\n".join(lines)


class CohortError(FairVLMError):
    """A release, an image or a cohort table that cannot be used as it is."""


class ConfigError(FairVLMError):
    """A parameter that does not exist or has a value it cannot have."""


class CheckpointError(FairVLMError):
    """A model folder or a pretrained checkpoint that is missing or cannot be used."""


class PredictionsError(FairVLMError):
    """A predictions file that does not follow the contract."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Say which valid name was probably meant: `Did you mean "x"?`, or the list of valid names."""
    choices = sorted(valid)
    if not choices:
        return "There are none."
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f'Did you mean "{close[0]}"?' if close else f"Valid names: {', '.join(choices)}."
