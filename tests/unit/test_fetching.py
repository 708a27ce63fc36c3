"""Segments as outlines and files of weights: each weight travels once, and what arrives is what was composed."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import tracemalloc
from collections import Counter
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.errors import WireError
from mdi_exit.exchange import ModelHost
from mdi_exit.fetching import Fetching
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.outline import CHUNK_BYTES, LEAST_PIECE_BYTES, assembled, chunk_count, outlined, parse_outline
from mdi_exit.segments import SegmentKey, needed_segments
from mdi_exit.span import LayerSpan
from mdi_exit.topics import Topics
from mdi_exit.wire import Chunk, Manifest, Outline, Piece, SegmentFile, WeightFile, crc32, decode, encode

KEY = SegmentKey(0, 1, True)
WEIGHTS = bytes(range(256)) * 4
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
GRAPH = b"begin" + WEIGHTS[:512] + b"middle" + WEIGHTS[512:] + b"end"


class Publishing:
    """A driver that keeps what is published."""

    name = "source"
    topics = Topics("test")

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.waits_bytes = 0
        self.work: list[Any] = []

    def publish(self, kind: object, topic: str, frame: bytes) -> bool:
        self.published.append((topic, frame))
        return True

    def pending_bytes(self) -> int:
        return self.waits_bytes

    def announce_again(self) -> None:
        pass

    def spawn(self, name: str, work: Any) -> None:
        self.work.append(work)


def frame_of(graph: bytes = GRAPH) -> bytes:
    places = {WEIGHTS[:512]: (DIGEST, 0), WEIGHTS[512:]: (DIGEST, 512)}
    views = {memoryview(raw): place for raw, place in places.items()}
    return encode(*outlined(graph, list(places), views, {DIGEST: len(WEIGHTS)}))


def offer(graph: bytes = GRAPH, chunks: int = 1) -> SegmentFile:
    return SegmentFile(*KEY, len(graph), hashlib.sha256(graph).hexdigest(), chunks)


def give(fetching: Fetching, name: str, raw: bytes, count: int = 1) -> None:
    fetching.take(Chunk("ab" * 16, name, 0, count, crc32(raw)), 0, memoryview(raw))


async def test_each_weight_travels_once_to_an_agent() -> None:
    artifact = Artifact.open("fashion-mnist-mobilenetv2")
    plan, spans = artifact.manifest.plan, [LayerSpan(0, 4), LayerSpan(2, 9)]
    driver = Publishing()
    host = ModelHost(cast(Any, driver), Composer(artifact), 1)
    host.spans_changed(spans)
    for work in driver.work:
        await work
    retained = dict(driver.published)
    assert len(retained) == len(driver.published), "nothing is published twice"
    message, _ = decode(retained[driver.topics.manifest])
    assert isinstance(message, Manifest)
    wanted = needed_segments(plan, spans[1], spans)
    fetching = Fetching()
    for file in message.segments:
        if SegmentKey(file.entry, file.stop, file.head) in wanted:
            fetching.want(file)
    came: Counter[str] = Counter()
    while files := fetching.files:
        for topic, frame in retained.items():
            route = driver.topics.parse(topic)
            if route.file == files[0]:
                chunk, body = decode(frame)
                assert isinstance(chunk, Chunk)
                came[topic] += 1
                fetching.take(chunk, route.chunk, body)
    assert set(came.values()) == {1}
    segments = {key: host.composer.segment(key) for key in wanted}
    assert fetching.whole == segments
    offered = {(file.entry, file.stop, file.head): (file.bytes, file.sha256) for file in message.segments}
    assert all(offered[key] == (len(raw), hashlib.sha256(raw).hexdigest()) for key, raw in segments.items())
    every = sum(map(len, segments.values()))
    once = sum(len(artifact.read(spec.graph)) for spec in (*artifact.manifest.layers[2:], *artifact.manifest.exits))
    assert fetching.received_bytes < min(1.1 * once, 0.9 * every)
    before = fetching.received_bytes
    fetching.keep(lambda key: key.entry == 2)
    again = next(file for file in message.segments if file.entry == 2)
    fetching.want(again)
    name = SegmentKey(again.entry, again.stop, again.head).file
    give(fetching, name, bytes(decode(retained[driver.topics.chunk(plan.digest, name, 0)])[1]))
    assert not fetching.files, "the weights of a segment are still here"
    assert fetching.received_bytes - before < 0.2 * again.bytes


def test_what_serves_a_model_holds_each_weight_once() -> None:
    artifact = Artifact.open("fashion-mnist-mobilenetv2")
    plan, spans = artifact.manifest.plan, [LayerSpan(0, 4), LayerSpan(2, 9)]
    Composer(artifact).composed(SegmentKey(0, 2, True))  # what is loaded once
    tracemalloc.start()
    try:
        composer, files = Composer(artifact), dict[str, bytes]()
        for key in sorted({key for span in spans for key in needed_segments(plan, span, spans)}):
            made = composer.composed(key)
            files |= made.weights
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.15 * sum(map(len, files.values()))


async def test_tasks_need_not_wait_behind_a_whole_model() -> None:
    driver = Publishing()
    host = ModelHost(cast(Any, driver), Composer(Artifact.open("fashion-mnist-mobilenetv2")), 1)
    raw = bytes(3 * CHUNK_BYTES)
    host._publish_file("a", raw)
    (sending,) = driver.work
    driver.waits_bytes = 8 * CHUNK_BYTES
    task = asyncio.ensure_future(sending)
    await asyncio.sleep(0.05)
    assert driver.published == [], "what is published already is to go out first"
    driver.waits_bytes = 0
    await task
    assert len(driver.published) == 3


async def test_all_is_offered_again_to_a_node_that_gets_no_further_and_to_no_other() -> None:
    driver = Publishing()
    host = ModelHost(cast(Any, driver), Composer(Artifact.open("fashion-mnist-mobilenetv2")), 1)
    for number in range(30):  # a slow link: a chunk every second
        host.look_after(float(number), {"slow": number * CHUNK_BYTES})
    assert driver.published == []
    for number in range(30, 42):
        host.look_after(float(number), {"slow": number * CHUNK_BYTES, "stuck": 5})
    assert len(driver.published) == 2, "after 3 and 6 seconds more"
    host.look_after(50.0, {})
    for number in range(50, 54):
        host.look_after(float(number), {"stuck": 5})
    assert len(driver.published) == 3


async def test_who_needs_something_is_not_kept_waiting_by_one_that_has_long_been_offered_all_in_vain() -> None:
    driver = Publishing()
    host = ModelHost(cast(Any, driver), Composer(Artifact.open("fashion-mnist-mobilenetv2")), 1)
    for number in range(25):
        host.look_after(float(number), {"busy": 0})
    assert len(driver.published) == 3, "after 3, 9 and 21 seconds; the next is due after 45"
    for number in range(25, 29):
        host.look_after(float(number), {"busy": 0, "new": 7})
    assert len(driver.published) == 4


def test_what_is_wrong_is_told_forgotten_and_awaited_anew() -> None:
    fetching = Fetching()
    fetching.want(offer())
    assert fetching.files == (KEY.file,)
    for raw, reason in (
        (b"junk", "version"),
        (encode(Chunk("ab" * 16, "x", 0, 1, crc32(b""))), "outline"),
        (frame_of(GRAPH + b"more"), "outline"),
        (encode(Outline(crc32(b""), (), (Piece(0, len(GRAPH), 0, 0),))), "outline"),
    ):
        with pytest.raises(WireError) as error:
            give(fetching, KEY.file, raw)
        assert error.value.reason == reason
    give(fetching, KEY.file, frame_of())
    assert (fetching.known, fetching.files) == ((KEY.file,), (DIGEST,))
    with pytest.raises(WireError, match="expected this SHA-256"):
        give(fetching, DIGEST, b"0" * len(WEIGHTS))
    with pytest.raises(WireError, match="expected one of 1, got 0 of 2"):
        give(fetching, DIGEST, WEIGHTS, count=2)
    with pytest.raises(WireError, match="at most"):
        give(fetching, DIGEST, bytes(CHUNK_BYTES + 1))
    give(fetching, DIGEST, WEIGHTS)
    assert fetching.whole == {KEY: GRAPH}
    assert fetching.files == ()
    give(fetching, DIGEST, WEIGHTS)  # nobody asked for it
    assert fetching.files == ()


def test_an_outline_of_another_segment_is_found_by_the_whole_digest() -> None:
    fetching = Fetching()
    fetching.want(offer())
    other = GRAPH.replace(b"middle", b"muddle")
    give(fetching, KEY.file, frame_of(other))
    with pytest.raises(WireError) as error:
        give(fetching, DIGEST, WEIGHTS)
    assert error.value.reason == "digest"
    assert not fetching.whole
    assert (fetching.known, fetching.files) == ((), (KEY.file,))
    give(fetching, KEY.file, frame_of())
    assert fetching.whole == {KEY: GRAPH}


def test_files_of_which_no_segment_has_any_use_are_no_longer_fetched() -> None:
    fetching = Fetching()
    fetching.want(offer())
    give(fetching, KEY.file, encode(Outline(crc32(GRAPH), (WeightFile("ee" * 32, 5),)), GRAPH))
    assert "ee" * 32 in fetching.files
    give(fetching, KEY.file, frame_of())
    assert (fetching.known, fetching.files) == ((KEY.file,), (DIGEST,))
    fetching.keep(lambda key: False)
    assert (fetching.known, fetching.files) == ((), ())


@pytest.mark.parametrize("file", [offer(chunks=3), SegmentFile(0, 1, True, 1 << 31, "ab" * 32, 1)])
def test_a_segment_that_cannot_be_is_refused(file: SegmentFile) -> None:
    with pytest.raises(WireError, match="segment-0-0-head"):
        Fetching().want(file)


@given(st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 7)), max_size=9), st.binary(max_size=50))
def test_an_outline_and_its_weights_make_the_segment(between: list[tuple[bytes, int]], end: bytes) -> None:
    tensors = [bytes([number]) * (LEAST_PIECE_BYTES - 2 + number) for number in range(8)]
    files = {hashlib.sha256(raw).hexdigest(): raw for raw in (b"".join(tensors[:5]), b"".join(tensors[5:]))}
    places = {
        memoryview(tensor): (digest, raw.index(tensor))
        for digest, raw in files.items()
        for tensor in tensors
        if tensor in raw
    }
    graph = b"".join(before + tensors[number] for before, number in between) + end
    used = [tensors[number] for _, number in between]
    outline, body = outlined(graph, used, places, {digest: len(raw) for digest, raw in files.items()})
    assert assembled(outline, body, files) == graph
    if sum(weights.bytes for weights in outline.weights) <= len(
        graph
    ):  # as it is where a segment has the whole of each
        assert assembled(*parse_outline(encode(outline, body), "s", len(graph)), files) == graph
    assert chunk_count(0) == chunk_count(CHUNK_BYTES) == 1
