"""How each fault is done to a scene, and undone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final, assert_never

import psutil

from mdi_exit.chaos.faults import Fault, FaultKind, trouble_of
from mdi_exit.chaos.scene import DEPLOYMENT, SOURCE, Scene
from mdi_exit.errors import MdiExitError
from mdi_exit.topics import Topics
from mdi_exit.transport.frames import publish_head

__all__ = ["clock_environment", "faked_clock", "inflicted", "small_disk", "why_not"]

_LITTLE_BYTES: Final = 1024 * 1024
_LARGE_BYTES: Final = 12 * 1024 * 1024
_STOPPED_S: Final = 0.08
_RUNNING_S: Final = 0.02
_DISK_KB: Final = 512
_FAKETIME: Final = ("usr/lib/*/faketime/libfaketime.so.1", "usr/local/lib/faketime/libfaketime.so.1")


def faked_clock() -> Path | None:
    """The library that gives a process another clock, where it is installed (Debian: libfaketime)."""
    return next((found for pattern in _FAKETIME for found in sorted(Path("/").glob(pattern))), None)


def why_not(kind: FaultKind) -> str | None:
    """Why a fault cannot be had on this machine; None: it can."""
    if kind is FaultKind.CLOCK and faked_clock() is None:
        return "needs libfaketime (apt install libfaketime)"
    if kind is FaultKind.DISK_FULL and (os.geteuid() != 0 or shutil.which("mount") is None):
        return "needs root, to mount a small disk"
    if kind is FaultKind.AGENT_MEMORY and not hasattr(psutil, "RLIMIT_AS"):
        return "needs Linux's prlimit"
    return None


def clock_environment(folder: Path) -> dict[str, str]:
    """Of processes whose wall clock is to jump by what the file ``clock`` says; their monotonic clock is the true one."""
    library = faked_clock()
    if library is None:
        raise MdiExitError(why_not(FaultKind.CLOCK) or "no libfaketime")
    file = folder / "clock"
    file.write_text("+0\n")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of half a megabyte at ``folder``, in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    _called("mount", "-t", "tmpfs", "-o", f"size={_DISK_KB}k", "mdi-exit-chaos", str(folder))
    try:
        yield
    finally:
        _called("umount", "--lazy", str(folder))


def _called(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise MdiExitError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextlib.asynccontextmanager
async def inflicted(scene: Scene, fault: Fault) -> AsyncIterator[None]:
    """The fault is there within the context, and is over behind it."""
    match fault.kind:
        case FaultKind.AGENT_KILL:
            way = _killed(scene, fault.target)
        case FaultKind.SOURCE_KILL:
            way = _killed(scene, SOURCE)
        case FaultKind.AGENT_FREEZE:
            way = _frozen(scene, fault.target)
        case FaultKind.AGENT_SLOW:
            way = _slowed(scene, fault.target)
        case FaultKind.AGENT_MEMORY:
            way = _starved(scene, fault.target)
        case FaultKind.BROKER_STOP:
            way = _without_broker(scene, signal.SIGTERM)
        case FaultKind.BROKER_KILL:
            way = _without_broker(scene, signal.SIGKILL)
        case FaultKind.CLOCK:
            way = _jumped(scene, fault)
        case FaultKind.DISK_FULL:
            way = _filled(scene.disk)
        case (
            FaultKind.CUT
            | FaultKind.HALF_OPEN
            | FaultKind.DELAY
            | FaultKind.SLOW_LINK
            | FaultKind.CORRUPT
            | FaultKind.DUPLICATE
            | FaultKind.REORDER
        ):
            way = _troubled(scene, fault)
        case _:
            assert_never(fault.kind)
    async with way:
        yield


@contextlib.asynccontextmanager
async def _killed(scene: Scene, name: str) -> AsyncIterator[None]:
    await scene.kill(name)
    try:
        yield
    finally:
        await scene.revive(name)


@contextlib.asynccontextmanager
async def _frozen(scene: Scene, name: str) -> AsyncIterator[None]:
    scene.signal(name, signal.SIGSTOP)
    try:
        yield
    finally:
        scene.signal(name, signal.SIGCONT)


@contextlib.asynccontextmanager
async def _slowed(scene: Scene, name: str) -> AsyncIterator[None]:
    async def stutter() -> None:
        while True:
            scene.signal(name, signal.SIGSTOP)
            await asyncio.sleep(_STOPPED_S)
            scene.signal(name, signal.SIGCONT)
            await asyncio.sleep(_RUNNING_S)

    task = asyncio.create_task(stutter(), name=f"stutter of {name}")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        scene.signal(name, signal.SIGCONT)


@contextlib.asynccontextmanager
async def _starved(scene: Scene, name: str) -> AsyncIterator[None]:
    """It has little more than what it uses already, and gets a message that does not fit."""
    process = psutil.Process(scene.pid(name))
    before = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + _LITTLE_BYTES, before[1]))
    topic = Topics(DEPLOYMENT).links(name, SOURCE)
    scene.proxy.send(scene.clients(name), publish_head(topic, _LARGE_BYTES, 0, retain=False) + bytes(_LARGE_BYTES))
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_AS, before)


@contextlib.asynccontextmanager
async def _without_broker(scene: Scene, number: int) -> AsyncIterator[None]:
    await scene.end_broker(number)
    try:
        yield
    finally:
        await scene.start_broker()


@contextlib.asynccontextmanager
async def _jumped(scene: Scene, fault: Fault) -> AsyncIterator[None]:
    """A start in the meantime has a number that is far from that of the start before."""
    file = scene.folder / "clock"
    file.write_text(f"{fault.by_s:+.0f}\n")
    await scene.kill(fault.target)
    await scene.revive(fault.target)
    try:
        yield
    finally:
        file.write_text("+0\n")


@contextlib.asynccontextmanager
async def _filled(disk: Path) -> AsyncIterator[None]:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.asynccontextmanager
async def _troubled(scene: Scene, fault: Fault) -> AsyncIterator[None]:
    trouble = trouble_of(fault.kind)
    if trouble is None:
        raise MdiExitError(f"{fault.kind}: no fault of the network")
    pattern = scene.clients(fault.target)
    scene.proxy.trouble(pattern, trouble)
    try:
        yield
    finally:
        scene.proxy.calm(pattern)
