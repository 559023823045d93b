"""What the tests of deploy/ share: its overlays, built with kubectl."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import fairvlm_core

ROOT = Path(fairvlm_core.__file__).parent.parent
DEPLOY = ROOT / "deploy"
OVERLAYS = {  # and the namespace that each is for
    path.parent.name: yaml.safe_load(path.read_text())["namespace"]
    for path in sorted(DEPLOY.glob("overlays/*/kustomization.yaml"))
}


def documents(text):
    return [document for document in yaml.safe_load_all(text) if document]


def built(name):
    """What an overlay builds."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(DEPLOY / "overlays" / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # deprecated fields are reported there
    return documents(done.stdout)


def of_kind(manifests, kind):
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def named(manifests, kind, name):
    (manifest,) = [each for each in of_kind(manifests, kind) if each["metadata"]["name"] == name]
    return manifest
