"""Texts: the numbers of their tokens, by the tokenizer that is in the artifact.

What enters layer 0 is float32 of shape (T,): the number of each token plus 1, since 0 means that there is none. float32
holds whole numbers up to 2²⁴. The tokenizer is a file of the library ``tokenizers``; only who prepares items reads it, never
an agent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.data.sets import Items
from mdi_exit.errors import ArtifactError, UsageError
from mdi_exit.modality.base import Array, Raw
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.manifest import InputSpec
from mdi_exit.padding import stacked

__all__ = ["TextInput", "tokenizer_of"]

_CHARACTERS_A_TOKEN: Final = 100
_AT_ONCE: Final = 128
_MOST_TOKEN: Final = 2**24 - 1


def tokenizer_of(artifact: Artifact) -> bytes:
    """The file. Raises ``ArtifactError``."""
    text = artifact.manifest.input.text
    for extra in artifact.manifest.files:
        if text is not None and extra.file == text.tokenizer:
            return artifact.read(extra)
    raise ArtifactError(f"model {artifact.folder}", "a tokenizer", "none")


class TextInput:
    """See ``Modality``. ``tokenizer``: its file; padding and cutting off that it asks for are replaced by the artifact's.

    Of a text only the first 100 characters for each token that there may be are looked at. One without tokens counts as the
    token of number 0.
    """

    kind: ClassVar = "text"

    def __init__(self, spec: InputSpec, tokenizer: bytes) -> None:
        self._most = spec.shape[0]
        self._tokenizer = _opened(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._most)

    def read(self, data: bytes | memoryview) -> Raw:
        try:
            return bytes(data).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"text: expected UTF-8, got {error.reason} at byte {error.start}") from None

    def prepared(self, raw: Raw) -> Array:
        if not isinstance(raw, str):
            raise UsageError("item", "a text, as the model takes", "an image, sound or values")
        return self._numbers([raw])[0]

    def ready(self, x: Array) -> Array:
        if x.ndim != 1 or not 1 <= len(x) <= self._most:
            raise ValueError(f"array: expected numbers of 1 to {self._most} tokens, got shape {x.shape}")
        if not ((x >= 1) & (x <= _MOST_TOKEN) & (x == np.rint(x))).all():  # also of NaN
            raise ValueError("array: expected numbers of tokens, each plus 1, got others")
        return np.ascontiguousarray(x, np.float32)

    def batch(self, items: Items) -> Array:
        texts = [item for item in items if isinstance(item, str)] if isinstance(items, tuple) else []
        if len(texts) < len(items):
            raise UsageError("items", "texts, as the model takes", "images or sound")
        return stacked(self._numbers(texts))

    def _numbers(self, texts: Sequence[str]) -> list[Array]:
        most = _CHARACTERS_A_TOKEN * self._most
        found: list[NDArray[np.int64]] = []
        for begin in range(0, len(texts), _AT_ONCE):  # the library also keeps what it cuts off
            some = texts[begin : begin + _AT_ONCE]
            plain = [text[:most].encode("utf-8", "replace").decode() for text in some]  # a lone surrogate is no UTF-8
            found += [np.array(each.ids or [0], np.int64) + 1 for each in self._tokenizer.encode_batch(plain)]
        if max(int(numbers.max()) for numbers in found) > _MOST_TOKEN:
            raise ValueError(f"text: expected tokens up to {_MOST_TOKEN}, got others")
        return [numbers.astype(np.float32) for numbers in found]


def _opened(raw: bytes) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UsageError("texts", "the extra 'text' (pip install 'mdi-exit[text]')", "none") from None
    try:
        return Tokenizer.from_str(raw.decode())
    except Exception as error:  # noqa: BLE001 - the library raises nothing more special for a file that is none
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ArtifactError("tokenizer", "a file of the library tokenizers", reason) from None
