"""How a user goes on without a few bad rows or images: they are counted and listed, never silently dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fairvlm_core.errors import CohortError


@dataclass
class Tolerance:
    """How many rows or images may be left out because something is wrong with them (`--skip-bad`).

    Attributes:
        allowed: this many; 0 lets the first mistake stop the run.
        errors: what was wrong with those that were left out, in the order in which they were met.
    """

    allowed: int = 0
    errors: list[CohortError] = field(default_factory=list)

    def add(self, error: CohortError) -> None:
        """Leave out what this error is about, or raise it when too much has been left out already."""
        if len(self.errors) >= self.allowed:
            if self.allowed:
                raise CohortError(
                    f"More than {self.allowed} rows or images are bad; the last: {error.what}",
                    where=error.where,
                    mend=f"{error.mend} Or raise ingest.skip_bad.",
                )
            raise error
        self.errors.append(error)

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Leave out a row whose handling raises a CohortError.

        >>> tolerance = Tolerance(allowed=1)
        >>> with tolerance.skipping():
        ...     raise CohortError("An age cannot be read.")
        >>> len(tolerance.errors)
        1
        """
        try:
            yield
        except CohortError as error:
            self.add(error)
