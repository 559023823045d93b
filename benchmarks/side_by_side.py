"""What the benchmarks share: two ways to do the same work take turns, and the machine is told without its owner."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

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
