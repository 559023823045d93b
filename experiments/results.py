"""Write the tables of a document anew from the JSON of the experiments; it runs none of them.

python -m experiments.results docs/results.md results
"""

from __future__ import annotations

import sys
from pathlib import Path

from fairvlm_core.experiments.document import update

if __name__ == "__main__":
    done = update(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{len(done)} tables written: {', '.join(done) or 'none of them is there yet'}.")
