"""Adapters: one module per published release, which turns its layout into a cohort.

An adapter is a module with a frozen dataclass `Options` (fields made with `option`, checked by `check`) and
`read(root, options, *, age_edges, seed, tolerance) -> Release`. Registering it is one line in `ADAPTERS`. What adapters
share is in `reading`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

from fairvlm_core.errors import ConfigError, nearest

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from PIL import Image

ADAPTERS: dict[str, str] = {
    "chexpert": "fairvlm_core.cohort.adapters.chexpert",
    "covid_chestxray": "fairvlm_core.cohort.adapters.covid_chestxray",
    "eyepacs": "fairvlm_core.cohort.adapters.eyepacs",
    "generated": "fairvlm_core.cohort.adapters.generated",
    "ham10000": "fairvlm_core.cohort.adapters.ham10000",
    "harvard_fairvlmed": "fairvlm_core.cohort.adapters.harvard_fairvlmed",
    "mimic_cxr": "fairvlm_core.cohort.adapters.mimic_cxr",
    "ol3i": "fairvlm_core.cohort.adapters.ol3i",
    "ptbxl": "fairvlm_core.cohort.adapters.ptbxl",
    "table": "fairvlm_core.cohort.adapters.table",
}


@dataclass(frozen=True)
class Release:
    """What an adapter read.

    Attributes:
        table: the cohort, with its task and group vocabularies.
        load: image key (the column `image`) -> picture: a PIL image, or uint8 [H, W] or [H, W, 3]. Called from several
            threads. Raises CohortError, naming the file and row, when the image cannot be read.
        counted: what was left out or is incomplete, reason -> number of rows; nothing is dropped without being counted.
    """

    table: pa.Table
    load: Callable[[str], np.ndarray | Image.Image]
    counted: dict[str, int] = field(default_factory=dict)


def require_known(name: str) -> None:
    """Raise a ConfigError that names the nearest adapter when there is none of this name."""
    if name not in ADAPTERS:
        raise ConfigError(f'There is no adapter "{name}".', where="dataset", mend=nearest(name, ADAPTERS))


def adapter(name: str) -> ModuleType:
    """The module of an adapter, imported when it is asked for.

    Raises:
        ConfigError: when there is none of this name.
    """
    require_known(name)
    return importlib.import_module(ADAPTERS[name])
