"""A TrainJob on two containers, by the container backend of Kubeflow's SDK: the image, two machines, one model.

Needs podman, whose networks resolve the names of containers (aardvark-dns, or the CNI plugin dnsname), the SDK
(`pip install "fairvlm[trainer]"`) and an image of this package, which FAIRVLM_TEST_IMAGE names. Where podman wants a
configuration of its own, CONTAINERS_CONF names it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import TASKS, write_bases, write_cohort_with_images

from fairvlm_core.files import read_json
from fairvlm_core.kubeflow.call import run_step
from fairvlm_core.kubeflow.trainjob import Local, train_job
from fairvlm_core.steps import execute, stage1

pytestmark = pytest.mark.slow
IMAGE = os.environ.get("FAIRVLM_TEST_IMAGE", "localhost/fairvlm:test")
PARAMS = {"batch_size": 32, "epochs": 1, "lora_rank": 4, "learning_rate": 1e-3}
# The SDK starts a login shell, in which Debian's /etc/profile forgets the path of the image.
SHELL = "export PATH=/opt/fairvlm/bin:$PATH\n"


@pytest.fixture
def socket(tmp_path):
    """The socket of a podman that can run the image."""
    pytest.importorskip("kubeflow.trainer", reason='Skipped: Kubeflow\'s SDK (pip install "fairvlm[trainer]").')
    if shutil.which("podman") is None or os.geteuid():
        pytest.skip("Skipped: podman is not installed, or this user is not root, who may remove what containers write.")
    if subprocess.run(["podman", "image", "exists", IMAGE], check=False).returncode:
        pytest.skip(f"Skipped: there is no image {IMAGE} (FAIRVLM_TEST_IMAGE names another).")
    tried = subprocess.run(["podman", "run", "--rm", IMAGE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"Skipped: podman cannot run the image: {tried.stderr.strip().splitlines()[-1]}")
    path = tmp_path / "podman.sock"
    service = subprocess.Popen(["podman", "system", "service", "--time=0", f"unix://{path}"])
    try:
        for _ in range(100):
            if path.exists():
                break
            time.sleep(0.1)
        yield f"unix://{path}"
    finally:
        service.terminate()
        service.wait(30)


def test_two_containers_train_what_one_process_trains(socket, tmp_path, monkeypatch, capsys):
    from kubeflow.trainer import ContainerBackendConfig
    from kubeflow.trainer.backends.container.types import TrainingRuntimeSource
    from safetensors.torch import load_file

    place, job = tmp_path / "place", f"fairvlm-{uuid.uuid4().hex[:8]}"
    write_cohort_with_images(place / "cohort", TASKS["binary"])
    write_bases(place / "base", TASKS["binary"])
    inputs = {"cohort": place / "cohort", "images": place / "cohort", "base": place / "base"}
    execute("stage1", stage1.Config(**PARAMS), inputs, {"out": place / "one"})

    # The SDK mounts this folder of the home of whoever starts the job. The image's user is somebody else here; on a
    # cluster it is the user of both pods, and may read what safetensors keeps from others.
    for file in (place / "base").rglob("*.safetensors"):
        file.chmod(0o644)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    workspace = tmp_path / "home" / ".kubeflow" / "trainer" / "containers" / job
    (workspace / "stage1").mkdir(parents=True)
    for folder in (workspace, workspace / "stage1"):
        folder.chmod(0o777)
    (workspace / "shell").write_text(SHELL)
    env = {"BASH_ENV": "/workspace/shell", "OMP_NUM_THREADS": "1"}
    backend = ContainerBackendConfig(
        container_runtime="docker",  # podman answers to docker's API too, and the SDK's own client for it is not needed
        container_host=socket,
        pull_policy="Never",
        runtime_source=TrainingRuntimeSource(sources=[]),  # or it asks GitHub for the runtimes; the SDK has its own
    )
    start = partial(train_job, nodes=2, image=IMAGE, workspace=workspace, poll=1.0, local=Local(backend, job, env=env))
    found = run_step("stage1", PARAMS, inputs, tmp_path / "out", start=start)

    assert found == read_json(tmp_path / "out" / "metrics.json", made_by="stage1")
    mine, wanted = (
        load_file(side / "adapter-stage1" / "adapter_model.safetensors") for side in (tmp_path / "out", place / "one")
    )
    assert mine.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-5)
    mine, wanted = (read_json(side / "history.json", made_by="stage1") for side in (tmp_path / "out", place / "one"))
    assert mine.keys() == wanted.keys()
    for phase, epochs in wanted.items():
        for a, b in zip(mine[phase], epochs, strict=True):
            assert a.keys() == b.keys()
            np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-3, atol=1e-5)
    assert f"TrainJob {job}: node-0 Complete, node-1 Complete." in capsys.readouterr().out
    # Containers, network and folder are gone.
    left = subprocess.run(
        ["podman", "ps", "--all", "--quiet", "--filter", f"name={job}"], capture_output=True, text=True
    )
    assert left.stdout == ""
    assert not workspace.exists()
