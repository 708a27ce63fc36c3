"""BERT-like encoders of texts (Devlin et al., arXiv 1810.04805) from a local folder, cut after each encoder layer.

N texts, T tokens (any number up to ``positions``), D channels, H attention heads of E channels, K classes. What enters layer
0 is x_NT, the number of each token plus 1, 0 where there is none; between layers travels hidden_NTD, all 0 where there is no
token. So each layer finds out by itself which positions are there, and a text gives the same whatever it is batched with.
"""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import Annotated, Final

import msgspec
import torch
from msgspec import Meta, Struct
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from mdi_exit.errors import UsageError
from mdi_exit.model.manifest import TOKENIZER_FILE

__all__ = ["Sizes", "TokenHead", "encoder_folder", "encoder_layers", "pretrained", "sizes_in"]

_ABSENT: Final = -1e9
_WEIGHTS: Final = ("word_embeddings", "position_embeddings", "token_type_embeddings")

Size = Annotated[int, Meta(ge=1, le=2**20)]


class Sizes(Struct, frozen=True, kw_only=True):
    """``positions``: the most tokens. In an artifact's ``network``, hence the limits."""

    layers: Annotated[int, Meta(ge=1, le=1024)]
    width: Annotated[int, Meta(ge=1, le=2**16)]
    heads: Annotated[int, Meta(ge=1, le=1024)]
    inner: Annotated[int, Meta(ge=1, le=2**18)]
    words: Size
    positions: Annotated[int, Meta(ge=1, le=2**16)]
    eps: Annotated[float, Meta(gt=0, lt=1)] = 1e-12

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"expected a width that {self.heads} attention heads share, got {self.width}")


# --- layers


def _present(x_NTD: Tensor) -> Tensor:
    """N×T×1: 1.0 where a position holds anything but 0."""
    return (x_NTD.abs().amax(-1, keepdim=True) > 0).to(x_NTD.dtype)


class Embedding(nn.Module):
    """x_NT to hidden_NTD: the sum of what a word and its place mean, normalised. The one token type of single texts is
    part of the places."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.words = nn.Embedding(sizes.words, sizes.width)
        self.places = nn.Parameter(torch.zeros(sizes.positions, sizes.width))
        self.norm = nn.LayerNorm(sizes.width, eps=sizes.eps)

    def forward(self, x_NT: Tensor) -> Tensor:
        there_NT = x_NT >= 0.5  # also of what is no number
        ids_NT = torch.where(there_NT, x_NT, torch.ones_like(x_NT)).round() - 1
        word_NTD = self.words(ids_NT.clamp(max=self.words.num_embeddings - 1).long())
        hidden_NTD: Tensor = self.norm(word_NTD + self.places[: x_NT.shape[1]])
        return hidden_NTD * there_NT.unsqueeze(-1).to(hidden_NTD.dtype)


class EncoderLayer(nn.Module):
    """hidden_NTD to hidden_NTD: attention among the tokens that are there, two linear maps with GELU between; norms after.

    Not torch's own: its mask turns what has no token at all into no numbers, and its shapes do not survive the export.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.query, self.key, self.value, self.out = (nn.Linear(sizes.width, sizes.width) for _ in range(4))
        self.attended = nn.LayerNorm(sizes.width, eps=sizes.eps)
        self.inner, self.outer = nn.Linear(sizes.width, sizes.inner), nn.Linear(sizes.inner, sizes.width)
        self.norm = nn.LayerNorm(sizes.width, eps=sizes.eps)

    def forward(self, hidden_NTD: Tensor) -> Tensor:
        there_NT1 = _present(hidden_NTD)
        attended_NTD = self.attended(hidden_NTD + self.out(self._attention(hidden_NTD, there_NT1)))
        made_NTD = self.outer(functional.gelu(self.inner(attended_NTD)))
        normed_NTD: Tensor = self.norm(attended_NTD + made_NTD)
        return normed_NTD * there_NT1

    def _attention(self, hidden_NTD: Tensor, there_NT1: Tensor) -> Tensor:
        query_NHTE, key_NHTE, value_NHTE = (
            part(hidden_NTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        score_NHTT = query_NHTE @ key_NHTE.transpose(2, 3) / math.sqrt(query_NHTE.shape[-1])
        absent_N11T = (1 - there_NT1).transpose(1, 2).unsqueeze(1) * _ABSENT
        share_NHTT = functional.softmax(score_NHTT + absent_N11T, -1)
        mixed_NTD: Tensor = (share_NHTT @ value_NHTE).transpose(1, 2).flatten(2)
        return mixed_NTD


class TokenHead(nn.Module):
    """hidden_NTD to logits_NK: the mean of the tokens that are there, normalised, linear.

    The norm has no weights, so that what is learned is a logistic regression. Its deviation is D^(-1/4) instead of 1, which
    suits the learning rates of the strategies: at 1, JEI-DNN's made heads of 384 channels run away.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.scale = width**-0.25
        self.linear = nn.Linear(width, classes)

    def pooled(self, hidden_NTD: Tensor) -> Tensor:
        """N×D, of which ``forward`` makes the same logits: no weight has had a say yet."""
        count_N1 = _present(hidden_NTD).sum(1).clamp(min=1)
        return hidden_NTD.sum(1) / count_N1

    def forward(self, hidden: Tensor) -> Tensor:
        pooled_ND = self.pooled(hidden) if hidden.ndim == 3 else hidden
        logits_NK: Tensor = self.linear(self.scale * self.norm(pooled_ND))
        return logits_NK


def encoder_layers(sizes: Sizes) -> list[nn.Module]:
    """Untrained; the embedding belongs to the first, since what it gives is larger than what it takes."""
    layers: list[nn.Module] = [EncoderLayer(sizes) for _ in range(sizes.layers)]
    return [nn.Sequential(Embedding(sizes), layers[0]), *layers[1:]]


# --- from a folder


class _Config(Struct, frozen=True):
    """What counts of a ``config.json``."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    model_type: str = "bert"
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"


def encoder_folder(place: str) -> Path:
    """A folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json``: as named, or in an installed package.

    Raises ``UsageError``.
    """
    roots = [Path(place).expanduser()]
    if place.isidentifier() and (spec := importlib.util.find_spec(place)) is not None:
        roots += map(Path, spec.submodule_search_locations or ())
    for folder in (root / inner for root in roots for inner in (".", "model")):
        if all((folder / name).is_file() for name in ("config.json", "model.safetensors", TOKENIZER_FILE)):
            return folder
    expected = f"a folder, or an installed package, with config.json, model.safetensors and {TOKENIZER_FILE}"
    raise UsageError(f"model bert:{place}", expected, "none")


def sizes_in(folder: Path, most_tokens: int) -> Sizes:
    """Of the encoder in a folder, for texts of at most ``most_tokens``. Raises ``UsageError``."""
    path = folder / "config.json"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Config)
        if (found.model_type, found.hidden_act, found.position_embedding_type) != ("bert", "gelu", "absolute"):
            got = f"{found.model_type}, {found.hidden_act}, {found.position_embedding_type}"
            raise UsageError(f"model file {path}", "bert, gelu, absolute positions", got)
        if most_tokens > found.max_position_embeddings:
            raise UsageError("--max-length", f"at most {found.max_position_embeddings} for {folder}", most_tokens)
        plain = {
            "layers": found.num_hidden_layers, "width": found.hidden_size, "heads": found.num_attention_heads,
            "inner": found.intermediate_size, "words": found.vocab_size, "positions": most_tokens,
            "eps": found.layer_norm_eps,
        }  # fmt: skip
        return msgspec.convert(plain, Sizes)
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"model file {path}", "the sizes of a BERT-like encoder", error) from None


def pretrained(folder: Path, sizes: Sizes) -> list[nn.Module]:
    """The encoder's layers with the weights of ``model.safetensors``. Raises ``UsageError``."""
    path = folder / "model.safetensors"
    layers = encoder_layers(sizes)
    try:
        given = {re.sub(r"^bert\.", "", name): value for name, value in load_file(path).items()}
        state = _embedding_state(given, sizes)
        for index in range(sizes.layers):
            prefix = f"{index}.1." if index == 0 else f"{index}."
            state |= {prefix + name: given[f"encoder.layer.{index}.{theirs}"] for name, theirs in _NAMES.items()}
        nn.ModuleList(layers).load_state_dict(state)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"model file {path}", "weights that can be read", error) from None
    except KeyError as error:
        raise UsageError(f"model file {path}", "the weights of a BERT-like encoder", f"no {error}") from None
    except RuntimeError as error:
        got = " ".join(str(error).split())[:200]
        raise UsageError(f"model file {path}", "weights of the sizes that config.json says", got) from None
    return layers


def _embedding_state(given: dict[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    words, places, types = (given[f"embeddings.{name}.weight"] for name in _WEIGHTS)
    norm = {f"0.0.norm.{kind}": given[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")}
    return {"0.0.words.weight": words, "0.0.places": places[: sizes.positions] + types[0], **norm}


_PARTS: Final = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attended": "attention.output.LayerNorm",
    "inner": "intermediate.dense",
    "outer": "output.dense",
    "norm": "output.LayerNorm",
}
_NAMES: Final = {f"{part}.{kind}": f"{theirs}.{kind}" for part, theirs in _PARTS.items() for kind in ("weight", "bias")}
