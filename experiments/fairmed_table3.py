"""FairMed-VLM, Table 3: the gaps of the methods of Table 2, attribute by attribute.

fairvlm experiment fairmed_table3 --params params.yaml --out results/experiments

The layout is ours: the paper's Table 3 could not be read. What is left of its evaluation beside Table 2 (accuracy and
AUC) and Table 4 (ablations) are the demographic parity gap and the equalized odds difference of sex, of age, of the
cells of both, and their mean and maximum over the attributes. In the same `--out` nothing of Table 2 is done again.
"""

from __future__ import annotations

import dataclasses

from experiments.fairmed_table2 import EXPERIMENT as TABLE2
from fairvlm_core.experiments.grid import WIDE, Layout

EXPERIMENT = dataclasses.replace(
    TABLE2,
    name="fairmed_table3",
    title="The gaps of FairMed-VLM and the baselines by attribute",
    layout=Layout(WIDE, ("dpd", "eod"), worst=True),
)
