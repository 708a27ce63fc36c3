"""``mdi-exit demo``: broker, source and agents as real processes over real images, watched live."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from rich.console import Console

from broker.embedded import embedded_broker
from mdi_exit import values
from mdi_exit.config import resolve
from mdi_exit.demo.config import DemoSettings
from mdi_exit.demo.deployment import Deployment, NodeSpec, RunSpec, read_deployment
from mdi_exit.demo.fleet import Fleet
from mdi_exit.demo.view import LiveView
from mdi_exit.engine.onnx import OnnxEngine
from mdi_exit.engine.profile import parse_profile
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.gateway.command import need_web
from mdi_exit.gateway.config import GatewaySettings
from mdi_exit.modality import modality_of
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.results import Summary
from mdi_exit.segments import SegmentKey
from mdi_exit.snapshot import Snapshot, read_timeline
from mdi_exit.span import LayerSpan
from source.input_kinds import FOLDER, REQUESTS, SET, TEST, TEXT, TEXT_SET, WAV, ParsedInput
from source.inputs import checked_kind, open_input

__all__ = ["main"]

_DEPLOYMENT: Final = "demo"
_LOAD_FACTOR: Final = 4.0
_FRAMES_PER_S: Final = 2.0
_START_S: Final = 60.0
_POLL_S: Final = 0.1
_SINGLE_ITEMS: Final = 300
_SHUFFLED: Final = (SET, TEXT_SET, TEST, TEXT, WAV, FOLDER)
# Unequal boards: the agents' speeds relative to the profile.
_SPEEDS: Final = (1.0, 0.6, 0.4)


def main(argv: Sequence[str]) -> int:
    """Run the demo with these arguments; returns the exit status. Raises ``MdiExitError``."""
    resolved = resolve(
        DemoSettings,
        argv,
        os.environ,
        prog="mdi-exit demo",
        section="demo",
        description="Runs the whole system on this machine: broker, source, agents, real items, a live view.",
    )
    given = {key for key, origin in resolved.origins.items() if origin != "default"}
    return asyncio.run(_demo(resolved.settings, given))


def _default_deployment(nodes: int, layers: int, profile: str) -> Deployment:
    """A source with all layers, as in the paper, and agents of different speed whose spans overlap."""
    spans = itertools.cycle(_spans(layers))
    speeds = itertools.cycle(_SPEEDS)
    agents = tuple(
        NodeSpec(f"agent-{number}", span, None, _scaled(profile, speed), join_at_s=2.0 * (number - 1))
        for number, span, speed in zip(range(1, nodes), spans, speeds, strict=False)
    )
    return Deployment(NodeSpec("source", LayerSpan(0, layers), None, _scaled(profile, 1.0)), agents, RunSpec())


def _spans(layers: int) -> list[LayerSpan]:
    """From the third layer on, the second half, the middle; of a short network what there is of these."""
    wanted = ((2, layers), (layers // 2, layers), (2, layers - 2))
    return [LayerSpan(first, stop) for first, stop in wanted if first < stop] or [LayerSpan(0, layers)]


def _scaled(profile: str, speed: float) -> str | None:
    if profile == "none":
        return None
    return profile if speed == 1.0 else f"{profile}x{speed:g}"


def _schedule(settings: DemoSettings, run: RunSpec, duration_s: float) -> list[str]:
    """Flags for the offered rate: a calm third, a load step, a recovery."""
    if run.phases:
        starts = itertools.accumulate((phase.duration_s for phase in run.phases), initial=0.0)
        parts = [f"{p.name}={p.rate_per_s:g}/s@{start:g}s" for p, start in zip(run.phases, starts, strict=False)]
        return ["--schedule", ",".join(parts)]
    if run.rate is not None:
        return ["--rate", "max" if run.rate == "max" else f"{run.rate:g}/s"]
    if settings.rate is None or settings.adapt == "rate":
        return ["--rate", "max"] if settings.rate is None else ["--rate", f"{settings.rate:g}/s"]
    third = duration_s / 3
    load = settings.rate * _LOAD_FACTOR
    return [
        "--schedule",
        f"calm={settings.rate:g}/s@0s,load={load:g}/s@{third:g}s,recovery={settings.rate:g}/s@{2 * third:g}s",
    ]


def _node_flags(node: NodeSpec, url: str) -> list[str]:
    flags = ["--broker", url, "--name", node.name, "--deployment", _DEPLOYMENT]
    flags += ["--layers", str(node.layers)] if node.layers is not None else []
    flags += [f"--neighbours={','.join(node.neighbours)}"] if node.neighbours is not None else []
    return flags + (["--profile", node.profile] if node.profile else [])


def _source_flags(
    settings: DemoSettings, run: RunSpec, duration_s: float, folder: Path, *, pictures: bool
) -> list[str]:
    """``pictures``: whether there are any to be shown."""
    threshold = run.exit_threshold if run.exit_threshold is not None else settings.exit_threshold
    seed = run.seed if run.seed is not None else settings.seed
    return [
        *("--input", settings.input.text, "--model", settings.artifact, "--seed", str(seed)),
        *(["--shuffle"] if settings.input.kind in _SHUFFLED else []),
        *("--adapt", run.adapt or settings.adapt, "--exit-threshold", f"{threshold:g}"),
        *("--min-threshold", f"{min(0.4, threshold):g}", "--duration", f"{duration_s:g}s", "--overwrite"),
        *("--results", str(folder / "results.jsonl"), "--summary", str(folder / "summary.json")),
        *("--timeline", str(folder / "timeline.jsonl")),
        *(() if settings.web is None or not pictures else ("--frames", f"{_FRAMES_PER_S:g}/s")),
        *_schedule(settings, run, duration_s),
    ]


async def _demo(settings: DemoSettings, given: AbstractSet[str]) -> int:
    """``given``: the settings that are no defaults; they outrank the topology's file."""
    console = Console()
    artifact = Artifact.open(settings.artifact)
    Composer(artifact).check()
    checked_kind(settings.input, artifact.manifest)
    layers = len(artifact.manifest.layers)
    if settings.profile != "none":
        parse_profile(settings.profile)
    if settings.topology is None:
        deployment = _default_deployment(settings.nodes, layers, settings.profile)
    elif in_vain := sorted(given & {"nodes", "profile"}):
        raise UsageError(f"--{in_vain[0]}", "it in the topology's file", f"both it and --topology {settings.topology}")
    else:
        deployment = read_deployment(settings.topology, layers)
        deployment = replace(deployment, run=deployment.run.outranked(given))
    folder = _emptied(settings.out)
    duration_s = deployment.run.duration_s or settings.duration
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with _broker(settings, console) as url, _page(settings, url, console):
        fleet = Fleet(folder)
        pictures = artifact.manifest.input.kind == "image"
        flags = _source_flags(settings, deployment.run, duration_s, folder, pictures=pictures)
        try:
            await _watch(fleet, deployment, flags, url, stop, console)
        finally:
            await fleet.stop()
        return await asyncio.to_thread(_conclude, settings, artifact, folder, console)


def _emptied(folder: Path) -> Path:
    """The folder of this run; what an earlier demo left in it goes."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "timeline.jsonl").exists():
        raise UsageError("--out", "a new or empty folder, or that of an earlier demo", folder)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        (folder / "timeline.jsonl").touch()
    except OSError as error:
        raise UsageError("--out", "a folder that can be made", f"{folder}: {error.strerror}") from None
    return folder


@contextlib.asynccontextmanager
async def _broker(settings: DemoSettings, console: Console) -> AsyncIterator[str]:
    if settings.broker is not None:
        yield str(settings.broker)
        return
    async with embedded_broker() as broker:
        console.print(f"broker: {broker.kind} on {broker.url}")
        yield broker.url


@contextlib.asynccontextmanager
async def _page(settings: DemoSettings, url: str, console: Console) -> AsyncIterator[None]:
    """The gateway with its live page, where it is wanted; it stays until the summary is out."""
    if settings.web is None:
        yield
        return
    need_web("mdi-exit demo --web")
    from mdi_exit.gateway.app import serving

    gateway = GatewaySettings(broker=values.brokers(url), deployment=_DEPLOYMENT, http=settings.web)
    async with serving(gateway, "--web") as address:
        console.print(f"live page: {address}")
        yield


async def _watch(
    fleet: Fleet,
    deployment: Deployment,
    flags: Sequence[str],
    url: str,
    stop: asyncio.Event,
    console: Console,
) -> None:
    """Start every node at its time, the source with ``flags``, and show what happens until the source ends."""
    begin = time.monotonic()
    await fleet.start("source", "source.cli", [*_node_flags(deployment.source, url), *flags])
    source = fleet.processes["source"]
    waiting = sorted(deployment.agents, key=lambda agent: agent.join_at_s)
    tail = _Tail(fleet.folder / "timeline.jsonl")
    with LiveView(console, title="mdi-exit demo") as view:
        while source.returncode is None:
            while waiting and time.monotonic() - begin >= waiting[0].join_at_s:
                agent = waiting.pop(0)
                await fleet.start(agent.name, "edge_agent.cli", _node_flags(agent, url))
            for snapshot in tail.new():
                view.update(snapshot)
            if stop.is_set() or fleet.fallen() is not None:
                break
            if not tail.seen and time.monotonic() - begin > _START_S:
                raise MdiExitError(f"the source gave no sign of life in {_START_S:g} s: {fleet.complaint('source')}")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), _POLL_S)
        for snapshot in tail.new():
            view.update(snapshot)
    fleet.check()


class _Tail:
    """Whole lines that were added to a timeline since the last look."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0
        self.seen = False

    def new(self) -> list[Snapshot]:
        with self._path.open("rb") as file:
            file.seek(self._at)
            raw = file.read()
        whole = raw[: raw.rfind(b"\n") + 1]
        self._at += len(whole)
        snapshots = [Snapshot.from_json(json.loads(line)) for line in whole.splitlines()]
        self.seen = self.seen or bool(snapshots)
        return snapshots


def _single_process_per_s(artifact: Artifact, spec: ParsedInput) -> float:
    """Items a second of one process here, unemulated: the whole model, one thread, batch 1, last exit."""
    plan = artifact.manifest.plan
    composer, engine = Composer(artifact), OnnxEngine(1)
    key = SegmentKey(0, plan.layer_count, head=True)
    engine.load(key, composer.segment(key))
    if spec.kind.live or spec.kind is REQUESTS:
        items = [np.ones((1, *artifact.manifest.stated_shape(0)), np.float32)] * _SINGLE_ITEMS
    else:
        samples = itertools.islice(iter(open_input(spec.text, artifact.manifest, cycle=True)), _SINGLE_ITEMS)
        modality = modality_of(artifact)
        items = [modality.prepared(sample.raw)[None] for sample in samples]
    engine.run(key, items[0])
    begin = time.perf_counter()
    for item in items:
        engine.run(key, item)
    return len(items) / (time.perf_counter() - begin)


def _conclude(settings: DemoSettings, artifact: Artifact, folder: Path, console: Console) -> int:
    """Summary, picture, and where the files lie."""
    path = folder / "summary.json"
    if not path.exists():
        raise MdiExitError(f"the run ended without a summary (logs in {folder})")
    summary = msgspec.convert(json.loads(path.read_text()), Summary, strict=False)
    summary = replace(summary, single_process_per_s=_single_process_per_s(artifact, settings.input))
    summary.write(path)
    summary.render(console)
    picture = folder / "timeline.png"
    try:
        from mdi_exit.plot.timeline import draw

        emulated = f" (emulated: {summary.emulated})" if summary.emulated else ""
        draw(read_timeline(folder / "timeline.jsonl"), picture, f"mdi-exit demo{emulated}")
    except UsageError as error:
        console.print(f"no picture: {error}")
    console.print("files:", highlight=False)
    for file in sorted(folder.iterdir()):
        console.print(f"  {file}", highlight=False, soft_wrap=True)
    return 0 if summary.balanced and not summary.errors and not summary.pending else 1
