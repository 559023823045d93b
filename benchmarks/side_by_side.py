"""What the benchmarks share: two ways to do the same work take turns, and the machine is told without its owner."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

Step = Callable[[int], object]


def take_turns(ours: Step, theirs: Step, *, rounds: int, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds per call of both, a number per round; who begins alternates.

    Args:
        ours, theirs: the work; a call is told its number, counted from 0.
        seconds: how long each works, about, before it is the other's turn.
    """
    ours(0), theirs(0)  # what is only slow the first time
    calls = {step: calls_in(step, seconds) for step in (ours, theirs)}
    times: dict[Step, list[float]] = {ours: [], theirs: []}
    for number in range(rounds):
        for step in (ours, theirs) if number % 2 else (theirs, ours):
            started = time.perf_counter()
            for i in range(calls[step]):
                step(number * calls[step] + i)
            times[step].append((time.perf_counter() - started) / calls[step])
    return times[ours], times[theirs]


def calls_in(step: Step, seconds: float) -> int:
    """How often a step runs in this time, once at least."""
    started = time.perf_counter()
    step(1)
    return max(1, round(seconds / (time.perf_counter() - started)))


def speedups(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """How many times as fast ours is, in each round."""
    return [b / a for a, b in zip(ours, theirs, strict=True)]


def spread(ratios: Sequence[float], digits: int) -> str:
    """Median, lowest and highest."""
    middle, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(ratios), min(ratios), max(ratios)))
    return f"{middle} ({low} to {high})"


def machine(*packages: str) -> str:
    """Processor, cores, threads and versions."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    where = "on a GPU" if torch.cuda.is_available() else f"torch threads: {torch.get_num_threads()}"
    processor = names[0] if names else platform.machine()
    return f"{processor}, {cores} cores, {where}; Python {platform.python_version()}, {versions}."


def command(script: str, doc: str, title: str, measure: Callable[[int], str], *, rounds: int = 5) -> None:
    """The command line of a benchmark: print its table and, with `--write`, keep it in the file of its name.

    Args:
        script, doc: `__file__` and `__doc__` of the benchmark.
        measure: from the number of rounds to the table as Markdown.
        rounds: unless the user says otherwise.
    """
    file = Path(script).with_suffix(".md")
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write the table to {file.name}, too")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each side")
    given = parser.parse_args()
    text = measure(given.rounds)
    print(text)
    if given.write:
        file.write_text(f"# {title}\n\n`python benchmarks/{file.stem}.py --write`\n\n{text}")


@contextmanager
def one_thread() -> Iterator[None]:
    """All numerical libraries work in one thread."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
