"""The settings that several programs have: how the broker is reached, and what every node is told."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mdi_exit import __version__, values
from mdi_exit.config import setting
from mdi_exit.energy import DEVICES
from mdi_exit.engine import ENGINES
from mdi_exit.errors import UsageError
from mdi_exit.logs import FORMATS, LEVELS
from mdi_exit.policy.damping import Damping
from mdi_exit.span import LayerSpan
from mdi_exit.worker_config import WorkerConfig

__all__ = ["BrokerSettings", "NodeSettings", "ServiceSettings", "new_incarnation"]

_DAMPING = Damping()


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """How to reach the broker, and which deployment on it."""

    broker: values.Brokers = setting(
        values.BROKERS_AUTO, repeats=True, parse=values.brokers, metavar="URL",
        help="mqtt[s]://HOST:PORT, or several to be tried in this order; auto: on this machine, else found by mDNS",
    )  # fmt: skip
    deployment: str = setting("default", help="keeps systems on one broker apart", parse=values.name, metavar="NAME")
    username: str | None = setting(None, help="user at the broker", parse=values.text)
    password: str | None = setting(None, help="file with the password at the broker", parse=values.text, secret=True)

    def __post_init__(self) -> None:
        if self.password is not None and self.username is None:
            raise UsageError("--username", "a user to go with the password", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings(BrokerSettings):
    """A program that stays: what it says, and how."""

    log_format: str = setting("plain", help="lines for people or JSON", choices=FORMATS)
    log_level: str = setting("info", help="what to log", choices=LEVELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings(ServiceSettings):
    """One node. Times are seconds; ``neighbours`` None: every node."""

    neighbours: tuple[str, ...] | None = setting(
        None, help="the only nodes to send to: NAME,NAME", parse=values.names, metavar="NAMES"
    )
    metrics: values.HostPort | None = setting(
        values.HostPort("127.0.0.1", 0), help="where to serve metrics; port 0: a free one; off: not at all",
        parse=values.host_port_or_off, metavar="HOST:PORT", show=values.show_off,
    )  # fmt: skip
    device: str | None = setting(
        None, help="the board, for an estimate of its energy where no sensor is; default: that of --profile",
        choices=tuple(DEVICES),
    )  # fmt: skip
    profile: str | None = setting(
        None, help="stretch compute to a named device (emulation)", parse=values.device, metavar="DEVICE"
    )
    engine: str = setting("onnxruntime", help="what runs a segment", choices=ENGINES)
    threads: int = setting(1, help="compute threads of the engine", parse=values.integer(1, 256), metavar="N")
    window: int = setting(
        16, help="tasks that a sender may have waiting here for each entry layer", parse=values.integer(1, 4096),
        metavar="N",
    )  # fmt: skip
    telemetry_period: float = setting(
        0.5, help="time between load reports", parse=values.duration, metavar="TIME", show=values.show_seconds
    )
    keepalive: float = setting(
        5.0, help="silence after which the broker declares us dead", parse=values.duration, metavar="TIME",
        show=values.show_seconds,
    )  # fmt: skip
    dead_after: float = setting(
        None, help="silence after which a node counts as dead; default: 2.5s, or five load reports", parse=values.duration,
        metavar="TIME", show=values.show_seconds, derive=lambda resolved: max(2.5, 5 * resolved["telemetry_period"]),
    )  # fmt: skip
    hold_down: float = setting(
        _DAMPING.first_hold_s, help="how long a node gets no work after its second death of late; doubled by each more",
        parse=values.duration, metavar="TIME", show=values.show_seconds,
    )  # fmt: skip
    hold_down_most: float = setting(
        _DAMPING.most_hold_s,
        help="the longest such wait",
        parse=values.duration,
        metavar="TIME",
        show=values.show_seconds,
    )
    hold_down_half_life: float = setting(
        _DAMPING.half_life_s, help="time that halves what a node's deaths count", parse=values.duration, metavar="TIME",
        show=values.show_seconds,
    )  # fmt: skip

    def worker(self, name: str, span: LayerSpan | None, engine: str, emulated: str) -> WorkerConfig:
        """What the core is told at this start. ``engine`` and ``emulated``: in words, for people."""
        return WorkerConfig(
            name=name,
            incarnation=new_incarnation(),
            span=span,
            neighbours=None if self.neighbours is None else frozenset(self.neighbours),
            window=self.window,
            telemetry_period_s=self.telemetry_period,
            dead_after_s=self.dead_after,
            damping=Damping(self.hold_down_half_life, self.hold_down, self.hold_down_most),
            engine=engine,
            emulated=emulated,
            version=__version__,
        )


def new_incarnation() -> int:
    """The number of this start."""
    return time.time_ns() // 1000
