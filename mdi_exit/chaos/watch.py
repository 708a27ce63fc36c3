"""Memory, descriptors and coroutines of the processes of a scene, sampled while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from mdi_exit.chaos.scene import Scene
from mdi_exit.chaos.slope import slope_of

__all__ = ["BROKER", "Sample", "growth", "watched"]

BROKER: Final = "broker"
_ANSWER_S: Final = 1.0
_TASKS: Final = re.compile(r"^mdi_exit_process_tasks\S* (\d+)", re.MULTILINE)
_ADDRESS: Final = re.compile(r"metrics on (http://\S+)")
_MIB: Final = 1024.0 * 1024.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one moment. ``tasks``: coroutines; None of the broker, and of a process that does not answer."""

    at_s: float
    name: str
    pid: int
    memory_mib: float
    descriptors: int
    threads: int
    tasks: int | None


@contextlib.asynccontextmanager
async def watched(scene: Scene, every_s: float) -> AsyncIterator[list[Sample]]:
    """Samples of every process that runs, as they are taken."""
    samples: list[Sample] = []
    task = asyncio.create_task(_look(scene, every_s, samples), name="samples")
    try:
        yield samples
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _look(scene: Scene, every_s: float, samples: list[Sample]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        running = {name: process.pid for name, process in scene.fleet.processes.items() if process.returncode is None}
        if scene.broker is not None:
            running[BROKER] = scene.broker.pid
        at_s = loop.time() - scene.begun_at
        for name, pid in running.items():
            tasks = None if name == BROKER else await asyncio.to_thread(_tasks, scene.folder / f"{name}.log")
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                with process.oneshot():
                    memory = process.memory_info().rss / _MIB
                    sample = Sample(round(at_s, 2), name, pid, memory, process.num_fds(), process.num_threads(), tasks)
                samples.append(sample)
        await asyncio.sleep(every_s)


def _tasks(log: Path) -> int | None:
    """What a program's metrics say, at the address that it logged last."""
    addresses = _ADDRESS.findall(log.read_text(errors="replace"))
    if not addresses:
        return None
    try:
        with urllib.request.urlopen(addresses[-1], timeout=_ANSWER_S) as answer:  # noqa: S310 - http on loopback
            found = _TASKS.search(answer.read().decode())
    except (OSError, urllib.error.URLError):
        return None
    return int(found[1]) if found else None


def growth(samples: Sequence[Sample], warm_s: float) -> dict[str, dict[str, Any]]:
    """By program: the slope of its memory (MiB a minute) after ``warm_s`` of each life, and first and last counts.

    Counts are those of its longest life: the least, the last and the most of each.
    """
    found = {}
    for name in dict.fromkeys(sample.name for sample in samples):
        lives: dict[int, list[Sample]] = {}
        for sample in samples:
            if sample.name == name:
                lives.setdefault(sample.pid, []).append(sample)
        settled = [[one for one in life if one.at_s - life[0].at_s >= warm_s] for life in lives.values()]
        slope = slope_of([([one.at_s for one in life], [one.memory_mib for one in life]) for life in settled])
        longest = max(settled, key=len) or max(lives.values(), key=len)
        found[name] = {
            "lives": len(lives),
            "memory_mib": _range([one.memory_mib for one in longest]),
            "slope_mib_per_min": None
            if slope is None
            else [round(v, 4) for v in (slope.per_min, slope.low, slope.high)],
            "descriptors": _range([one.descriptors for one in longest]),
            "threads": _range([one.threads for one in longest]),
            "tasks": _range([one.tasks for one in longest if one.tasks is not None]),
        }
    return found


def _range(values: Sequence[float]) -> list[float] | None:
    """First, last, least and most."""
    return [round(value, 2) for value in (values[0], values[-1], min(values), max(values))] if values else None
