"""``mdi-exit train-hierarchical``: edges and a cloud learn one network, as processes on this machine or on several."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from broker.embedded import embedded_broker
from mdi_exit.config import resolve
from mdi_exit.demo.fleet import Fleet
from mdi_exit.discovery import answers
from mdi_exit.errors import MdiExitError, StartError, UsageError
from mdi_exit.hierarchical.cloud import CloudWorker
from mdi_exit.hierarchical.config import HierarchicalSettings, Outage, check_use, show_bit_rate
from mdi_exit.hierarchical.edge import EdgeWorker, train_whole
from mdi_exit.hierarchical.link import EdgeLinks, edge_links
from mdi_exit.hierarchical.study import Study
from mdi_exit.logs import configure
from mdi_exit.model.artifact import check_output
from mdi_exit.program import run_tidily, stop_requested

__all__ = ["Run", "check_model", "main", "measured_run"]

_MODULE: Final = "mdi_exit.hierarchical.command"
_POLL_S: Final = 0.1
_STEP: Final = re.compile(r"step ([0-9]+) of ([0-9]+)")
_NAME: Final = "mdi-exit train-hierarchical"


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    resolved = resolve(
        HierarchicalSettings, argv, os.environ, prog=_NAME, section="hierarchical",
        description="Trains a network cut in two: edges with their own images learn its first layers and an exit, a cloud "
        "the rest, at the same time, over MQTT. Features and labels go to the cloud; no image and no gradient does.",
        epilog="A worker that is started again with the same settings goes on from its checkpoint. On several machines: "
        "--role cloud on one, --role edge --name NAME --shard I/N on the others, each with --broker and the same --seed.",
    )  # fmt: skip
    settings = resolved.settings
    check_use(settings, [key for key, origin in resolved.origins.items() if origin.startswith("flag")])
    if settings.role == "all":
        return _together(settings, own_broker=resolved.origins["broker"] == "default")
    configure(settings.log_level, settings.log_format)
    if settings.scheme == "edge":
        train_whole(settings, Study(settings), _line)
    else:
        asyncio.run(_worker(settings))
    return 0


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def _worker(settings: HierarchicalSettings) -> None:
    stop = stop_requested()
    study = await asyncio.to_thread(Study, settings)
    if settings.role == "cloud":
        await asyncio.to_thread(check_output, settings.out.absolute())
        await CloudWorker(settings, study, stop, _line).run()
    else:
        await EdgeWorker(settings, study, stop).run()


# --- all on this machine


class _Progress:
    """How far the first edge is, by its log, of which what is there already is of an earlier run."""

    def __init__(self, log: Path, bar: Progress, text: str) -> None:
        self._log, self._bar = log, bar
        self._earlier = log.stat().st_size if log.exists() else 0
        self._task = bar.add_task(text, total=1.0)

    def share(self) -> float | None:
        """Of the steps; None: training has not begun."""
        try:
            text = self._log.read_bytes()[self._earlier :].decode(errors="replace")
        except OSError:
            return None
        if "training begins" not in text:
            return None
        steps = _STEP.findall(text)
        return int(steps[-1][0]) / int(steps[-1][1]) if steps else 0.0

    def tell(self) -> None:
        self._bar.update(self._task, completed=self.share() or 0.0)

    async def until(self, share: float) -> None:
        while True:
            done = self.share()
            if done is not None and done >= share:
                return
            await asyncio.sleep(_POLL_S)


@dataclass(frozen=True, slots=True)
class Run:
    """What one scheme came to. ``edges``: figures of each; ``cloud``: None for the scheme without one."""

    scheme: str
    shaped_by: str
    edges: tuple[dict[str, Any], ...]
    cloud: dict[str, Any] | None
    accuracies: tuple[float, ...]

    @property
    def cut(self) -> int:
        return int(self.edges[0]["cut"])

    @property
    def seconds(self) -> float:
        """Until the last batch was learned from, of the slowest edge."""
        return max(float(edge["seconds"]) for edge in self.edges)

    @property
    def step_s(self) -> float:
        return max(float(edge["seconds"]) / max(int(edge["steps"]), 1) for edge in self.edges)

    def plain(self) -> dict[str, Any]:
        """For files."""
        return {
            "scheme": self.scheme, "cut": self.cut, "shaped_by": self.shaped_by, "seconds": self.seconds,
            "step_s": self.step_s, "accuracy_by_exit": list(self.accuracies), "edges": list(self.edges), "cloud": self.cloud,
        }  # fmt: skip


def _together(settings: HierarchicalSettings, *, own_broker: bool) -> int:
    """Every scheme after the other; the first one's artifact is ``--out``, those to compare with lie beside it."""
    console = Console()
    check_model(settings)
    runs: list[Run] = []
    for number, scheme in enumerate(settings.schemes):
        out = settings.out if number == 0 else settings.out.with_name(f"{settings.out.name}-{scheme}")
        check_output(out.absolute())
        chosen = next(
            (run.cut for run in runs if run.scheme != "edge"), None
        )  # by measurement; the others get the same
        cut = settings.cut if settings.cut is not None else chosen
        one = replace(settings, schemes=(scheme,), out=out.absolute(), cut=cut, data_dir=settings.data_dir.absolute())
        runs.append(run_tidily(measured_run(one, console, own_broker=own_broker)))
    _show(console, settings, runs)
    return 0


def check_model(settings: HierarchicalSettings) -> None:
    """What the workers would find wrong is said here, in one line and before anything is started. Raises ``UsageError``."""
    study = Study(settings)
    study.own_samples()
    if settings.cut is not None:
        study.fits(settings.cut)
    smallest = (min(settings.limit or len(study.parts.train), len(study.parts.train))) // settings.edges
    if smallest < settings.batch_size:
        raise UsageError("--batch-size", f"at most the {smallest} samples of an edge", settings.batch_size)


async def measured_run(settings: HierarchicalSettings, console: Console, *, own_broker: bool = True) -> Run:
    """One scheme with real processes, to its end. Raises ``MdiExitError`` if one of them fails."""
    settings.work.mkdir(parents=True, exist_ok=True)
    fleet = Fleet(settings.work)
    names = [f"edge{number}" for number in range(1, settings.edges + 1)]
    secret = {"MDI_EXIT_PASSWORD": settings.password} if settings.password is not None else {}
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    progress = _Progress(settings.work / "edge1.log", bar, settings.scheme)
    bar.start()
    try:
        if settings.scheme == "edge":
            await fleet.start("edge1", _MODULE, _flags(settings, "edge", "edge1", None, 1))
            await _ended(fleet, progress.tell)
            return _found(settings, names, "no link")
        async with _broker(settings, own_broker=own_broker) as (url, place):
            async with edge_links(names, settings.link, settings.shaping, place) as links:
                await fleet.start("cloud", _MODULE, _flags(settings, "cloud", "cloud", url, 1), more=secret)
                for number, name in enumerate(names, 1):
                    flags = _flags(settings, "edge", name, links.urls[name], number)
                    await fleet.start(name, _MODULE, flags, inside=links.inside(name), more=secret)
                link = links.by if settings.link is None else f"{show_bit_rate(settings.link)}, {links.by}"
                console.print(f"{settings.scheme}: {settings.edges} edge(s), {link}; logs in {settings.work}")
                await _ended_with_outage(fleet, settings, links, console, progress)
            return _found(settings, names, links.by)
    finally:
        bar.stop()
        with contextlib.suppress(MdiExitError):  # the first reason is told
            await fleet.stop()


@contextlib.asynccontextmanager
async def _broker(settings: HierarchicalSettings, *, own_broker: bool) -> AsyncIterator[tuple[str, tuple[str, int]]]:
    if not own_broker:
        address = settings.broker.addresses[0]
        if address.is_auto or address.tls:
            raise UsageError("--broker", "mqtt://HOST:PORT where one command starts all", settings.broker)
        if not await answers(address):
            raise StartError(f"broker {address}: expected one that answers, got none")
        yield str(address), (address.host, address.port)
        return
    async with embedded_broker() as broker:
        yield broker.url, (broker.host, broker.port)


def _flags(settings: HierarchicalSettings, role: str, name: str, url: str | None, shard: int) -> list[str]:
    """Of a child: everything by flags."""
    given = {
        "role": role, "name": name, "broker": url, "scheme": settings.scheme, "out": settings.out,
        "shard": f"{shard}/{settings.edges}" if role == "edge" else None, "edges": settings.edges,
        "data": settings.data, "model": settings.model,
        "width": settings.width, "cut": "auto" if settings.cut is None else settings.cut, "codec": settings.codec,
        "gradient-codec": settings.gradient_codec, "epochs": settings.epochs, "steps": settings.steps,
        "limit": settings.limit, "batch-size": settings.batch_size, "learning-rate": settings.learning_rate,
        "augment": settings.augment, "window": settings.window, "staleness": settings.staleness,
        "dead-after": settings.dead_after, "give-up": settings.give_up, "checkpoint-every": settings.checkpoint_every,
        "slow-edge": settings.slow_edge, "seed": settings.seed, "threads": settings.threads, "data-dir": settings.data_dir,
        "input-shape": ",".join(map(str, settings.input_shape)) if settings.input_shape else None,
        "deployment": settings.deployment, "username": settings.username,
    }  # fmt: skip
    return [text for flag, value in given.items() if value is not None for text in (f"--{flag}", str(value))]


async def _ended(fleet: Fleet, tell: Callable[[], None]) -> None:
    """Until all have ended well; ``tell`` is called all the time. Raises ``NodeEndedError``."""
    while True:
        tell()
        fleet.check()
        if all(process.returncode == 0 for process in fleet.processes.values()):
            return
        await asyncio.sleep(_POLL_S)


async def _ended_with_outage(
    fleet: Fleet, settings: HierarchicalSettings, links: EdgeLinks, console: Console, progress: _Progress
) -> None:
    """As ``_ended``, the link cut meanwhile if that is wanted; an outage that came too late is told."""
    if settings.outage is None:
        await _ended(fleet, progress.tell)
        return
    begun = asyncio.Event()

    async def cut(outage: Outage) -> None:
        await progress.until(outage.at_share)
        await links.out(outage, begun)

    outage = asyncio.create_task(cut(settings.outage), name="outage")
    try:
        await _ended(fleet, progress.tell)
    finally:
        outage.cancel()
        await asyncio.gather(outage, return_exceptions=True)
    if not begun.is_set():
        seconds = _read(settings.work / "edge1.json")["seconds"]
        console.print(f"the outage did not come: edge1 had ended before, after {seconds:.1f} s of training")


def _found(settings: HierarchicalSettings, names: Sequence[str], shaped_by: str) -> Run:
    edges = tuple(_read(settings.work / f"{name}.json") for name in names)
    cloud = _read(settings.work / "cloud.json") if settings.scheme != "edge" else None
    accuracies = tuple((cloud if cloud is not None else edges[0])["accuracy_by_exit"])
    return Run(settings.scheme, shaped_by, edges, cloud, accuracies)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise MdiExitError(f"{path}: expected the figures of a worker, got: {error}") from None
    return found


def _show(console: Console, settings: HierarchicalSettings, runs: Sequence[Run]) -> None:
    """As narrow as can be: no column of zeros."""
    unsent = [sum(edge.get("batches_skipped", 0) for edge in run.edges) for run in runs]
    stalest = [run.cloud["stalest_steps"] if run.cloud is not None else 0 for run in runs]
    more = {name: column for name, column in (("unsent", unsent), ("stale", stalest)) if any(column)}
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        title=f"{settings.model}, cut after layer {runs[0].cut}, {show_bit_rate(settings.link)}",
    )
    for column in ("scheme", "steps", "seconds", "s/step", "MB", *more, "exit %", "last %"):
        table.add_column(column, justify="left" if column == "scheme" else "right", no_wrap=True)
    for row, run in enumerate(runs):
        sent = sum(edge.get("bytes_sent", 0) for edge in run.edges) / 1e6
        table.add_row(
            run.scheme, str(sum(edge["steps"] for edge in run.edges)), f"{run.seconds:.1f}", f"{run.step_s:.3f}",
            f"{sent:.2f}", *(str(column[row]) for column in more.values()),
            f"{100 * run.accuracies[0]:.2f}", f"{100 * run.accuracies[-1]:.2f}",
        )  # fmt: skip
    console.print(table)
    cloud = runs[0].cloud
    if cloud is not None and cloud.get("expected_step_s"):
        console.print(f"expected by the runtime model: {cloud['expected_step_s']:.3f} s a step")


if __name__ == "__main__":
    from mdi_exit.config import run_program

    sys.exit(run_program(_NAME, lambda: main(sys.argv[1:])))
