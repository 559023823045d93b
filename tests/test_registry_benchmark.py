"""The benchmark of the registry measures whole registrations. Nothing here is timed."""

import runpy
from pathlib import Path

import mlflow_servers
import pytest

import fairvlm_core

BENCHMARK = Path(fairvlm_core.__file__).parent.parent / "benchmarks" / "registry.py"


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="registry")


def test_the_adapter_is_of_llava_meds_size(benchmark):
    """By the formula of LoRA: rank times the sum of both sides of every linear layer."""
    count = sum(tensor.size for tensor in benchmark["adapter"](layers=1, blocks=1).values())
    language = 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    vision = 32 * (4 * (1024 + 1024) + 2 * (1024 + 4096))
    assert count == language + vision + 1024 * 4096 + 4096 * 4096


@pytest.mark.slow
def test_both_sides_register_and_fetch_and_the_table_names_them(benchmark, tmp_path):
    folders = benchmark["prepare"](tmp_path / "outputs", benchmark["adapter"](1, 1, 64), base_gb=0.1)
    words = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "s")]
    with mlflow_servers.mlflow_server(tmp_path, *words) as server:
        results = benchmark["race"](folders, tmp_path, server.uri, 1)
        with pytest.raises(RuntimeError, match="The process failed"):
            benchmark["processor_seconds"](["false"], server.uri, tmp_path)
    assert [result.name for result in results] == ["register", "fetch"]
    assert all(seconds > 0 for result in results for seconds in (*result.ours, *result.theirs))
    loads = [benchmark["cold_load"](tmp_path / "load", 128, 4)]
    assert 0 < loads[0][0] < 1
    rows = [line.split(" | ")[0] for line in benchmark["table"](results, loads).splitlines()]
    assert rows[2:5] == ["| register", "| fetch", "| both"]
