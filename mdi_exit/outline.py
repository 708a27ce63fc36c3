"""A composed segment as an outline: its bytes without the weights, and where the weights of which files belong.

Every segment of a span carries the weights of the span's layers again: with a head and without, from this entry and from
that. Cut out and named by their digest, the weights of each layer, head or autoencoder are a file that travels once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from mdi_exit.errors import WireError
from mdi_exit.wire import MAX_HEADER_BYTES, Outline, Piece, WeightFile, crc32, decode

__all__ = ["CHUNK_BYTES", "LEAST_PIECE_BYTES", "assembled", "chunk_count", "most_chunks", "outlined", "parse_outline"]

CHUNK_BYTES: Final = 256 * 1024
LEAST_PIECE_BYTES: Final = 128
_MOST_PIECES: Final = 2048
_MOST_FILES: Final = 400
_FRAME_BYTES: Final = MAX_HEADER_BYTES + 5


def chunk_count(size: int) -> int:
    """How many chunks a file of so many bytes takes; an empty one takes one."""
    return max(-(-size // CHUNK_BYTES), 1)


def most_chunks(segment_bytes: int) -> int:
    """The most that the outline of a segment of that size may take."""
    return chunk_count(segment_bytes + _FRAME_BYTES)


def outlined(
    graph: bytes, tensors: Iterable[bytes], places: Mapping[memoryview, tuple[str, int]], sizes: Mapping[str, int]
) -> tuple[Outline, bytes]:
    """The outline of ``graph``, and what of it that has itself.

    ``tensors``: raw data in the order in which the graph has it; ``places``: for a tensor the digest of the file of weights
    that has it, and where in that; ``sizes``: bytes of these files. What is in none of them stays in the outline.
    """
    found: list[tuple[int, int, str, int]] = []
    cursor = 0
    for raw in tensors:
        place = places.get(memoryview(raw))
        if place is not None and len(raw) >= LEAST_PIECE_BYTES and (at := graph.find(raw, cursor)) >= 0:
            found.append((at, len(raw), *place))
            cursor = at + len(raw)
    largest = sorted(sorted(found, key=lambda one: -one[1])[:_MOST_PIECES])
    digests = sorted({digest for *_, digest, _ in largest})[:_MOST_FILES]
    pieces = tuple(
        Piece(at, size, digests.index(digest), start) for at, size, digest, start in largest if digest in digests
    )
    rest, end = [], 0
    for piece in pieces:
        rest.append(graph[end : piece.at])
        end = piece.at + piece.bytes
    body = b"".join([*rest, graph[end:]])
    return Outline(crc32(body), tuple(WeightFile(d, sizes[d]) for d in digests), pieces), body


def parse_outline(frame: bytes, name: str, size: int) -> tuple[Outline, memoryview]:
    """An outline and what of the segment it has itself. ``size``: of the segment it must be. Raises ``WireError``."""
    outline, body = decode(frame)
    if not isinstance(outline, Outline):
        raise WireError("outline", f"{name}: expected an outline, got {type(outline).__name__}")
    end, sizes = 0, [weights.bytes for weights in outline.weights]
    for piece in outline.pieces:
        if piece.at < end or piece.file >= len(sizes) or piece.start + piece.bytes > sizes[piece.file]:
            raise WireError("outline", f"{name}: expected pieces in a row and inside their files, got {piece}")
        end = piece.at + piece.bytes
    whole = len(body) + sum(piece.bytes for piece in outline.pieces)
    if whole != size or end > size or sum(sizes) > size:
        raise WireError("outline", f"{name}: expected {size} bytes, got {whole}, of files of {sum(sizes)}")
    return outline, body


def assembled(outline: Outline, body: bytes | memoryview, weights: Mapping[str, bytes]) -> bytes:
    """The segment; ``weights``: the files that the outline names, by digest."""
    parts: list[bytes | memoryview] = []
    used = end = 0
    for piece in outline.pieces:
        before = piece.at - end
        parts.append(body[used : used + before])
        used, end = used + before, piece.at + piece.bytes
        parts.append(memoryview(weights[outline.weights[piece.file].sha256])[piece.start : piece.start + piece.bytes])
    return b"".join([*parts, body[used:]])
