"""Do the work of a plan: once, in any order that its inputs allow, in one process or in several, and on after a kill.

A folder that is there is finished, for a step puts its output in place only when it has ended well. `work.json` in it
says how many seconds it took, how many of a processor (threads added up), and which commit of the code did it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairvlm_core import errors
from fairvlm_core.errors import FairVLMError
from fairvlm_core.experiments.chain import Run, Work, work_of
from fairvlm_core.experiments.heads import is_head, run_head
from fairvlm_core.experiments.surroundings import commit_of_code
from fairvlm_core.files import folder_written, write_json
from fairvlm_core.steps import execute

STEPS_FOLDER = "steps"
LOGS_FOLDER = "logs"
WORK_FILE = "work.json"
# A library that starts a thread per core in each of several processes makes all of them slower.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Piece:
    """A piece of work as a process can be told of it: no more than paths and a config."""

    step: str
    config: Any
    inputs: Mapping[str, Path]
    folder: Path
    noted: Mapping[str, Any]


def place(work: Work, out: Path) -> Path:
    """The folder of a piece of work."""
    return out / STEPS_FOLDER / work.folder


def is_done(work: Work, out: Path) -> bool:
    """Whether it is there and need not be done."""
    return (place(work, out) / "metrics.json").is_file()


def carry_out(runs: Sequence[Run], out: Path, *, jobs: int = 1, tolerant: bool = False) -> dict[str, str]:
    """Do the work that is not done yet in `out`.

    Args:
        jobs: processes that work side by side, with one thread each; with 1, this process with all its threads.
        tolerant: go on without what cannot be done and without what needs it, as for a candidate whose loss is not
            finite.

    Returns:
        Key of the work that cannot be done -> why, only where that is tolerated.

    Raises:
        FairVLMError: of the first piece that cannot be done; what was begun beside it is finished before.
    """
    told = work_of(runs)
    missing = {work.key: work for work, _ in told if not is_done(work, out)}
    if not missing:
        return {}
    number = {work.key: f"[{i}/{len(told)}] {work.step}: {words}" for i, (work, words) in enumerate(told, start=1)}
    noted = commit_of_code()
    pieces = {key: _piece(work, out, noted) for key, work in missing.items()}
    needs = {
        key: {given.key for given in work.inputs.values() if isinstance(given, Work) and given.key in missing}
        for key, work in missing.items()
    }
    failed: dict[str, str] = {}
    clock = Clock(Counter(work.step for work in missing.values()), jobs)
    with _workers(jobs, out) as start:
        running: dict[Future[float], str] = {}
        broken: FairVLMError | None = None
        while needs or running:
            ready = [key for key, before in needs.items() if not before] if broken is None else []
            for key in ready[: jobs - len(running)]:
                needs.pop(key)
                print(number[key], flush=True)
                running[start(pieces[key])] = key
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key = running.pop(future)
                try:
                    seconds = future.result()
                except (FairVLMError, Refused, BrokenProcessPool) as error:
                    reason = _reason(error, out, missing[key])
                    if not tolerant or isinstance(error, BrokenProcessPool):
                        broken = broken or reason
                        continue
                    failed |= {lost: str(reason.what) for lost in _behind(key, missing)}
                    needs = {other: before for other, before in needs.items() if other not in failed}
                    print(f"{number[key]}: left out. {reason.what}", flush=True)
                    continue
                for before in needs.values():
                    before.discard(key)
                if jobs > 1:
                    print(
                        f"{number[key]}: done in {seconds:.0f} s.{clock.left(missing[key].step, seconds)}", flush=True
                    )
        if broken is not None:
            raise broken
    return failed


class Clock:
    """How long the rest will take, by what each kind of step has taken so far."""

    def __init__(self, remaining: Counter[str], jobs: int) -> None:
        self.remaining, self.jobs, self.took = remaining, jobs, defaultdict[str, list[float]](list)

    def left(self, step: str, seconds: float) -> str:
        """Note a piece that is done; words about the rest, none where a kind of step has not been seen yet."""
        self.remaining[step] -= 1
        self.took[step].append(seconds)
        waiting = {kind: count for kind, count in self.remaining.items() if count}
        if not waiting or not set(waiting) <= set(self.took):
            return ""
        total = sum(count * sum(self.took[kind]) / len(self.took[kind]) for kind, count in waiting.items()) / self.jobs
        return f" About {total / 3600:.1f} h left." if total > 3600 else f" About {total / 60:.0f} min left."


def do(piece: Piece) -> float:
    """Do one piece of work; returns the seconds that it took."""
    started, busy = time.perf_counter(), time.process_time()
    if is_head(piece.step):
        with folder_written(piece.folder) as partial:
            run_head(piece.step, piece.config, piece.inputs, partial)
    else:
        execute(piece.step, piece.config, piece.inputs, {"out": piece.folder})
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    took = {"seconds": round(seconds, 1), "cpu_seconds": round(busy, 1)}
    write_json(piece.folder / WORK_FILE, {**piece.noted, "step": piece.step, **took})
    return seconds


class Refused(Exception):
    """A mistake that the user can mend, on its way from one process to another: kind, what, where, mend."""


def do_quietly(piece: Piece, log: Path) -> float:
    """The same in a process of its own: what it prints goes to a file, or several would write over one another.

    Raises:
        Refused: for a FairVLMError, which cannot be sent to another process as it is.
    """
    import torch

    torch.set_num_threads(1)
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with log.open("w") as handle:
        try:
            for number in (1, 2):
                os.dup2(handle.fileno(), number)
            return do(piece)
        except FairVLMError as error:
            raise Refused(type(error).__name__, error.what, error.where, error.mend) from None
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)


def end_with(parent: int) -> None:
    """End this process when its parent is gone: whoever starts the same command again must not find it at work."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _workers(jobs: int, out: Path) -> Iterator[Any]:
    """A function that starts a piece of work: here and now, or in one of several processes."""
    if jobs == 1:
        yield _here
        return
    import multiprocessing

    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)  # before the workers load what reads it
    # Started afresh: a copy of a process that has threads or an accelerator cannot use them.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=end_with, initargs=(os.getpid(),))
    try:
        yield lambda piece: pool.submit(do_quietly, piece, out / LOGS_FOLDER / f"{piece.folder.name}.log")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _here(piece: Piece) -> Future[float]:
    future: Future[float] = Future()
    try:
        future.set_result(do(piece))
    except FairVLMError as error:
        future.set_exception(error)
    return future


def _piece(work: Work, out: Path, noted: Mapping[str, Any]) -> Piece:
    inputs = {name: given if isinstance(given, Path) else place(given, out) for name, given in work.inputs.items()}
    return Piece(work.step, work.config, inputs, place(work, out), noted)


def _behind(key: str, missing: Mapping[str, Work]) -> set[str]:
    """A piece of work and all that needs it."""
    lost = {key}
    for other, work in missing.items():  # in an order in which they can be done
        if any(isinstance(given, Work) and given.key in lost for given in work.inputs.values()):
            lost.add(other)
    return lost


def _reason(error: BaseException, out: Path, work: Work) -> FairVLMError:
    if isinstance(error, FairVLMError):
        return error
    if isinstance(error, Refused):
        kind, what, where, mend = error.args
        found: FairVLMError = getattr(errors, kind)(what, where=where, mend=mend)
        return found
    return FairVLMError(
        f"A process that did {work.step} was ended from outside, perhaps for want of memory.",
        where=str(out / LOGS_FOLDER / f"{work.folder}.log"),
        mend="Start the same command again, with fewer --jobs if it happens again; what is done stays done.",
    )
