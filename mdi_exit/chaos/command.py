"""``mdi-exit chaos``: faults on purpose, in a running deployment or in one of its own, and whether the promise was kept."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from rich.console import Console
from rich.table import Table

from mdi_exit import values
from mdi_exit.chaos.faults import FAULTS, NETWORK_FAULTS, Fault, FaultKind, planned, trouble_of
from mdi_exit.chaos.proxy import FaultProxy
from mdi_exit.chaos.rows import RowFile
from mdi_exit.chaos.table import render, run_all, sound
from mdi_exit.chaos.verdict import rate_between, recovery_s
from mdi_exit.config import nearest, resolve, setting
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.observer import Observer
from mdi_exit.program import run_tidily
from mdi_exit.settings import BrokerSettings
from mdi_exit.wire import SourceReport

__all__ = ["ChaosSettings", "main", "node_of"]

_BEFORE_S: Final = 5.0
_AFTER_S: Final = 8.0
_POLL_S: Final = 0.1
_EPILOG: Final = """\
Your deployment: start the proxy beside the broker (mdi-exit chaos --broker mqtt://BROKER --listen 0.0.0.0:1884), and the
nodes that are to suffer with --broker mqtt://THIS-MACHINE:1884; those that stay with the broker are spared. The source's
counts tell whether each admitted item got its one result. Without a deployment: mdi-exit chaos --demo starts broker, source
and agents and does each fault to them once. Faults: """


def _faults(text: str) -> tuple[FaultKind, ...]:
    known = {str(kind): kind for kind in FAULTS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UsageError("", f"names of {', '.join(known)}", repr(name) + nearest(name, known))
    return tuple(known[name] for name in names)


def _shown(kinds: object) -> str:
    return ",".join(map(str, kinds)) if isinstance(kinds, tuple) else "all that there are"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosSettings(BrokerSettings):
    """``faults`` None: all of the network, or with ``demo`` all; ``lasts`` None: as is usual for each."""

    listen: values.HostPort = setting(
        values.HostPort("127.0.0.1", 1884), help="where the proxy stands in for the broker; port 0: a free one",
        parse=values.host_port, metavar="HOST:PORT",
    )  # fmt: skip
    faults: tuple[FaultKind, ...] | None = setting(
        None, help="which: NAME,NAME; default: all of the network, with --demo all", parse=_faults, metavar="NAMES",
        show=_shown,
    )  # fmt: skip
    seed: int = setting(
        1, help="of the schedule: the same seed gives the same faults", parse=values.integer(0), metavar="N"
    )
    every: float = setting(
        10.0,
        help="time between two faults, in the mean",
        parse=values.duration,
        metavar="TIME",
        show=values.show_seconds,
    )
    lasts: float | None = setting(
        None, help="how long each fault lasts; default: 2 to 5 s, as is usual for each", parse=values.duration,
        metavar="TIME", show=values.show_seconds,
    )  # fmt: skip
    duration: float | None = setting(
        None, help="how long in all; default: 60s, with --demo 15s for each fault", parse=values.duration, metavar="TIME",
        show=values.show_seconds,
    )  # fmt: skip
    demo: bool = setting(
        False, help="start a broker, a source and agents, and do each fault to them once", parse=values.switch
    )

    def __post_init__(self) -> None:
        BrokerSettings.__post_init__(self)
        if self.demo:
            return
        if self.broker.is_auto or len(self.broker.addresses) > 1 or self.behind.tls:
            raise UsageError("--broker", "one mqtt://HOST:PORT: the proxy reads the messages (or --demo)", self.broker)
        if other := [kind for kind in self.faults or () if kind not in NETWORK_FAULTS]:
            raise UsageError("--faults", f"faults of the network ({_shown(NETWORK_FAULTS)}) without --demo", other[0])

    @property
    def behind(self) -> values.BrokerAddress:
        """The broker behind the proxy."""
        return self.broker.addresses[0]


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns 1 if the promise was broken. Raises ``MdiExitError``."""
    resolved = resolve(
        ChaosSettings,
        argv,
        os.environ,
        prog="mdi-exit chaos",
        section="chaos",
        description="Does harm on purpose: to connections through a proxy, or to processes of its own, and counts the items.",
        epilog=_EPILOG + "; ".join(f"{kind}: {lore.about}" for kind, lore in FAULTS.items()) + ".",
    )
    settings, console = resolved.settings, Console()
    return run_tidily(_demo(settings, console)) if settings.demo else asyncio.run(_trouble(settings, console))


async def _demo(settings: ChaosSettings, console: Console) -> int:
    kinds, file = settings.faults or tuple(FAULTS), RowFile(None, "faults", ())
    console.print(f"{len(kinds)} faults, one run of {settings.duration or 15.0:g} s for each", highlight=False)
    await run_all(
        kinds, [settings.seed], settings.duration or 15.0, 1, file,
        lambda row: console.print(f"{row['fault']}: {'kept' if sound(row) else 'BROKEN'}", highlight=False),
    )  # fmt: skip
    render(console, file.rows)
    return 0 if all(map(sound, file.rows)) else 1


def node_of(client: str, deployment: str) -> str | None:
    """The node of an MQTT client id; None: it is no node of the deployment."""
    found = re.fullmatch(rf"{re.escape(deployment)}-([A-Za-z0-9_-]{{1,40}})-\d+", client)
    return found[1] if found else None


async def _trouble(settings: ChaosSettings, console: Console) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    duration_s = settings.duration or 60.0
    kinds = settings.faults or NETWORK_FAULTS
    schedule = planned(settings.seed, kinds, [""], duration_s, settings.every, settings.lasts)
    if not schedule:
        raise UsageError("--duration", f"enough for one fault every {settings.every:g} s", f"{duration_s:g} s")
    proxy = FaultProxy(
        (settings.behind.host, settings.behind.port), host=settings.listen.host, port=settings.listen.port,
        rng=Random(settings.seed),
    )  # fmt: skip
    observer = Observer(settings.broker, settings.deployment, username=settings.username, password=settings.password)
    async with proxy, observer:
        console.print(
            f"proxy on {proxy.url}: start the nodes that are to suffer with --broker {proxy.url}", highlight=False
        )
        return await _Harm(settings, proxy, observer, console, stop).run(schedule)


class _Harm:
    """Carries the schedule out and watches the source meanwhile."""

    def __init__(
        self, settings: ChaosSettings, proxy: FaultProxy, observer: Observer, console: Console, stop: asyncio.Event
    ) -> None:
        self._settings, self._proxy, self._observer = settings, proxy, observer
        self._console, self._stop = console, stop
        self._progress: list[tuple[float, int]] = []
        self._suffered: list[tuple[Fault, float, float]] = []
        self._rng = Random(f"targets {settings.seed}")
        self._loop = asyncio.get_running_loop()

    async def run(self, schedule: Sequence[Fault]) -> int:
        self._console.print("waiting for a source and a node behind the proxy", highlight=False)
        while not (self._nodes() and self._report()) and not self._stop.is_set():
            await self._pause(_POLL_S)
        begin, first = self._loop.time(), self._report()
        for fault in schedule:
            await self._pause(begin + fault.at_s - self._loop.time())
            if self._stop.is_set():
                break
            await self._inflict(fault)
        if not self._stop.is_set():
            await self._pause(_AFTER_S)
        return self._conclude(first)

    async def _inflict(self, fault: Fault) -> None:
        nodes = self._nodes()
        if not nodes:
            self._console.print(f"{fault.kind}: nobody is behind the proxy", highlight=False)
            return
        target = "" if FAULTS[fault.kind].everybody else self._rng.choice(nodes)
        fault = Fault(fault.kind, fault.at_s, fault.lasts_s, target)
        pattern = f"{self._settings.deployment}-{target}-*" if target else "*"
        trouble = trouble_of(fault.kind)
        if trouble is None:
            raise MdiExitError(f"{fault.kind}: no fault of the network")
        self._console.print(str(fault), highlight=False)
        began = self._loop.time()
        self._proxy.trouble(pattern, trouble)
        try:
            await self._pause(fault.lasts_s)
        finally:
            self._proxy.calm(pattern)
        self._suffered.append((fault, began, self._loop.time()))

    async def _pause(self, seconds: float) -> None:
        """Looking at the source's counts all the while."""
        until = self._loop.time() + seconds
        while not self._stop.is_set() and self._loop.time() < until:
            if (report := self._report()) is not None:
                self._progress.append((self._loop.time(), report.completed + report.errors))
            await asyncio.sleep(_POLL_S)

    def _nodes(self) -> list[str]:
        found = (node_of(client, self._settings.deployment) for client in self._proxy.clients)
        return sorted({name for name in found if name})

    def _report(self) -> SourceReport | None:
        return self._observer.watched.source

    def _conclude(self, first: SourceReport | None) -> int:
        last = self._report()
        if first is None or last is None:
            raise MdiExitError("no source was seen: nothing can be said")
        table = Table(title="faults")
        for column in ("fault", "at", "lasted, s", "results/s before", "recovery, s"):
            table.add_column(column, justify="left" if column in ("fault", "at") else "right")
        ends = [began for _, began, _ in self._suffered[1:]] + [self._loop.time()]
        for (fault, began, ended), until in zip(self._suffered, ends, strict=True):
            usual = rate_between(self._progress, began - _BEFORE_S, began)
            since = ended if FAULTS[fault.kind].counts_from == "end" else began
            back = recovery_s(self._progress, usual, since, until)
            shown = "not seen" if back is None else f"{back:.1f}"
            table.add_row(str(fault.kind), fault.target or "all", f"{ended - began:.1f}", f"{usual:.1f}", shown)
        self._console.print(table)
        if last.incarnation != first.incarnation:
            self._console.print("the source was started again meanwhile: counts are of its last start", highlight=False)
        balanced = last.admitted == last.completed + last.errors + last.pending
        self._console.print(
            f"admitted {last.admitted:,} = completed {last.completed:,} + errors {last.errors:,} + under way {last.pending:,}"
            f"{'' if balanced else ': DOES NOT ADD UP'}; retried {last.retried:,}, "
            f"second results discarded {last.duplicates:,}",
            highlight=False,
        )
        return 0 if balanced else 1
