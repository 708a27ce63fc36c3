"""Links of an emulated testbed by the Linux kernel: a network namespace for each node, with a cable to one hub.

The **rate** of each direction is an ``htb`` class at its sending end. A **shared medium** is one ``htb`` class on a device of
the hub (``ifb``) through which all that its stations send and receive passes; stations and directions that want more than
there is get equal parts of it. **Lost packets** are dropped by iptables at the receiving end, by chance, so that TCP repairs
them as it would on a bad link. What kernels often lack is a delay (``netem``): that is left to whoever forwards in the hub.
Needs root, and ip, tc, nsenter and iptables.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from mdi_exit.errors import MdiExitError, StartError
from mdi_exit.simulation.scenario import Link, Medium

__all__ = ["PREFIX", "KernelLinks", "kernel_links", "remove_stale", "unavailable"]

PREFIX: Final = "mdi-exit-"
_TOOLS: Final = ("ip", "tc", "nsenter", "iptables")
_NAMESPACES: Final = Path("/run/netns")
_NETWORK: Final = 0x40000000  # CLONE_NEWNET
_PACKET_BYTES: Final = 1514
_QUEUE_S: Final = 0.1
_LEAST_QUEUE_BYTES: Final = 20 * _PACKET_BYTES
_BURST_S: Final = 0.002
_MOST_FLOWS: Final = 64


def unavailable() -> str | None:
    """Why the kernel cannot shape links here; None: it can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"needs {', '.join(missing)}"
    try:
        with kernel_links({"a": Link(1e6, 1e6, 0.0, 0.1, "air")}, {"air": Medium("air", 1e6)}):
            return None
    except StartError as error:
        return str(error)


def remove_stale() -> list[str]:
    """Remove the namespaces of testbeds that were killed; returns their names."""
    gone = [path.name for path in sorted(_NAMESPACES.glob(f"{PREFIX}*")) if not _is_owned(path.name)]
    for name in gone:
        _delete(name)
    return gone


def _is_owned(name: str) -> bool:
    """Whether the process that made it still runs: names carry its number and when it began."""
    try:
        pid, began, _ = map(int, name.removeprefix(PREFIX).split("-"))
        return int(psutil.Process(pid).create_time()) == began
    except (ValueError, psutil.NoSuchProcess):
        return False


@contextlib.contextmanager
def kernel_links(links: Mapping[str, Link], media: Mapping[str, Medium]) -> Iterator[KernelLinks]:
    """Cables for all of ``links`` as long as the context lasts. Raises ``StartError`` if they cannot be had."""
    remove_stale()
    made = KernelLinks(dict(media))
    try:
        try:
            made.build(links)
        except MdiExitError as error:
            raise StartError(f"links by the kernel: {error}") from None
        yield made
    finally:
        made.remove()


@dataclass(slots=True)
class _Station:
    """The two ends of a node's cable: (namespace, device), and what is in force there."""

    number: int
    namespace: str
    rates: dict[tuple[str, str], float | None] = field(default_factory=dict)
    medium: str | None = None
    loss: float = 0.0

    @property
    def device(self) -> str:
        return f"n{self.number}"

    @property
    def address(self) -> str:
        return f"10.77.{self.number}"


@dataclass(slots=True)
class KernelLinks:
    """The namespaces of this process."""

    media: dict[str, Medium]
    hub: str = ""
    _stations: dict[str, _Station] = field(default_factory=dict)
    _made: list[str] = field(default_factory=list)

    def build(self, links: Mapping[str, Link]) -> None:
        """Raises ``MdiExitError``."""
        self.hub = self._namespace()
        for index, medium in enumerate(self.media.values()):
            air = f"air{index}"
            _ip(self.hub, f"link add {air} type ifb", f"link set {air} up")
            _tc(
                self.hub,
                f"qdisc add dev {air} root handle 1: htb default 1",
                f"class add dev {air} parent 1: classid 1:1 {_rate(medium.bytes_per_s)}",
            )
        for number, (name, link) in enumerate(links.items(), 1):
            station = self._stations[name] = _Station(number, self._namespace())
            self._connect(station)
            self.change(name, link)

    def _namespace(self) -> str:
        began = int(psutil.Process().create_time())
        name = f"{PREFIX}{os.getpid()}-{began}-{_next_number()}"
        _run("ip", "netns", "add", name)
        self._made.append(name)
        _ip(name, "link set lo up")
        return name

    def _connect(self, station: _Station) -> None:
        """One cable of small packets: a large one of 64 KB would take a quarter of a second at 2 Mbit/s."""
        device, small = station.device, f"gso_max_size {_PACKET_BYTES} gso_max_segs 1"
        _ip(
            self.hub,
            f"link add {device} {small} type veth peer name eth0 {small} netns {station.namespace}",
            f"addr add {station.address}.1/30 dev {device}",
            f"link set {device} up",
        )
        _ip(station.namespace, f"addr add {station.address}.2/30 dev eth0", "link set eth0 up")

    def change(self, name: str, link: Link) -> None:
        """From now on the node's link is this, but for its delay. Raises ``MdiExitError``."""
        station = self._stations[name]
        for end, rate in (
            ((station.namespace, "eth0"), link.up_bytes_per_s),
            ((self.hub, station.device), link.down_bytes_per_s),
        ):
            before = station.rates.get(end)
            if rate is not None:
                _tc(end[0], *_limited("add" if before is None else "change", end[1], rate))
            elif before is not None:
                _tc(end[0], f"qdisc del dev {end[1]} root")
            station.rates[end] = rate
        if link.medium != station.medium:
            self._use_medium(station, link.medium)
        if link.loss != station.loss:
            for namespace, device in ((station.namespace, "eth0"), (self.hub, station.device)):
                _lose(namespace, device, station.loss, link.loss)
            station.loss = link.loss

    def _use_medium(self, station: _Station, medium: str | None) -> None:
        """Send both directions through the medium's device, there each in a class of its own."""
        device = station.device
        if station.medium is not None:
            _tc(self.hub, f"qdisc del dev {device} clsact")
        station.medium = medium
        if medium is None:
            return
        air, most = f"air{list(self.media).index(medium)}", self.media[medium].bytes_per_s
        way = f"protocol ip u32 match u32 0 0 action mirred egress redirect dev {air}"
        _tc(
            self.hub,
            f"qdisc add dev {device} clsact",
            f"filter add dev {device} ingress {way}",
            f"filter add dev {device} egress {way}",
        )
        for number, side in ((2 * station.number, "src"), (2 * station.number + 1, "dst")):
            leaf = f"1:{number:x}0"
            _tc(
                self.hub,
                f"class replace dev {air} parent 1:1 classid {leaf} {_rate(most / _MOST_FLOWS, most)}",
                f"qdisc replace dev {air} parent {leaf} {_queue(most)}",
                f"filter add dev {air} parent 1: protocol ip u32 match ip {side} {station.address}.2 flowid {leaf}",
            )

    def inside(self, name: str) -> list[str]:
        """What to put before a command so that it runs at this node."""
        return ["nsenter", f"--net={_NAMESPACES / self._stations[name].namespace}"]

    def hub_address(self, name: str) -> str:
        """The hub as this node sees it."""
        return f"{self._stations[name].address}.1"

    def listener(self, name: str) -> socket.socket:
        """A socket of this process that listens in the hub for this node."""
        return _in_namespace(self.hub, self.hub_address(name))

    def remove(self) -> None:
        """Remove all; a namespace goes when the last process in it has ended."""
        for name in reversed(self._made):
            _delete(name)
        self._made.clear()


_numbers = iter(range(1, 1 << 31))


def _next_number() -> int:
    return next(_numbers)


def _limited(verb: str, device: str, bytes_per_s: float) -> list[str]:
    """Lines of tc: no more than that leaves the device."""
    if verb == "change":
        return [f"class change dev {device} parent 1: classid 1:1 {_rate(bytes_per_s)}"]
    return [
        f"qdisc add dev {device} root handle 1: htb default 1",
        f"class add dev {device} parent 1: classid 1:1 {_rate(bytes_per_s)}",
        f"qdisc add dev {device} parent 1:1 handle 10: {_queue(bytes_per_s)}",
    ]


def _rate(bytes_per_s: float, most_per_s: float | None = None) -> str:
    """An htb class of that rate, which may borrow up to ``most_per_s`` (None: nothing)."""
    most_per_s = bytes_per_s if most_per_s is None else most_per_s
    burst = max(2 * _PACKET_BYTES, int(most_per_s * _BURST_S))
    bits, most_bits = max(round(8 * bytes_per_s), 8), max(round(8 * most_per_s), 8)
    return f"htb rate {bits}bit ceil {most_bits}bit burst {burst} cburst {burst} quantum {_PACKET_BYTES}"


def _queue(bytes_per_s: float) -> str:
    """A short one: what comes when it is full is dropped."""
    return f"bfifo limit {max(_LEAST_QUEUE_BYTES, int(bytes_per_s * _QUEUE_S))}"


def _lose(namespace: str, device: str, before: float, after: float) -> None:
    inside = ("nsenter", f"--net={_NAMESPACES / namespace}", "iptables", "-w")
    for verb, share in (("-D", before), ("-A", after)):
        if share:
            chance = ("-m", "statistic", "--mode", "random", "--probability", f"{share:.6f}")
            _run(*inside, verb, "INPUT", "-i", device, *chance, "-j", "DROP")


def _ip(namespace: str, *lines: str) -> None:
    _run("ip", "-n", namespace, "-batch", "-", lines=lines)


def _tc(namespace: str, *lines: str) -> None:
    _run("tc", "-n", namespace, "-batch", "-", lines=lines)


def _delete(namespace: str) -> None:
    """It may have gone already."""
    with contextlib.suppress(MdiExitError):
        _run("ip", "netns", "del", namespace)


def _run(*words: str, lines: Sequence[str] = ()) -> None:
    """Raises ``MdiExitError`` with what the tool said."""
    text = "".join(f"{line}\n" for line in lines)
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and words of ours
            words, input=text, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MdiExitError(f"{words[0]}: {error}") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[:200]
        raise MdiExitError(f"{' '.join(lines) or ' '.join(words)}: {said or f'status {done.returncode}'}")


def _in_namespace(namespace: str, address: str) -> socket.socket:
    """A listening socket there. A socket stays in the namespace in which it was made, so a thread goes there and ends."""
    made: list[socket.socket | OSError] = []

    def make() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            with (_NAMESPACES / namespace).open("rb") as file:
                if libc.setns(file.fileno(), _NETWORK):
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_server((address, 0)))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make, name=f"listen in {namespace}")
    thread.start()
    thread.join()
    if isinstance(found := made[0], OSError):
        raise StartError(f"expected to listen in {namespace}, got: {found}")
    return found
