"""Compile the pipeline for the Kubeflow UI.

python -m pipelines.compile                              # writes pipelines/fairvlm.yaml
python -m pipelines.compile --cluster gke FILE.yaml      # for the node pools of another cluster
python -m pipelines.compile --models fairvlm-models      # with a volume of base models at /models
python -m pipelines.compile --nodes 2                    # FairMed-VLM over two nodes, as TrainJobs
FAIRVLM_IMAGE=registry.example.org/fairvlm@sha256:... python -m pipelines.compile
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from components.image import IMAGE
from fairvlm_core.errors import FairVLMError
from pipelines.fairvlm import CLUSTER, LITERALS, default_params, graph
from pipelines.pools import CLUSTERS

COMPILED = Path(__file__).parent / "fairvlm.yaml"


def compiled(path: Path) -> list[Any]:
    """The documents of a compiled pipeline: the graph, then what is particular to Kubernetes."""
    return list(yaml.safe_load_all(path.read_text()))


def compile_to(
    path: Path,
    *,
    cluster: str = CLUSTER,
    models: str = "",
    nodes: int = 1,
    default: Mapping[str, Mapping[str, Any]] | None = None,
    image: str = IMAGE,
) -> None:
    """Compile the pipeline to `path`; a file that already says the same is left alone.

    The compiler orders mappings anew in each process, so the bytes would change where nothing did.

    Raises:
        ConfigError: for a cluster that is not there, or whose pools do not do for a step.
    """
    made = graph(default or default_params(), cluster=cluster, models=models, nodes=nodes)
    write_compiled(made, path, literals=LITERALS, image=image)


def write_compiled(
    made: Any,
    path: Path,
    *,
    literals: Mapping[str, Sequence[str]] | None = None,
    image: str = IMAGE,
    source: str = "pipelines/fairvlm.py",
    by: str = "pipelines.compile",
) -> None:
    """Compile any pipeline to `path`, as `compile_to` says.

    Args:
        made: the pipeline.
        literals: field of the form -> what it may be.
        source, by: what the file's first line says.
    """
    if "@sha256:" not in image:
        print(
            f"Warning: the image {image} is named by a tag, which can come to mean another image, while Kubeflow's "
            "cache and the lineage go by its name. Pass FAIRVLM_IMAGE=NAME@sha256:DIGEST.",
            file=sys.stderr,
        )
    fresh = path.with_name(f".{path.stem}.partial.yaml")
    try:
        compiler.Compiler().compile(made, str(fresh))
        documents = compiled(fresh)
        declared = documents[0]["root"]["inputDefinitions"]["parameters"]
        for name, values in (literals or {}).items():  # the UI shows a list of them
            declared[name]["literals"] = list(values)
        if not path.exists() or compiled(path) != documents:
            text = yaml.safe_dump_all(documents, sort_keys=True, allow_unicode=True)
            fresh.write_text(f"# Compiled by python -m {by}; edit {source} instead.\n{text}")
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: a mistake is printed as what, where and mend, with exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.compile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, default=COMPILED, help="the file to write")
    parser.add_argument("--cluster", default=CLUSTER, help=f"whose node pools: {', '.join(CLUSTERS)}")
    parser.add_argument("--models", default="", metavar="CLAIM", help="volume with base models, mounted at /models")
    parser.add_argument("--nodes", type=int, default=1, help="over how many nodes FairMed-VLM is trained (TrainJob)")
    given = parser.parse_args(arguments)
    try:
        compile_to(given.file, cluster=given.cluster, models=given.models, nodes=given.nodes)
    except FairVLMError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
