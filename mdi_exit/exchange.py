"""How a model reaches the agents: manifest and composed segments, in chunks, retained, from the source.

The source composes what the announced spans make possible; an agent's status is its request. Every file is checked against
the size and the SHA-256 that the manifest message states, and the manifest against its own digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mdi_exit import topics as kinds
from mdi_exit.driver import NodeDriver
from mdi_exit.errors import ArtifactError, EngineError, WireError
from mdi_exit.events import ModelRefused
from mdi_exit.model.manifest import Manifest, parse_manifest
from mdi_exit.segments import ModelPlan, SegmentKey, needed_segments, runs_in
from mdi_exit.signing import ModelSignature, Verifier, manifest_statement, segment_statement
from mdi_exit.span import LayerSpan
from mdi_exit.topics import Route
from mdi_exit.transport import Transport
from mdi_exit.wire import Chunk, SegmentFile, crc32, encode
from mdi_exit.wire import Manifest as ManifestMessage

if TYPE_CHECKING:  # composing needs onnx, which an agent does not load
    from mdi_exit.model.compose import Composer

__all__ = ["CHUNK_BYTES", "LocalModel", "ModelClient", "ModelHost"]

CHUNK_BYTES: Final = 256 * 1024
_MAX_SEGMENT_BYTES: Final = 1 << 30
_PATIENCE_S: Final = 3.0
_MOST_PATIENCE_S: Final = 60.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ModelHost:
    """The source's side: composes and publishes."""

    driver: NodeDriver
    composer: Composer
    run: int
    signature: ModelSignature | None = None
    _offered: dict[SegmentKey, SegmentFile] = field(default_factory=dict)
    _wanted: set[SegmentKey] = field(default_factory=set)
    _busy: bool = False
    _patience_s: float = _PATIENCE_S
    _offer_again_at: float | None = None

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
                    graph = await asyncio.to_thread(self.composer.segment, key)
                    chunks = -(-len(graph) // CHUNK_BYTES)
                    digest = hashlib.sha256(graph).hexdigest()
                    signed = self._signature_of(key, digest)
                    self._offered[key] = SegmentFile(key.entry, key.stop, key.head, len(graph), digest, chunks, signed)
                    self._publish_segment(key)
                self._publish_manifest()
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

    def republish(self) -> None:
        """After a reconnect: the broker may have forgotten everything."""
        for key in self._offered:
            self._publish_segment(key)
        self._publish_manifest()

    def look_after(self, now: float, *, unserved: bool) -> None:
        """Offer everything again, ever less often, while a node stays without what it needs.

        Something else may have taken its place in the broker's memory.
        """
        if not unserved:
            self._patience_s, self._offer_again_at = _PATIENCE_S, None
        elif self._offer_again_at is None:
            self._offer_again_at = now + self._patience_s
        elif now >= self._offer_again_at:
            self._patience_s = min(2 * self._patience_s, _MOST_PATIENCE_S)
            self._offer_again_at = now + self._patience_s
            self.driver.announce_again()
            self.republish()

    def _publish_segment(self, key: SegmentKey) -> None:
        graph, model = self.composer.segment(key), self.manifest.plan.digest
        count = self._offered[key].chunks
        for index in range(count):
            body = graph[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            frame = encode(Chunk(model, key.file, index, count, crc32(body)), body)
            self.driver.publish(kinds.CHUNK, self.driver.topics.chunk(model, key.file, index), frame)

    def _publish_manifest(self) -> None:
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
class _Download:
    """One segment on its way."""

    file: SegmentFile
    chunks: dict[int, bytes] = field(default_factory=dict)


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
    _loaded: set[SegmentKey] = field(default_factory=set)
    _downloads: dict[str, _Download] = field(default_factory=dict)
    _complete: dict[SegmentKey, bytes] = field(default_factory=dict)
    _busy: bool = False
    _told_outside: bool = False

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
            self._check_signature(f"model {manifest.name}", manifest_statement(manifest.digest), message.signature)
            self._new_model(manifest)
        self._offer = message.model, message.segments
        self._fetch(*self._offer)
        if self.verifier is not None:
            self.driver.feed(ModelRefused(refused=False))

    def _check_signature(self, what: str, statement: bytes, signature: bytes) -> None:
        """Raises ``WireError`` where a signature is wanted and this is none of it; the agent waits for another offer."""
        if self.verifier is None or self.verifier.is_signed(statement, signature):
            return
        self.driver.feed(ModelRefused())
        got = "another" if signature else "no signature"
        raise WireError("signature", f"{what}: expected a signature by the key of {self.verifier.origin}, got {got}")

    def hold(self, spans: tuple[LayerSpan, ...]) -> None:
        """From now on the node has these spans: fetch what they need, let go of the rest."""
        self.spans = spans
        if self.driver.plan is not None:
            self._loaded -= _let_go(self.driver, self.driver.plan, spans, self._loaded)
            self._fetch(*self._offer)

    def _new_model(self, manifest: Manifest) -> None:
        self._loaded.clear()
        self._downloads.clear()
        self._complete.clear()
        self._told_outside = False
        log.info("model %s (%d layers, digest %s)", manifest.name, len(manifest.layers), manifest.plan.digest[:12])
        self.driver.use_model(manifest)
        for span in self.spans:
            if span.stop > len(manifest.layers):
                last = len(manifest.layers) - 1
                log.warning("layers %s: expected layers in 0-%d, the model's; waiting for another model", span, last)
                self._told_outside = True

    def _fetch(self, model: str, offered: Iterable[SegmentFile]) -> None:
        plan = self.driver.plan
        if self._told_outside or plan is None:
            return
        for file in offered:
            key = SegmentKey(file.entry, file.stop, file.head)
            mine = file.entry < file.stop and runs_in(plan, key, self.spans)
            if mine and key not in self._loaded and key.file not in self._downloads:
                if file.bytes > _MAX_SEGMENT_BYTES or file.chunks != -(-file.bytes // CHUNK_BYTES):
                    raise WireError("manifest", f"{key.file}: {file.bytes} bytes in {file.chunks} chunks")
                if self.verifier is not None and self.driver.manifest is not None:
                    statement = segment_statement(self.driver.manifest.digest, key.file, file.sha256)
                    self._check_signature(key.file, statement, file.signature)
                self._downloads[key.file] = _Download(file)
                pattern = self.driver.topics.chunk(model, key.file, "+")
                self.driver.spawn(f"fetch {key.file}", self.transport.subscribe(pattern, 1))

    def chunk_received(self, route: Route, chunk: Chunk, body: memoryview) -> None:
        """A piece of a file that was asked for. Raises ``WireError`` if it cannot be that."""
        download = self._downloads.get(chunk.file)
        if download is None or route.file != chunk.file:
            return
        file = download.file
        if chunk.count != file.chunks or chunk.index != route.chunk or chunk.index >= chunk.count:
            raise WireError("chunk", f"{chunk.file}: expected one of {file.chunks}, got {chunk.index} of {chunk.count}")
        if len(body) > CHUNK_BYTES:
            raise WireError("chunk", f"{chunk.file}: expected at most {CHUNK_BYTES} bytes, got {len(body)}")
        download.chunks[chunk.index] = bytes(body)
        if len(download.chunks) < file.chunks:
            return
        graph = b"".join(download.chunks[index] for index in range(file.chunks))
        download.chunks.clear()
        if len(graph) != file.bytes or hashlib.sha256(graph).hexdigest() != file.sha256:
            raise WireError("digest", f"{chunk.file}: expected SHA-256 {file.sha256[:12]}…, got another")
        del self._downloads[chunk.file]
        self._complete[SegmentKey(file.entry, file.stop, file.head)] = graph
        pattern = self.driver.topics.chunk(chunk.model, chunk.file, "+")
        self.driver.spawn(f"fetched {chunk.file}", self.transport.unsubscribe(pattern))
        if not self._busy:
            self._busy = True
            self.driver.spawn("load segments", self._load())

    async def _load(self) -> None:
        try:
            while self._complete and self.driver.manifest is not None:
                batch, self._complete = self._complete, {}
                await self._load_batch(self.driver.manifest, batch)
        finally:
            self._busy = False

    async def _load_batch(self, manifest: Manifest, graphs: Mapping[SegmentKey, bytes]) -> None:
        try:
            seconds = await self.driver.executor.load(manifest, graphs)
        except EngineError as error:
            log.error("segments cannot be loaded: %s", error)
            self.driver.bad["segment"] += 1
            return
        self._loaded |= graphs.keys()
        self.driver.segments_ready(seconds)


def _let_go(
    driver: NodeDriver, plan: ModelPlan, spans: tuple[LayerSpan, ...], loaded: Iterable[SegmentKey]
) -> set[SegmentKey]:
    """Unload the segments that a node of these spans cannot be asked for; returns them."""
    gone = {key for key in loaded if not runs_in(plan, key, spans)}
    if gone:
        driver.spawn("unload segments", driver.executor.unload(gone))
    return gone
