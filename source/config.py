"""The settings of ``edge-source``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mdi_exit import values
from mdi_exit.config import REQUIRED, Derived, Resolved, resolve, setting
from mdi_exit.errors import UsageError
from mdi_exit.journal import SYNCS
from mdi_exit.model.artifact import calibration_of
from mdi_exit.orders import ADAPTATIONS
from mdi_exit.policy.offloading import OFFLOADING
from mdi_exit.settings import NodeSettings
from mdi_exit.span import LayerSpan
from mdi_exit.tensors import CODECS
from mdi_exit.topics import user_topic
from source.input_kinds import KINDS, REQUESTS, ParsedInput, parse_input
from source.schedule import Schedule, schedule

__all__ = ["DEFAULT_PREFIX", "SourceSettings", "resolve_source"]

DEFAULT_PREFIX = "homeassistant"


def home_prefix(text: str) -> str:
    """A discovery prefix; ``on`` is the usual one, ``off`` (nothing else is called so) takes back."""
    try:
        return DEFAULT_PREFIX if values.switch(text) else "off"
    except UsageError:
        return user_topic(text)


def _per_second(value: str) -> float:
    per_s = values.rate(value)
    if per_s is None:
        raise UsageError("", "pictures a second such as 4/s", repr(value))
    return per_s


def _show_per_second(value: float | None) -> str:
    return "none" if value is None else values.show_rate(value)


def _calibrated(known: Mapping[str, Any], key: Literal["exit_threshold", "min_threshold"]) -> float | Derived:
    """The threshold from which the model promises something; without a promise the one that it was calibrated for."""
    found = calibration_of(known["model"])
    at = found.threshold if found else None
    if found is None or at is None:
        return 0.8 if key == "exit_threshold" else 0.5
    if found.promise is not None:
        return Derived(at, f"model {known['model']}: promised")
    return Derived(at, f"model {known['model']}: calibrated") if key == "exit_threshold" else min(0.5, at)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings(NodeSettings):
    """One source. ``rate`` is items a second (None: as fast as admission allows).

    ``layers`` None: the source runs no layers; ``duration`` and ``limit`` None: until the input ends.
    """

    input: ParsedInput = setting(
        REQUIRED, help="what to classify: " + "; ".join(f"{kind.form}, {kind.meaning}" for kind in KINDS),
        parse=parse_input, metavar="SPEC",
    )  # fmt: skip
    fps: float | None = setting(
        None, help="frames taken of each second of a camera or video; default: all", parse=values.positive_float,
        metavar="N",
    )  # fmt: skip
    realtime: bool = setting(False, help="show a video file at its own speed, as a camera would", parse=values.switch)
    model: str = setting(
        "fashion-mnist-mobilenetv2",
        help="a shipped model's name, or the path of an artifact",
        metavar="NAME-or-PATH",
        also=("--artifact",),
    )
    layers: LayerSpan | None = setting(
        None, help="layers that the source runs itself: 0-3", parse=LayerSpan.parse, metavar="SPAN"
    )
    rate: float | None = setting(
        None, help="items offered a second: 25/s, or max", parse=values.rate, metavar="N/s", show=values.show_rate
    )
    schedule: Schedule | None = setting(
        None, help="phases instead of --rate: calm=20/s@0s,load=60/s@10s", parse=schedule, metavar="PHASES"
    )
    arrivals: str = setting("fixed", help="spacing of the arrivals", choices=("fixed", "poisson"))
    exit_threshold: float = setting(
        0.8, help="confidence above which an item exits; 1: never early; default: the model's calibrated one, else 0.8",
        parse=values.fraction, metavar="T", derive=lambda known: _calibrated(known, "exit_threshold"),
    )  # fmt: skip
    min_threshold: float = setting(
        0.5, help="the lowest that --adapt threshold may go; default: what the model promises from, else 0.5",
        parse=values.fraction, metavar="T", derive=lambda known: _calibrated(known, "min_threshold"),
    )  # fmt: skip
    adapt: str = setting(
        "none", help="what follows the load: rate and threshold by the paper's steps, or the threshold by another rule",
        choices=ADAPTATIONS,
    )  # fmt: skip
    offloading: str | None = setting(
        None,
        help="how all nodes offer tasks; default: by the paper's rule, or as --adapt wants",
        choices=tuple(OFFLOADING),
    )
    outcomes: Path | None = setting(
        None, help="what the exits said of known samples (mdi-exit profile): --adapt optimiser then gives each exit a "
        "threshold of its own", parse=values.path, metavar="TRACE.npz",
    )  # fmt: skip
    target_p99: float | None = setting(
        None, help="latency that 99 of 100 answers are to keep to; the threshold follows from it, as with --adapt latency",
        parse=values.duration, metavar="TIME", show=values.show_seconds,
    )  # fmt: skip
    deadline: float | None = setting(
        None, help="answer each item of the input within this time, by the best exit that it has reached",
        parse=values.duration, metavar="TIME", show=values.show_seconds,
    )  # fmt: skip
    codec: str = setting(
        "float32", help="how features travel, also between agents, unless the model says it of a cut", choices=CODECS
    )
    results: Path | None = setting(
        None, help="one line per admitted item: JSON, or CSV by the suffix .csv; - is stdout", parse=values.path,
        metavar="FILE.jsonl",
    )  # fmt: skip
    journal: Path | None = setting(
        None, help="write down what is admitted and finished; started again after a crash, the source goes on where it was",
        parse=values.path, metavar="FILE",
    )  # fmt: skip
    journal_sync: str = setting(
        "full", help="what the journal outlasts; full: a loss of power too; normal: the end of the process only",
        choices=SYNCS,
    )  # fmt: skip
    overwrite: bool = setting(False, help="replace existing files of results", parse=values.switch)
    publish: str | None = setting(
        None, help="publish each result as JSON on this topic", parse=user_topic, metavar="TOPIC"
    )
    publish_qos: int = setting(
        0, help="of --publish; 1: the broker acknowledges each", parse=values.integer(0, 1), metavar="N"
    )
    home_assistant: str | None = setting(
        None, help=f"show labels and node health in Home Assistant, whose discovery prefix is {DEFAULT_PREFIX} unless given; "
        "off removes what earlier runs have left", parse=home_prefix, metavar="PREFIX", bare="on",
    )  # fmt: skip
    summary: Path | None = setting(None, help="the run's totals", parse=values.path, metavar="FILE.json")
    timeline: Path | None = setting(
        None, help="the run over time, one JSON line each half second", parse=values.path, metavar="FILE.jsonl"
    )
    frames: float | None = setting(
        None, help="publish small pictures of so many items a second, for the live page: 4/s", parse=_per_second,
        metavar="N/s", show=_show_per_second,
    )  # fmt: skip
    limit: int | None = setting(None, help="stop after so many items", parse=values.positive_int, metavar="N")
    duration: float | None = setting(
        None, help="stop offering after this time", parse=values.duration, metavar="TIME", show=values.show_seconds
    )
    repeat: bool = setting(False, help="begin the input again when it ends, without end", parse=values.switch)
    shuffle: bool = setting(False, help="offer the items in the random order of --seed", parse=values.switch)
    seed: int = setting(0, help="of arrivals, choices and --shuffle", parse=values.integer(0), metavar="N")
    max_pending: int = setting(
        512, help="items admitted and not finished at any time; default 512, and 16 of a live input, to stay up to date",
        parse=values.integer(1, 1_000_000), metavar="N",
        derive=lambda known: 16 if known["input"].kind.live or known["realtime"] else 512,
    )  # fmt: skip
    max_queue: int = setting(
        40, help="tasks waiting at the source at which admission stops", parse=values.integer(1, 1_000_000),
        metavar="N",
    )  # fmt: skip
    max_requests: int = setting(
        32, help="requests of one client that may wait; further ones are refused", parse=values.integer(1, 100_000),
        metavar="N",
    )  # fmt: skip
    name: str = setting("source", help="unique in the deployment", parse=values.name)
    broker_stats: str = setting(
        "mosquitto", help="whose $SYS topics to export; none: for a broker that takes offence at the subscription",
        choices=("mosquitto", "none"),
    )  # fmt: skip
    data_dir: Path = setting(
        Path("data"), help="where data sets are looked for and stored", parse=values.path, metavar="DIR"
    )

    def __post_init__(self) -> None:
        NodeSettings.__post_init__(self)
        if self.input.kind is REQUESTS:
            self._no_input_of_its_own()
        if self.adapt == "latency" and self.target_p99 is None:
            raise UsageError("--adapt latency", "a latency to keep to, by --target-p99", "none")
        if self.outcomes is not None and self.adapt != "optimiser":
            raise UsageError("--outcomes", "--adapt optimiser", self.adapt)
        if self.target_p99 is not None and self.adapt not in ("none", "latency"):
            raise UsageError("--target-p99", "--adapt latency, or none", self.adapt)
        if self.policy not in ("none", "rate") and self.min_threshold > self.exit_threshold:
            raise UsageError("--min-threshold", f"at most --exit-threshold {self.exit_threshold:g}", self.min_threshold)
        if self.journal is not None and self.results is not None and self.results == Path("-"):
            raise UsageError("--results", "a file, which can be gone on with, beside --journal", "-")
        files = [file for file in (self.results, self.summary, self.timeline, self.journal) if file is not None]
        if len(set(files)) != len(files):
            raise UsageError("--results, --summary, --timeline, --journal", "different files", files[0])

    @property
    def policy(self) -> str:
        """What follows the load; a target of the latency is enough to say so."""
        return "latency" if self.target_p99 is not None else self.adapt

    def _no_input_of_its_own(self) -> None:
        paces = {"--rate": self.rate, "--schedule": self.schedule, "--limit": self.limit, "--shuffle": self.shuffle}
        for flag, given in paces.items():
            if given:
                raise UsageError(flag, "none with --input requests: the clients set the pace", given)
        if self.adapt == "rate":
            raise UsageError("--adapt", "threshold or none with --input requests", self.adapt)


def resolve_source(argv: Sequence[str], env: Mapping[str, str]) -> Resolved[SourceSettings]:
    """See ``mdi_exit.config.resolve``."""
    return resolve(
        SourceSettings, argv, env, prog="edge-source", section="source",
        description="Owns the data: admits items, runs its layers if it has any, collects one result for each item.",
    )  # fmt: skip
