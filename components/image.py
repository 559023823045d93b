"""The one container image that every component runs in.

Its tag is part of the key of Kubeflow's cache: give each build its own tag (the commit), never `latest`, or a changed
step would be answered from the results of the old code. Read when the pipeline is compiled:
`FAIRVLM_IMAGE=registry.example.org/fairvlm:3f2c1ab python -m pipelines.compile`.
"""

import os

IMAGE = os.environ.get("FAIRVLM_IMAGE", "fairvlm:0.1.0")
