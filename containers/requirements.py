"""Print what the image installs, a requirement a line: `python requirements.py pyproject.toml`.

That is what the project needs, and Kubeflow's SDK for training over several nodes. Versions are the lock's.
"""

import sys
import tomllib

with open(sys.argv[1], "rb") as handle:
    project = tomllib.load(handle)["project"]
print(*project["dependencies"], *project["optional-dependencies"]["trainer"], sep="\n")
