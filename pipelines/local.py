"""Run the compiled pipeline on this machine, each step in its container: `python -m pipelines.local --image NAME`.

It is a rehearsal of what a strict cluster does to a step: a user that is not root, a root file system that cannot be
written, no capabilities, no network, and the files of the steps before it. `DOCKER_HOST` says whose containers they
are, Docker's or Podman's: docs/containers.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import yaml
from kfp import components, local
from kfp.local import docker_task_handler

from components.image import IMAGE
from fairvlm_core.errors import FairVLMError
from pipelines import form
from pipelines.compile import COMPILED, compiled

# Variables of this process that the steps see too.
PASSED_ON = ("MLFLOW_TRACKING_", "OMP_")


def run_container(client: docker.DockerClient, image: str, command: list[str], volumes: dict, **more: Any) -> int:
    """Run a command in a new container, print what it says, and return its exit status.

    Stands in for the function of the same task in kfp, which lets the daemon remove the container: gone before it was
    asked for its status, a failed step counts as a success (kubeflow/pipelines#13332).
    """
    container = client.containers.create(image, command, volumes=volumes, **more)
    try:
        container.start()
        for line in container.logs(stream=True):
            print(line.decode(errors="replace"), end="")
        return container.wait()["StatusCode"]
    finally:
        container.remove(force=True)


def user_of(client: docker.DockerClient, image: str) -> str:
    """The `user:group` that steps run as, such that they can write what belongs to the user of this process.

    A daemon without privileges maps the container's root to the user who started it. Else it is this user, with group 0
    as OpenShift does it, unless that would be root: then it is the user that the image names.
    """
    if "name=rootless" in client.info().get("SecurityOptions", []):
        return "0:0"
    return f"{os.getuid()}:0" if os.getuid() else client.images.get(image).attrs["Config"]["User"]


def run(
    image: str,
    root: Path,
    inputs: Mapping[str, Any],
    *,
    mounts: Sequence[str] = (),
    network: str = "none",
) -> Path:
    """Run the pipeline to its end, or to the first step that fails.

    Args:
        image: name of the image, as the daemon lists it.
        root: folder for what the steps write; made when it is missing. Without `MLFLOW_TRACKING_URI` the registry is
            there too, as `mlflow.db`.
        inputs: the fields of the pipeline's form, such as `params`.
        mounts: `FOLDER:PATH`; steps can read the folder under this path.
        network: name of the containers' network; a registry on a server needs one, and so does a release to fetch.

    Returns:
        The folder of this run, which has one folder per task.

    Raises:
        FairVLMError: no daemon answers, or it has no such image.
        RuntimeError: a step failed; the message names it.
    """
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    try:
        client = docker.from_env()
        user = user_of(client, image)
        client.images.get(image)
    except docker.errors.ImageNotFound:
        raise FairVLMError(f'There is no image "{image}".', mend="Build it: containers/build.sh") from None
    except docker.errors.DockerException as error:
        raise FairVLMError(
            "No container daemon answers.",
            where=os.environ.get("DOCKER_HOST", "Docker's default socket"),
            mend="Start Docker, or `podman system service`, and name its socket in DOCKER_HOST: docs/containers.md.",
        ) from error
    workspace = root / "workspace"
    workspace.mkdir(exist_ok=True)
    if not os.getuid():
        for folder in (root, workspace):
            os.chown(folder, *map(int, user.split(":")))

    # What one step has compiled, the next need not.
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db", "NUMBA_CACHE_DIR": f"{root}/cache/numba"}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    runner = local.DockerRunner(
        user=user,
        read_only=True,
        tmpfs={"/tmp": "rw,mode=1777"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        network_mode=network,
        working_dir=str(root),
        environment=environment,
        mounts=[
            docker.types.Mount(path, str(Path(folder).resolve()), type="bind", read_only=True)
            for folder, path in (mount.split(":") for mount in mounts)
        ],
    )
    docker_task_handler.run_docker_container = run_container
    local.init(runner, pipeline_root=str(root), workspace_root=str(workspace))
    pipeline_of(image)(**inputs)
    return max(root.glob("fairvlm-*"))  # the name goes on with the time


def pipeline_of(image: str) -> Any:
    """The compiled pipeline with all its steps in this image."""
    spec = compiled(COMPILED)[0]
    for executor in spec["deploymentSpec"]["executors"].values():
        executor["container"]["image"] = image
    return components.load_component_from_text(yaml.safe_dump(spec))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.local", description=__doc__.splitlines()[0])
    parser.add_argument("--image", default=IMAGE, help="the image that steps run in (%(default)s)")
    parser.add_argument("--root", type=Path, default=Path("results/containers"), help="what they write (%(default)s)")
    parser.add_argument("--params", type=Path, help="a file like params.yaml; without it, the compiled defaults")
    parser.add_argument("--mount", action="append", default=[], metavar="FOLDER:PATH", help="what they may read")
    parser.add_argument("--network", default="none", help="the network that they see (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as of fairvlm submit")
    given = parser.parse_args(arguments)
    try:
        inputs = form.arguments(form.read_pipeline(COMPILED), given.params, given.set)
        folder = run(given.image, given.root, inputs, mounts=given.mount, network=given.network)
    except FairVLMError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        sys.exit(str(error))
    print(f"The report: {folder}/compare/out/report.html")


if __name__ == "__main__":
    main()
