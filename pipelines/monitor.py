"""The recurring run that asks whether a model in use has drifted; it fails where it has.

python -m pipelines.monitor                      # writes pipelines/monitor.yaml
python -m pipelines.monitor --cluster gke FILE.yaml

fairvlm submit pipelines/monitor.yaml --schedule "0 6 1 * *" --set reference=s3://... --set current=s3://...
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kfp import dsl

from components.monitor.component import alarm, monitor
from fairvlm_core.errors import FairVLMError
from pipelines.compile import write_compiled
from pipelines.fairvlm import CLUSTER
from pipelines.pools import CLUSTERS, cluster_named, place

COMPILED = Path(__file__).parent / "monitor.yaml"


def graph(*, cluster: str = CLUSTER) -> Any:
    """The pipeline, for the pools of a cluster."""
    on = cluster_named(cluster)

    @dsl.pipeline(
        name="fairvlm-monitor",
        description="Compare a month of a model's predictions with those of its test set; fails where it has drifted.",
    )
    def fairvlm_monitor(
        reference: str = "",
        current: str = "",
        params: dict = {},  # noqa: B006 - kfp reads it once
    ):
        """Import both samples, compare them, and fail where the month has drifted.

        Args:
            reference: address of the folder that evaluate wrote for the registered model.
            current: address of the month's predictions.
            params: limits and the like: {"monitor": {"dpd_rise": 0.2}}.
        """
        # The address of the month may stay the same from month to month, so nothing of it may come from a cache.
        then = dsl.importer(artifact_uri=reference, artifact_class=dsl.Dataset, reimport=True)
        now = dsl.importer(artifact_uri=current, artifact_class=dsl.Dataset, reimport=True)
        compared = monitor(
            params=params,
            reference=then.set_display_name("reference").output,
            current=now.set_display_name("current").output,
        )
        place(compared, "monitor", on=on).set_caching_options(False)
        told = alarm(verdict=compared.outputs["verdict"], told=compared.outputs["told"])
        place(told, "alarm", on=on).set_caching_options(False)

    return fairvlm_monitor


fairvlm_monitor = graph()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: a mistake is printed as what, where and mend, with exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.monitor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, default=COMPILED, help="the file to write")
    parser.add_argument("--cluster", default=CLUSTER, help=f"whose node pools: {', '.join(CLUSTERS)}")
    given = parser.parse_args(arguments)
    try:
        write_compiled(graph(cluster=given.cluster), given.file, source="pipelines/monitor.py", by="pipelines.monitor")
    except FairVLMError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
