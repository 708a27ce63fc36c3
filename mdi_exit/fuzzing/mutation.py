"""Inputs made of other inputs: bytes changed blindly, or one value of a decoded message replaced by a strange one.

Blind changes mostly break the frame; of the strange values many pass it and reach what lies behind. Both are deterministic
for a given ``Random``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

__all__ = ["Mutator", "blind", "changed_tree", "of_tokens", "strange"]

Mutator = Callable[[Random, bytes], bytes]

_EDGES: Final = (
    0,
    1,
    -1,
    23,
    127,
    128,
    255,
    256,
    65535,
    65536,
    2**31,
    2**32 - 1,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
)
_REALS: Final = (0.0, -0.0, 0.5, 1.0, -1.0, 1e9, 1e308, 5e-324, math.nan, math.inf, -math.inf)
_TEXTS: Final = (
    "",
    "a",
    "float32",
    "int8+zstd",
    "../x",
    "a\n",
    "\0",
    "é",
    "x" * 41,
    "0" * 64,
    "x" * 5000,
    "\U0001f600",
)
_MARKS: Final = (
    *(b"\x00", b"\xff", b"\x80", b"\xc0", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"),
    *(b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
    *(b"[", b"{", b'"', b"\\", b"9" * 30),
)
_LONGEST: Final = 100_000


def blind(rng: Random, data: bytes) -> bytes:
    """Some bytes flipped, put in, left out, doubled, or overwritten with marks of the formats in use."""
    made = bytearray(data)
    for _ in range(1 + int(rng.random() * 4)):
        size = len(made)
        at = int(rng.random() * (size + 1))
        match int(rng.random() * 7):
            case 0 | 1 if size:
                made[at % size] = int(rng.random() * 256)
            case 2 if size:
                made[at % size] ^= 1 << int(rng.random() * 8)
            case 3:
                made[at:at] = rng.randbytes(1 + int(rng.random() * 8))
            case 4:
                del made[at : at + 1 + int(rng.random() * 16)]
            case 5 if size < _LONGEST:
                made[at:at] = made[int(rng.random() * size) :][: 1 + int(rng.random() * 64)]
            case _:
                mark = _MARKS[int(rng.random() * len(_MARKS))]
                made[at : at + len(mark)] = mark
    return bytes(made)


def of_tokens(tokens: Sequence[bytes]) -> Mutator:
    """As ``blind``, half of the time with words of a language put in."""

    def mutate(rng: Random, data: bytes) -> bytes:
        if rng.random() < 0.5:
            at = rng.randrange(len(data) + 1)
            data = data[:at] + rng.choice(tokens) * rng.choice((1, 1, 1, 2, 2000)) + data[at:]
        return blind(rng, data) if rng.random() < 0.7 else data

    return mutate


def strange(rng: Random) -> Any:
    """A value that some message may not have there."""
    match int(rng.random() * 8):
        case 0 | 1:
            return _EDGES[int(rng.random() * len(_EDGES))]
        case 2:
            return _REALS[int(rng.random() * len(_REALS))]
        case 3 | 4:
            return _TEXTS[int(rng.random() * len(_TEXTS))]
        case 5:
            return [[], {}, None, True, False, [[]], [None], {"a": {}}][int(rng.random() * 8)]
        case 6:
            return [_EDGES[int(rng.random() * len(_EDGES))]] * (1, 2, 9, 5000)[int(rng.random() * 4)]
        case _:
            return rng.randrange(2**16)


def changed_tree(rng: Random, tree: Any) -> Any:
    """``tree`` (lists and dictionaries) with one value somewhere in it replaced, left out, doubled or moved; in place."""
    if not isinstance(tree, list | dict) or not tree:
        return strange(rng)
    parent: Any = tree
    key = _place(rng, parent)
    while isinstance(parent[key], list | dict) and parent[key] and rng.random() < 0.75:
        parent = parent[key]
        key = _place(rng, parent)
    match int(rng.random() * 8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, list):
            parent.insert(key, parent[key])
        case 1 | 2:
            parent[key] = parent[_place(rng, parent)]
        case _:
            parent[key] = strange(rng)
    return tree


def _place(rng: Random, holder: list[Any] | dict[Any, Any]) -> Any:
    """An index or a key."""
    return int(rng.random() * len(holder)) if isinstance(holder, list) else rng.choice(tuple(holder))
