"""What an agent has of the segments that it wants, which files it needs for the rest, and when one is whole.

A segment comes as an outline and files of weights, each file in chunks. A file of weights is checked against the digest that
is its name, a whole segment against the digest of the manifest message. What does not fit is forgotten and awaited anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from mdi_exit.errors import WireError
from mdi_exit.limits import MAX_GRAPH_BYTES
from mdi_exit.outline import CHUNK_BYTES, assembled, chunk_count, most_chunks, parse_outline
from mdi_exit.segments import SegmentKey
from mdi_exit.wire import Chunk, Outline, SegmentFile

__all__ = ["Fetching"]


@dataclass(slots=True)
class _File:
    """One file on its way."""

    count: int
    chunks: dict[int, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Fetching:
    """``files``: those to listen for; ``whole``: segments that have come, to be taken out.

    ``received_bytes``: of chunks that were asked for, since the start.
    """

    whole: dict[SegmentKey, bytes] = field(default_factory=dict)
    received_bytes: int = 0
    _files: dict[str, _File] = field(default_factory=dict)
    _wanted: dict[SegmentKey, SegmentFile] = field(default_factory=dict)
    _outlines: dict[SegmentKey, tuple[Outline, memoryview]] = field(default_factory=dict)
    _weights: dict[str, bytes] = field(default_factory=dict)
    _uses: dict[SegmentKey, frozenset[str]] = field(default_factory=dict)

    @property
    def files(self) -> frozenset[str]:
        return frozenset(self._files)

    def clear(self) -> None:
        """Another model: nothing of this one is of use."""
        for known in (self.whole, self._files, self._wanted, self._outlines, self._weights, self._uses):
            known.clear()

    def want(self, file: SegmentFile) -> None:
        """Fetch this segment. Raises ``WireError`` for one that cannot be."""
        key = SegmentKey(file.entry, file.stop, file.head)
        if key in self._wanted:
            return
        if file.bytes > MAX_GRAPH_BYTES or file.chunks > most_chunks(file.bytes):
            raise WireError("manifest", f"{key.file}: {file.bytes} bytes with an outline in {file.chunks} chunks")
        self._wanted[key] = file
        self._files[key.file] = _File(file.chunks)

    def keep(self, wanted: Callable[[SegmentKey], bool]) -> None:
        """Let go of all segments but the wanted ones, and of weights that only they had."""
        for key in [key for key in {*self._wanted, *self._uses} if not wanted(key)]:
            for known in (self.whole, self._wanted, self._outlines, self._uses):
                known.pop(key, None)
        used = self._prune()
        self._weights = {digest: raw for digest, raw in self._weights.items() if digest in used}

    def _prune(self) -> frozenset[str]:
        """Listen no longer for files of which no segment has any use; returns the weights of which one has."""
        used: frozenset[str] = frozenset().union(*self._uses.values())
        wanted = used.union(key.file for key in self._wanted)
        self._files = {name: file for name, file in self._files.items() if name in wanted}
        return used

    def take(self, chunk: Chunk, index: int, body: memoryview) -> None:
        """A chunk, ``index`` by its topic. Raises ``WireError`` if it cannot be that."""
        file = self._files.get(chunk.file)
        if file is None:
            return
        if chunk.count != file.count or chunk.index != index or chunk.index >= chunk.count:
            raise WireError("chunk", f"{chunk.file}: expected one of {file.count}, got {chunk.index} of {chunk.count}")
        if len(body) > CHUNK_BYTES:
            raise WireError("chunk", f"{chunk.file}: expected at most {CHUNK_BYTES} bytes, got {len(body)}")
        self.received_bytes += len(body)
        file.chunks[chunk.index] = bytes(body)
        if len(file.chunks) < file.count:
            return
        raw = b"".join(file.chunks[number] for number in range(file.count))
        file.chunks.clear()
        outline_of = next((key for key in self._wanted if key.file == chunk.file), None)
        if outline_of is None:
            self._weights_came(chunk.file, raw)
        else:
            self._outline_came(outline_of, raw)
        self._assemble()

    def _outline_came(self, key: SegmentKey, raw: bytes) -> None:
        outline, body = parse_outline(raw, key.file, self._wanted[key].bytes)
        self._outlines[key] = outline, body
        self._uses[key] = frozenset(weights.sha256 for weights in outline.weights)
        for weights in outline.weights:
            if weights.sha256 not in self._weights:
                self._files.setdefault(weights.sha256, _File(chunk_count(weights.bytes)))
        self._prune()

    def _weights_came(self, digest: str, raw: bytes) -> None:
        if hashlib.sha256(raw).hexdigest() != digest:
            raise WireError("digest", f"{digest[:12]}…: expected this SHA-256, got another")
        self._weights[digest] = raw
        del self._files[digest]

    def _assemble(self) -> None:
        """Put together the segments for which all is here."""
        wrong = ""
        for key in [key for key in self._outlines if self._uses[key] <= self._weights.keys()]:
            outline, body = self._outlines.pop(key)
            sha256 = self._wanted[key].sha256
            if (
                self._fits(outline)
                and hashlib.sha256(graph := assembled(outline, body, self._weights)).hexdigest() == sha256
            ):
                self.whole[key] = graph
                del self._wanted[key], self._files[key.file]
            else:
                wrong = f"{key.file}: expected SHA-256 {sha256[:12]}…, got another"
        if wrong:
            raise WireError("digest", wrong)

    def _fits(self, outline: Outline) -> bool:
        return all(len(self._weights[weights.sha256]) == weights.bytes for weights in outline.weights)
