"""Executes batches of mutated inputs in a process of its own: ``python -m mdi_exit.fuzzing.worker TARGET …``.

Not instrumented, as fast as the target is. A batch depends on its number only, so that it can be run again. Each input has a
limit of processor time and the process one of memory; of every batch the first inputs are run once more with each allocation
traced. A line of JSON for each batch tells what was seen.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import signal
import sys
import time
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, Final

from mdi_exit.fuzzing.targets import TARGETS, Target

__all__ = ["BATCH", "HANG_S", "main", "run_batch"]

BATCH: Final = 20_000
HANG_S: Final = 2.0
_TRACED: Final = 1000
_MOST_MEMORY: Final = 1 << 30
_MOST_FINDINGS: Final = 20


class _TooLong(BaseException):
    """An input took longer than it may; no target can catch it by mistake."""


def _alarm(number: int, frame: FrameType | None) -> None:
    raise _TooLong


class _Batch:
    def __init__(self, target: Target) -> None:
        self.target = target
        self.accepted = self.refused = 0
        self.slowest_s = 0.0
        self.most_bytes = 0
        self.found: list[dict[str, str]] = []

    def execute(self, data: bytes) -> None:
        begin = time.perf_counter()
        try:
            signal.setitimer(signal.ITIMER_PROF, HANG_S)
            self.target.run(data)
            self.accepted += 1
        except self.target.refuses:
            self.refused += 1
        except _TooLong:
            self._find("hang", f"more than {HANG_S:g} s", data)
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            self._find("crash", f"{type(error).__name__}: {error}", data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.slowest_s = max(self.slowest_s, time.perf_counter() - begin)

    def execute_traced(self, data: bytes) -> None:
        """Once more, for the memory only."""
        tracemalloc.clear_traces()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        try:
            signal.setitimer(signal.ITIMER_PROF, 10 * HANG_S)
            self.target.run(data)
        except (Exception, _TooLong):  # noqa: BLE001, S110 - found when it was executed before
            pass
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        taken = tracemalloc.get_traced_memory()[1] - before
        self.most_bytes = max(self.most_bytes, taken)
        if taken > self.target.most_bytes(data):
            self._find("memory", f"{taken:,} bytes for {len(data):,}", data)

    def _find(self, what: str, why: str, data: bytes) -> None:
        if len(self.found) < _MOST_FINDINGS:
            self.found.append({"what": what, "why": why[:300], "input": data.hex()})


def run_batch(target: Target, corpus: Sequence[bytes], seed: int, number: int, count: int = BATCH) -> dict[str, Any]:
    """One batch, and what was seen. ``corpus``: beside the target's own examples."""
    rng = Random(zlib.crc32(f"{target.name} {seed} {number}".encode()))
    inputs = [*target.examples(), *corpus]
    batch = _Batch(target)
    traced = []
    before = signal.signal(signal.SIGPROF, _alarm)
    begin = time.perf_counter()
    try:
        for index in range(count):
            data = target.mutate(rng, inputs[int(rng.random() * len(inputs))])
            batch.execute(data)
            if index < _TRACED:
                traced.append(data)
        seconds = time.perf_counter() - begin
        tracemalloc.start()
        for data in traced:
            batch.execute_traced(data)
    finally:
        signal.signal(signal.SIGPROF, before)
        tracemalloc.stop()
    return {
        "batch": number,
        "executions": count,
        "accepted": batch.accepted,
        "refused": batch.refused,
        "traced": len(traced),
        "seconds": round(seconds, 3),
        "slowest_s": round(batch.slowest_s, 4),
        "most_bytes": batch.most_bytes,
        "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "found": batch.found,
    }


def _virtual_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def main(argv: Sequence[str]) -> int:
    """Run the batches that are named; returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=tuple(TARGETS))
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--batches", required=True)
    args = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    target = TARGETS[args.target]
    target.examples()
    corpus = [file.read_bytes() for file in sorted(args.corpus.glob("*")) if file.is_file()]
    most = _virtual_bytes() + _MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for number in map(int, args.batches.split(",")):
        sys.stdout.write(json.dumps(run_batch(target, corpus, args.seed, number)) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
