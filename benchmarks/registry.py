"""Registering and fetching an adapter of LLaVA-Med's size, and the cold load of the scoring server.

    python benchmarks/registry.py --write

`fairvlm register` and `versions.fetch` of a rank-32 LoRA on all linear layers of a Mistral-7B and a CLIP-L tower, with
a projector, in float32 (477 MB of random numbers), on an MLflow server of this machine; beside what `mlflow.pyfunc`
does with the same folder, logged as an artifact, registered and downloaded. Processor seconds of whole processes with
their imports; the server's are not in them.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from side_by_side import command, machine, speedups, spread

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))  # the folders of a small pipeline, and a server, are made there

import mlflow_servers  # noqa: E402
import pipeline_outputs  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from fairvlm_core.files import write_json  # noqa: E402
from fairvlm_core.steps import register  # noqa: E402

RANK, BASE_GB, MODEL = 32, 15, "stage1"
LIMIT = 10  # seconds
FETCH = """
import sys, pathlib
from fairvlm_core.registry import tracking, versions
with tracking.tracking(""):
    artifact = versions.fetch(versions.find(sys.argv[1], sys.argv[2]), pathlib.Path(sys.argv[3]))
assert (artifact / "model" / sys.argv[4] / "adapter_model.safetensors").is_file()
"""
PEER = """
import sys, mlflow
name, folder, code = sys.argv[1:]
with mlflow.start_run():
    mlflow.pyfunc.log_model(name="model", python_model=code, artifacts={"adapter": folder}, pip_requirements=["mlflow"],
                            registered_model_name=name)
"""
PEER_FETCH = "import sys, mlflow; mlflow.artifacts.download_artifacts(f'models:/{sys.argv[1]}/1', dst_path=sys.argv[2])"
PEER_MODEL = """
import mlflow
class Plain(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[str], params=None):
        return model_input
mlflow.models.set_model(Plain())
"""
LOAD = """
import json, sys, time
from pathlib import Path
told = {}
def took(what):
    told[what] = time.process_time() - sum(told.values())
import mlflow.pyfunc, mlflow.pyfunc.scoring_server, fastapi, uvicorn
from fairvlm_core.registry import model
from transformers import LlavaForConditionalGeneration, AutoTokenizer
import peft
took("imports")
from fairvlm_core.registry.base import find_base
from fairvlm_core.models import describe, vlm
from fairvlm_core.files import read_json
artifact = Path(sys.argv[1])
base = find_base(read_json(artifact / "base.json", made_by="register"))
took("hashing")
described = describe(artifact / "model")
loaded = vlm.load_base(base, described["task"], described["image_size"])
for parameter in loaded.llava.parameters():
    parameter.data.add_(0.0)  # the weights are mapped from the file: they are read here
took("reading")
for name in described["adapters"]:
    vlm.apply_adapter(loaded, artifact / "model" / name)
took("folding")
print(json.dumps(told))
"""


@dataclass(frozen=True)
class Result:
    """Processor seconds of both, a number per round."""

    name: str
    ours: list[float]
    theirs: list[float]


def adapter(layers: int = 32, blocks: int = 24, width: int = 4096) -> dict[str, np.ndarray]:
    """LoRA of all linear layers of a Mistral-7B and a CLIP-L, and a projector, float32; random, so it cannot shrink."""
    rng = np.random.default_rng(0)
    inner, small, tower = width * 7 // 2, width // 4, width // 4
    language = {"q": (width, width), "k": (width, small), "v": (width, small), "o": (width, width)}
    language |= {"gate": (width, inner), "up": (width, inner), "down": (inner, width)}
    vision = dict.fromkeys("qkvo", (tower, tower)) | {"fc1": (tower, 4 * tower), "fc2": (4 * tower, tower)}
    found = {
        "projector.1": rng.standard_normal((tower, width), dtype=np.float32),
        "projector.2": rng.standard_normal((width, width), dtype=np.float32),
    }
    for kind, count, shapes in (("language", layers, language), ("vision", blocks, vision)):
        for i in range(count):
            for name, (a, b) in shapes.items():
                found[f"{kind}.{i}.{name}.lora_A"] = rng.standard_normal((RANK, a), dtype=np.float32)
                found[f"{kind}.{i}.{name}.lora_B"] = rng.standard_normal((b, RANK), dtype=np.float32)
    return found


def prepare(root: Path, tensors: dict[str, np.ndarray], base_gb: float = BASE_GB) -> dict[str, Path]:
    """The inputs of `register`: those of a small pipeline, with this adapter, and a base model of 15 GB of zeros."""
    folders = pipeline_outputs.write_outputs(root, "binary")
    (file,) = folders[MODEL].rglob("adapter_model.safetensors")
    save_file(tensors, file)
    weights = folders["base"] / "llava" / "model.safetensors"
    with weights.open("r+b") as sparse:
        sparse.truncate(int(base_gb * 1e9))
    recorded = {weights.name: {"sha256": "0" * 64, "size": weights.stat().st_size}}
    write_json(folders["base"] / "weights.json", {"vlm": recorded})
    return folders


def processor_seconds(words: list[str], uri: str, cwd: Path) -> float:
    """What a process and its children take of the processor.

    Raises:
        RuntimeError: when it fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The process failed: {done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def race(folders: dict[str, Path], root: Path, uri: str, rounds: int) -> list[Result]:
    """Register and fetch, in turn with the peer."""
    code = root / "plain.py"
    code.write_text(PEER_MODEL)
    inputs = [f"--{name.replace('_', '-')}={folders[name]}" for name in register.INPUTS if name in folders]
    (adapter_folder,) = {path.parent.name for path in folders[MODEL].rglob("adapter_model.safetensors")}

    def ours(number: int) -> tuple[float, float]:
        name, out = f"ours{number}", root / f"out{number}"
        step = ["register", *inputs, f"--out={out}", f"--registered-name={name}", f"--model={MODEL}"]
        taken = processor_seconds([sys.executable, "-m", "fairvlm_core.cli", *step], uri, root)
        words = [sys.executable, "-c", FETCH, name, "1", str(root / name), adapter_folder]
        return taken, processor_seconds(words, uri, root)

    def theirs(number: int) -> tuple[float, float]:
        name = f"theirs{number}"
        taken = processor_seconds([sys.executable, "-c", PEER, name, str(folders[MODEL]), str(code)], uri, root)
        return taken, processor_seconds([sys.executable, "-c", PEER_FETCH, name, str(root / name)], uri, root)

    times: dict[Callable[[int], tuple[float, float]], list[tuple[float, float]]] = {ours: [], theirs: []}
    for number in range(rounds):
        for side in (ours, theirs) if number % 2 else (theirs, ours):
            times[side].append(side(number))
            for kind in ("ours", "theirs"):
                shutil.rmtree(root / f"{kind}{number}", ignore_errors=True)
    return [
        Result(name, [pair[i] for pair in times[ours]], [pair[i] for pair in times[theirs]])
        for i, name in enumerate(("register", "fetch"))
    ]


def cold_load(root: Path, width: int, layers: int) -> tuple[float, dict[str, float]]:
    """GB of a base model, and the processor seconds of loading what stands on it."""
    from fairvlm_core.models import tiny
    from fairvlm_core.registry import tracking
    from fairvlm_core.registry.base import base_reference

    before = tiny.WIDTH, tiny.TEXT_LAYERS
    tiny.WIDTH, tiny.TEXT_LAYERS = width, layers
    try:
        folders = pipeline_outputs.write_models(root, "binary")
    finally:
        tiny.WIDTH, tiny.TEXT_LAYERS = before
    fixed = {"thresholds": {"glaucoma": 0.5}}
    reference = base_reference(folders["base"], "vlm")
    tracking.write_artifact(root / "artifact", model=folders["stage2"], fixed=fixed, reference=reference)
    words = [sys.executable, "-c", LOAD, str(root / "artifact")]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=one_thread, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The process failed: {done.stderr[-2000:]}")
    return sum(reference["size"].values()) / 1e9, json.loads(done.stdout.splitlines()[-1])


def table(results: list[Result], loads: list[tuple[float, dict[str, float]]]) -> str:
    """Both tables as Markdown."""
    lines = [
        "| | ours, s | peer, s | peer / ours |",
        "| --- | --- | --- | --- |",
    ]
    whole = Result(
        "both",
        [sum(pair) for pair in zip(*(result.ours for result in results), strict=True)],
        [sum(pair) for pair in zip(*(result.theirs for result in results), strict=True)],
    )
    for result in (*results, whole):
        ours, theirs = statistics.median(result.ours), statistics.median(result.theirs)
        ratio = spread(speedups(result.ours, result.theirs), 2)
        lines.append(f"| {result.name} | {ours:.1f} | {theirs:.1f} | {ratio} |")
    most = statistics.median(whole.ours)
    lines += ["", f"Register and fetch take {most:.1f} s of the processor; the aim is less than {LIMIT} s.", ""]
    lines += [
        "| base model | imports, s | weights hashed, s | read, s | adapters folded in, s | grows with the base |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for gigabytes, took in loads:
        steps = [took[name] for name in ("hashing", "reading", "folding")]
        share = sum(steps) / (took["imports"] + sum(steps))
        shown = " | ".join(f"{seconds:.1f}" for seconds in (took["imports"], *steps))
        lines.append(f"| {gigabytes:.2f} GB | {shown} | {share:.0%} |")
    return "\n".join(lines) + "\n"


def measure(rounds: int) -> str:
    """Everything, as Markdown."""
    with TemporaryDirectory() as scratch:
        root = Path(scratch)
        loads = [cold_load(root / "tiny", 128, 4), cold_load(root / "larger", 1536, 40)]
        shutil.rmtree(root / "larger")
        folders = prepare(root / "outputs", adapter())
        words = ["--backend-store-uri", f"sqlite:///{root}/server.db", "--artifacts-destination", str(root / "store")]
        with mlflow_servers.mlflow_server(root, *words) as server:
            results = race(folders, root, server.uri, rounds)
    return f"{table(results, loads)}\n{machine('mlflow', 'torch', 'transformers')}\n"


if __name__ == "__main__":
    command(__file__, __doc__, "Registry", measure, rounds=3)
