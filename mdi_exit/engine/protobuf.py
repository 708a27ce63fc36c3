"""Just enough of protobuf's wire format to look through a message without making objects of it.

The base install's only reader of protobuf is Google's, which comes with ``onnx``; an agent loads neither (70 MB), and both
would copy all weights to look at a few fields. This one steps over what it is not asked for.

Source: protobuf.dev, "Encoding". Groups, which ONNX does not use, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from mdi_exit.errors import EngineError

__all__ = ["BYTES", "FIXED32", "FIXED64", "VARINT", "Field", "Reader"]

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5
_FIXED: Final = {FIXED64: 8, FIXED32: 4}
_VARINT_BITS: Final = 70


class Field(NamedTuple):
    """``value``: of a varint, 0 to 2⁶⁴-1. The content of any other is at ``begin`` to ``end``."""

    number: int
    kind: int
    value: int
    begin: int
    end: int


class Reader:
    """Reads the fields of messages in ``data``, at most ``most`` of them in all. Raises ``EngineError``."""

    __slots__ = ("_data", "_left")

    def __init__(self, data: bytes, most: int) -> None:
        self._data, self._left = data, most

    def fields(self, begin: int, end: int) -> Iterator[Field]:
        """Those of the message at ``begin`` to ``end``, in order."""
        at = begin
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise EngineError("graph: expected fewer fields")
            tag, at = self.varint(at, end)
            number, kind = tag >> 3, tag & 7
            value, start = 0, at
            if kind == VARINT:
                value, at = self.varint(at, end)
            elif kind == BYTES:
                length, start = self.varint(at, end)
                at = start + length
            elif kind in _FIXED:
                at += _FIXED[kind]
            else:
                raise EngineError(f"graph: expected a protobuf field, got one of type {kind}")
            if at > end or not 0 < number < 2**29:
                raise EngineError(f"graph: expected field {number} within {end - begin} bytes, got a longer one")
            yield Field(number, kind, value, start, at)

    def text(self, field: Field) -> str:
        """The content as text."""
        try:
            return self._data[field.begin : field.end].decode()
        except UnicodeDecodeError:
            raise EngineError(f"graph: expected text in field {field.number}, got bytes that are none") from None

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """The whole number at ``at``, and where it ends."""
        value = shift = 0
        data = self._data
        while at < end and shift < _VARINT_BITS:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & 2**64 - 1, at
            shift += 7
        raise EngineError("graph: expected a whole number, got none")
