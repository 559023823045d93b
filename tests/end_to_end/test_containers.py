"""The image, and the compiled pipeline in it: each step in a container of its own, on a Podman of this machine."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from small_run import SMALL

import fairvlm_core
from fairvlm_core.steps import STEPS
from pipelines.compile import COMPILED, compiled

pytestmark = pytest.mark.slow

ROOT = Path(fairvlm_core.__file__).parent.parent
WHEELS = ROOT / "build" / "wheels"
# No version of it is in the lock, which is of what is installed; the Dockerfile says which.
BUILD_TOOL = re.search(r'"(setuptools==[\d.]+)"', (ROOT / "Dockerfile").read_text())[1]


def call(*command, **more):
    """Run a command to its end; a failure tells what the command said."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def podman():
    """Podman answers on this machine, with the settings that a job without systemd needs."""
    if not shutil.which("podman"):
        pytest.skip("Podman is missing, so nothing was run in containers.")
    with pytest.MonkeyPatch.context() as patch:
        if os.getuid() == 0 and not Path("/run/systemd/system").exists():
            patch.setenv("CONTAINERS_CONF", str(ROOT / "containers" / "containers.conf"))
        found = subprocess.run(["podman", "info"], capture_output=True, text=True)
        if found.returncode:
            pytest.skip(f"Podman does not work here, so nothing was run in containers. It says: {found.stderr[-300:]}")
        yield


@pytest.fixture(scope="module")
def image(podman):
    """The image of this working tree, from wheels that are fetched once for each lock."""
    if not os.environ.get("BASE_IMAGE") and not (os.getuid() == 0 and shutil.which("debootstrap")):
        pytest.skip("BASE_IMAGE is not set, and debootstrap or its right to make one is missing.")
    WHEELS.mkdir(parents=True, exist_ok=True)
    lock, fetched = (ROOT / "requirements.lock").read_text(), WHEELS / "requirements.lock"
    with (WHEELS.parent / "containers.lock").open("w") as handle:  # another worker may want the same
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not fetched.exists() or fetched.read_text() != lock:
            wanted = ["--requirement", ROOT / "requirements.lock", BUILD_TOOL]
            call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", WHEELS, *wanted)
            fetched.write_text(lock)
        base = os.environ.get("BASE_IMAGE") or call(ROOT / "containers" / "base.sh").strip()
        environment = {**os.environ, "BASE_IMAGE": base, "IMAGE": "localhost/fairvlm:tested"}
        said = call(ROOT / "containers" / "build.sh", "--wheels", WHEELS, env=environment)
    name, digest = said.strip().split("@")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
    return name


@pytest.fixture(scope="module")
def daemon(podman, tmp_path_factory):
    """Podman behind a socket that speaks Docker's language; its address."""
    socket = tmp_path_factory.mktemp("podman") / "podman.sock"
    service = subprocess.Popen(["podman", "system", "service", "--time", "0", f"unix://{socket}"])
    try:
        while not socket.exists():
            assert service.poll() is None, "Podman's service ended."
            time.sleep(0.1)
        yield f"unix://{socket}"
    finally:
        service.terminate()
        service.wait()


def inside(image, *command, user="1234567:0"):
    """What a command says in a container as strict as a cluster's, by default as a user that the image has not met."""
    strict = ["--read-only", "--tmpfs", "/tmp", "--network", "none", "--cap-drop", "all", "--user", user]
    return call("podman", "run", "--rm", *strict, image, *command)


def test_the_image_lists_the_locked_versions_of_all_that_the_project_needs(image):
    listed = json.loads(inside(image, "cat", "/usr/share/sbom/fairvlm.cdx.json"))
    assert listed["metadata"]["component"]["name"] == "fairvlm"
    found = {part["purl"] for part in listed["components"]}
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split() if "==" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = closure([*project["dependencies"], *project["optional-dependencies"]["trainer"]])
    assert {"torch", "kfp", "mlflow", "dvc", "kubeflow"} <= needed
    for name, version in lock.items():
        purl = f"pkg:pypi/{normalised(name)}@{version}"
        present = any(part.split("+")[0].split("%2B")[0] == purl for part in found)
        assert present == (normalised(name) in needed), name
    assert any(part.startswith("pkg:deb/debian/libc6@") for part in found)


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements):
    """Names of what these need, and what that needs, by the metadata of what is installed here."""
    from packaging.requirements import Requirement

    seen, waiting = set(), [(Requirement(line), "") for line in requirements]
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        for inner in {"", *wanted.extras} - {found for name, found in seen if name == normalised(wanted.name)}:
            seen.add((normalised(wanted.name), inner))
            waiting += [(Requirement(line), inner) for line in metadata.requires(wanted.name) or []]
    return {name for name, _ in seen}


def test_the_image_has_no_compiler_and_starts_for_any_user(image):
    assert "Usage" in inside(image, "fairvlm", "--help")
    missing = "import shutil; print([c for c in ('cc', 'gcc', 'g++', 'clang', 'make', 'ld') if shutil.which(c)])"
    assert inside(image, "python3", "-c", missing).strip() == "[]"
    about = json.loads(call("podman", "image", "inspect", image))[0]
    assert about["Config"]["User"] == "10001:0"
    labels = about["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == metadata.version("fairvlm")
    assert labels["org.opencontainers.image.revision"] != "unknown"


@pytest.fixture
def start(image, daemon, tmp_path):
    """Run the pipeline with the small parameters and those given; the finished process, and the folder of its tasks."""

    def run(**params):
        content = {step: {**SMALL.get(step, {}), **params.get(step, {})} for step in STEPS}
        content["evaluate"] = {"resamples": 100}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
        words = ["--image", image, "--root", tmp_path / "root", "--params", tmp_path / "params.yaml"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.local", *map(str, words)],
            cwd=ROOT,
            env={**environment, "DOCKER_HOST": daemon},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done, next((tmp_path / "root").glob("fairvlm-*"), None)

    return run


def test_every_step_runs_in_a_container_to_the_report_and_the_registered_model(start, tmp_path):
    done, folder = start()
    assert done.returncode == 0, done.stdout[-5000:]
    parts = compiled(COMPILED)[0]["components"]
    graphs = [compiled(COMPILED)[0]["root"], *parts.values()]
    tasks = {name: task for graph in graphs for name, task in graph.get("dag", {}).get("tasks", {}).items()}
    steps = {name for name, task in tasks.items() if "executorLabel" in parts[task["componentRef"]["name"]]}
    finished = {path.parent.name: path.stat() for path in folder.glob("*/executor_output.json")}
    assert set(finished) == steps
    if os.getuid() == 0:
        assert {stat.st_uid for stat in finished.values()} == {10001}
    assert "<html" in (folder / "compare" / "out" / "report.html").read_text()
    assert f"The report: {folder}/compare/out/report.html" in done.stdout
    assert json.loads((folder / "register" / "out" / "registration.json").read_text())["alias"] == "challenger"

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/root/mlflow.db")
    (registered,) = client.search_registered_models()
    assert int(client.get_model_version_by_alias(registered.name, "challenger").version) == 1

    left = call("podman", "ps", "--all", "--quiet", "--filter", f"volume={tmp_path}/root")
    assert not left, "containers were left"


def test_a_step_that_fails_fails_the_run_and_nothing_after_it_starts(start):
    done, folder = start(ingest={"options": {"patients": -5}})
    assert done.returncode == 1, done.stdout[-5000:]
    assert "ingest" in done.stdout.splitlines()[-1]
    assert not (folder / "validate").exists()
    assert "FAILED" in (folder / "report-status" / "summary").read_text()


def test_the_status_of_a_container_that_ends_at_once_is_known_and_its_root_cannot_be_written(image, daemon, capsys):
    import docker

    from pipelines.local import run_container

    client = docker.DockerClient(base_url=daemon)
    command = ["python3", "-c", "import os; print(os.getuid()); os.mkdir('/usr/share/mine')"]
    assert [run_container(client, image, ["sh", "-c", f"exit {n}"], {}) for n in (0, 3, 0, 7)] == [0, 3, 0, 7]
    assert run_container(client, image, command, {}, read_only=True, user="77:0") == 1
    said = capsys.readouterr().out
    assert "77\n" in said
    assert "Read-only file system" in said
