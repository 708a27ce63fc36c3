"""How a model reaches the agents: manifest and composed segments, in chunks, retained, from the source.

The source composes what the announced spans make possible; an agent's status is its request. A segment travels as an
outline and as files of weights that segments share (``mdi_exit.outline``), so that an agent fetches each weight once. Every
segment is checked against the size and the SHA-256 that the manifest message states, and the manifest against its own digest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mdi_exit import topics as kinds
from mdi_exit.driver import NodeDriver
from mdi_exit.errors import ArtifactError, EngineError, WireError
from mdi_exit.events import ModelRefused
from mdi_exit.fetching import Fetching
from mdi_exit.model.manifest import Manifest, parse_manifest
from mdi_exit.outline import CHUNK_BYTES, chunk_count
from mdi_exit.segments import ModelPlan, SegmentKey, needed_segments, runs_in
from mdi_exit.signing import ModelSignature, Verifier, manifest_statement, segment_statement
from mdi_exit.span import LayerSpan
from mdi_exit.topics import Route
from mdi_exit.transport import Transport
from mdi_exit.wire import Chunk, SegmentFile, crc32, encode
from mdi_exit.wire import Manifest as ManifestMessage

if TYPE_CHECKING:  # composing needs onnx, which an agent does not load
    from mdi_exit.model.compose import Composed, Composer

__all__ = ["FETCHED", "LocalModel", "ModelClient", "ModelHost"]

FETCHED: Final = "model_bytes"
"""The counter in an agent's telemetry: bytes of the model that have come, as long as more are to come."""
_FILES_AT_ONCE: Final = 8
_PATIENCE_S: Final = 3.0
_MOST_PATIENCE_S: Final = 60.0
_FULL_S: Final = 0.02
_AHEAD_BYTES: Final = 4 * CHUNK_BYTES

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Unserved:
    """A node without what it needs: the bytes that it has fetched, and since when no more have come."""

    got: int
    since: float
    patience_s: float = _PATIENCE_S


@dataclass(slots=True)
class ModelHost:
    """The source's side: composes and publishes."""

    driver: NodeDriver
    composer: Composer
    run: int
    signature: ModelSignature | None = None
    _offered: dict[SegmentKey, SegmentFile] = field(default_factory=dict)
    _files: dict[str, bytes] = field(default_factory=dict)
    _unsent: dict[str, bytes] = field(default_factory=dict)
    _sending: bool = False
    _wanted: set[SegmentKey] = field(default_factory=set)
    _busy: bool = False
    _waiting: dict[str, _Unserved] = field(default_factory=dict)

    @property
    def manifest(self) -> Manifest:
        return self.composer.artifact.manifest

    def spans_changed(self, spans: Iterable[LayerSpan]) -> None:
        """Offer whatever the spans in force make possible and is not yet on offer."""
        plan = self.manifest.plan
        inside = [span for span in spans if span.stop <= plan.layer_count]
        needed = {key for span in inside for key in needed_segments(plan, span, inside)}
        if needed - self._wanted:
            self._wanted |= needed
            if not self._busy:
                self._busy = True
                self.driver.spawn("compose", self._compose())

    async def _compose(self) -> None:
        try:
            while new := sorted(self._wanted - self._offered.keys()):
                for key in new:
                    self._offer(key, await asyncio.to_thread(self.composer.composed, key))
                self.publish_manifest()
        finally:
            self._busy = False

    def _signature_of(self, key: SegmentKey, sha256: str) -> bytes:
        """What was signed with the model; nothing if that was another graph."""
        signed = self.signature.segments.get(key.file) if self.signature else None
        if signed is None or self.signature is None:
            return b""
        if signed.sha256 == sha256:
            return bytes.fromhex(signed.signature)
        log.error(
            "%s: expected the graph that was signed (composed with onnx %s), got another: sign the model again with the onnx "
            "that is here, or agents that want a signature refuse it", key.file, self.signature.composed_with,
        )  # fmt: skip
        return b""

    def _offer(self, key: SegmentKey, made: Composed) -> None:
        """Publish those of the segment's files that are not published yet."""
        frame, signed = encode(made.outline, made.body), self._signature_of(key, made.sha256)
        self._offered[key] = SegmentFile(*key, made.size_bytes, made.sha256, chunk_count(len(frame)), signed)
        for name, raw in {**made.weights, key.file: frame}.items():
            if name not in self._files:
                self._files[name] = raw
                self._publish_file(name, raw)

    def republish(self) -> None:
        """After a reconnect: the broker may have forgotten everything."""
        for name, raw in self._files.items():
            self._publish_file(name, raw)
        self.publish_manifest()

    def look_after(self, now: float, unserved: Mapping[str, int]) -> None:
        """Offer everything again, ever less often for the same node, while one lacks what it needs and gets no further.

        Something else may have taken its place in the broker's memory. ``unserved``: bytes that such nodes have fetched.
        """
        self._waiting = {name: self._waiting.get(name, _Unserved(got, now)) for name, got in unserved.items()}
        for name, node in self._waiting.items():
            if node.got != unserved[name]:
                node.got, node.since = unserved[name], now
        stuck = [node for node in self._waiting.values() if now - node.since >= node.patience_s]
        for node in stuck:
            node.patience_s = min(2 * node.patience_s, _MOST_PATIENCE_S)
        if stuck:
            for node in self._waiting.values():
                node.since = now
            self.driver.announce_again()
            self.republish()

    def _publish_file(self, name: str, raw: bytes) -> None:
        self._unsent[name] = raw
        if not self._sending:
            self._sending = True
            self.driver.spawn("send files", self._send())

    async def _send(self) -> None:
        """Chunk by chunk, no faster than they go out: tasks and load reports are not to wait behind a whole model."""
        try:
            while self._unsent:
                name = next(iter(self._unsent))
                raw = self._unsent.pop(name)
                model, count = self.manifest.plan.digest, chunk_count(len(raw))
                for index in range(count):
                    body = raw[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                    frame = encode(Chunk(model, name, index, count, crc32(body)), body)
                    topic = self.driver.topics.chunk(model, name, index)
                    while not self._sent(topic, frame):  # noqa: ASYNC110 - nobody tells of room
                        await asyncio.sleep(_FULL_S)
        finally:
            self._sending = False

    def _sent(self, topic: str, frame: bytes) -> bool:
        return self.driver.pending_bytes() <= _AHEAD_BYTES and self.driver.publish(kinds.CHUNK, topic, frame)

    def publish_manifest(self) -> None:
        """What is on offer."""
        raw = self.composer.artifact.manifest_bytes
        message = ManifestMessage(
            run=self.run,
            source=self.driver.name,
            model=self.manifest.plan.digest,
            crc=crc32(raw),
            segments=tuple(self._offered[key] for key in sorted(self._offered)),
            signature=bytes.fromhex(self.signature.signature) if self.signature else b"",
        )
        self.driver.publish(kinds.MANIFEST, self.driver.topics.manifest, encode(message, raw))


@dataclass(slots=True)
class LocalModel:
    """A node that has the artifact itself: composes and loads what its span and the others' make possible."""

    driver: NodeDriver
    composer: Composer
    spans: tuple[LayerSpan, ...]
    _loaded: set[SegmentKey] = field(default_factory=set)
    _others: tuple[LayerSpan, ...] = ()

    def hold(self, spans: tuple[LayerSpan, ...]) -> None:
        """From now on the node has these spans: load what they need, let go of the rest."""
        plan = self.composer.artifact.manifest.plan
        self.spans = spans
        self._loaded -= _let_go(self.driver, plan, spans, self._loaded)
        self.spans_changed(self._others)

    def spans_changed(self, others: Iterable[LayerSpan]) -> None:
        """Load the segments that are newly possible."""
        manifest = self.composer.artifact.manifest
        self._others = tuple(others)
        every = [*self.spans, *self._others]
        own = [span for span in self.spans if span.stop <= len(manifest.layers)]
        needed = {key for span in own for key in needed_segments(manifest.plan, span, every)}
        if new := needed - self._loaded:
            self._loaded |= new
            self.driver.spawn("load segments", self._load(manifest, sorted(new)))

    async def _load(self, manifest: Manifest, keys: list[SegmentKey]) -> None:
        graphs = {key: await asyncio.to_thread(self.composer.segment, key) for key in keys}
        self.driver.segments_ready(await self.driver.executor.load(manifest, graphs))


@dataclass(slots=True)
class ModelClient:
    """An agent's side: fetches, checks and loads the segments of its span.

    ``verifier``: whose signature model and segments must carry; None: they need none.
    """

    driver: NodeDriver
    transport: Transport
    spans: tuple[LayerSpan, ...]
    verifier: Verifier | None = None
    _offer: tuple[str, tuple[SegmentFile, ...]] = ("", ())
    _asked: set[SegmentKey] = field(default_factory=set)
    _fetching: Fetching = field(default_factory=Fetching)
    _subscribed: frozenset[str] = frozenset()
    _busy: bool = False
    _told_outside: bool = False

    @property
    def fetched_bytes(self) -> int | None:
        """How much of what is being fetched has come since the start; None: nothing is being fetched."""
        return self._fetching.received_bytes if self._subscribed else None

    def manifest_received(self, message: ManifestMessage, body: memoryview) -> None:
        """The model in force, or more segments of it. Raises ``WireError`` for one that cannot be used."""
        known = self.driver.plan
        if known is None or known.digest != message.model:
            try:
                manifest = parse_manifest(bytes(body), "manifest from the broker")
            except ArtifactError as error:
                raise WireError("manifest", str(error)) from None
            if manifest.plan.digest != message.model:
                raise WireError("manifest", f"expected the model {message.model}, got {manifest.plan.digest}")
            if why := self._unsigned(f"model {manifest.name}", manifest_statement(manifest.digest), message.signature):
                self.driver.feed(ModelRefused())
                raise WireError("signature", why)
            self._new_model(manifest)
        self._offer = message.model, message.segments
        why = self._fetch(*self._offer)
        if self.verifier is not None:
            self.driver.feed(ModelRefused(refused=bool(why)))
        if why:
            raise WireError("signature", why)

    def _unsigned(self, what: str, statement: bytes, signature: bytes) -> str:
        """Why it is not taken, where a signature is wanted and this is none of it; else nothing."""
        if self.verifier is None or self.verifier.is_signed(statement, signature):
            return ""
        got = "another" if signature else "no signature"
        return f"{what}: expected a signature by the key of {self.verifier.origin}, got {got}"

    def hold(self, spans: tuple[LayerSpan, ...]) -> None:
        """From now on the node has these spans: fetch what they need, let go of the rest."""
        self.spans = spans
        if self.driver.plan is not None:
            plan = self.driver.plan
            self._asked -= _let_go(self.driver, plan, spans, self._asked)
            self._fetching.keep(lambda key: runs_in(plan, key, spans))
            try:
                if why := self._fetch(*self._offer):
                    raise WireError("signature", why)
            except WireError as error:  # of an offer that had nothing for us when it came
                self.driver.count_bad(error, self.driver.topics.manifest)

    def _new_model(self, manifest: Manifest) -> None:
        self._asked.clear()
        self._fetching.clear()
        self._listen()
        self._told_outside = False
        log.info("model %s (%d layers, digest %s)", manifest.name, len(manifest.layers), manifest.plan.digest[:12])
        self.driver.use_model(manifest)
        for span in self.spans:
            if span.stop > len(manifest.layers):
                last = len(manifest.layers) - 1
                log.warning("layers %s: expected layers in 0-%d, the model's; waiting for another model", span, last)
                self._told_outside = True

    def _fetch(self, model: str, offered: Iterable[SegmentFile]) -> str:
        """Ask for those that are ours; why one of them is not taken, if so."""
        plan, manifest, refused = self.driver.plan, self.driver.manifest, ""
        if self._told_outside or plan is None or manifest is None:
            return ""
        for file in offered:
            key = SegmentKey(file.entry, file.stop, file.head)
            mine = file.entry < file.stop and runs_in(plan, key, self.spans)
            if mine and (key not in self._asked or key in self._fetching):
                statement = segment_statement(manifest.digest, key.file, file.sha256)
                if why := self._unsigned(key.file, statement, file.signature):
                    refused = refused or why
                    continue
                self._fetching.want(file)
                self._asked.add(key)
        self._listen()
        return refused

    def _listen(self) -> None:
        """Subscribe to the chunks of what is to come next, and to no others.

        Few files at a time: tasks need not wait until the whole model has passed, and what is offered again is little.
        """
        wanted, model = (*self._fetching.files[:_FILES_AT_ONCE], *self._fetching.known), self._offer[0]
        for name in [name for name in wanted if name not in self._subscribed]:
            pattern = self.driver.topics.chunk(model, name, "+")
            self.driver.spawn(f"fetch {name}", self.transport.subscribe(pattern, 1))
        for name in sorted(self._subscribed.difference(wanted)):
            pattern = self.driver.topics.chunk(model, name, "+")
            self.driver.spawn(f"fetched {name}", self.transport.unsubscribe(pattern))
        self._subscribed = frozenset(wanted)

    def chunk_received(self, route: Route, chunk: Chunk, body: memoryview) -> None:
        """A part of a file that was asked for. Raises ``WireError`` if it cannot be that."""
        if route.file != chunk.file or route.digest != self._offer[0]:
            return
        try:
            self._fetching.take(chunk, route.chunk, body)
        finally:
            self._listen()
            if self._fetching.whole and not self._busy:
                self._busy = True
                self.driver.spawn("load segments", self._load())

    async def _load(self) -> None:
        try:
            while self._fetching.whole and self.driver.manifest is not None:
                batch, self._fetching.whole = self._fetching.whole, {}
                await self._load_batch(self.driver.manifest, batch)
        finally:
            self._busy = False

    async def _load_batch(self, manifest: Manifest, graphs: Mapping[SegmentKey, bytes]) -> None:
        try:
            seconds = await self.driver.executor.load(manifest, graphs)
        except EngineError as error:
            log.error("segments cannot be loaded: %s", error)
            self.driver.bad["segment"] += 1
            self._asked -= graphs.keys()
            return
        self.driver.segments_ready(seconds)


def _let_go(
    driver: NodeDriver, plan: ModelPlan, spans: tuple[LayerSpan, ...], loaded: Iterable[SegmentKey]
) -> set[SegmentKey]:
    """Unload the segments that a node of these spans cannot be asked for; returns them."""
    gone = {key for key in loaded if not runs_in(plan, key, spans)}
    if gone:
        driver.spawn("unload segments", driver.executor.unload(gone))
    return gone
