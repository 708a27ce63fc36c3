"""A BERT-like encoder of a few thousand weights with a tokenizer of its own, made on the spot, and texts for it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

__all__ = ["WORDS", "encoder", "table", "tokenizer_file"]

GOOD = ("lovely", "fine", "warm", "bright", "kind", "sweet")
BAD = ("awful", "cold", "grim", "cruel", "sour", "bitter")
PLAIN = ("the", "day", "was", "a", "dinner", "and", "film", "very", "it", "seemed", "house", "of")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *PLAIN)
WIDTH, INNER, LAYERS, HEADS, POSITIONS = 24, 48, 3, 4, 32


def tokenizer_file() -> bytes:
    """Words as they stand, in small letters, between [CLS] and [SEP]; it asks for padding, as such files often do."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106 - of words
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=16)
    return tokenizer.to_str().encode()


def encoder(folder: Path, **changed: object) -> Path:
    """The folder, with random weights under the names that BERT's have. ``changed``: of ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "bert", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "intermediate_size": INNER, "vocab_size": len(WORDS), "max_position_embeddings": POSITIONS, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | changed))
    (folder / "tokenizer.json").write_bytes(tokenizer_file())
    save_file(_weights(), folder / "model.safetensors")
    return folder


def _weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random_of(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    made = {"pooler.dense.weight": random_of(WIDTH, WIDTH)}  # not of the layers
    for name, rows in (("word", len(WORDS)), ("position", POSITIONS), ("token_type", 2)):
        made[f"embeddings.{name}_embeddings.weight"] = random_of(rows, WIDTH)
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        linear = {f"attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
        linear |= {"attention.output.dense": (WIDTH, WIDTH)}
        linear |= {"intermediate.dense": (INNER, WIDTH), "output.dense": (WIDTH, INNER)}
        for part, (rows, columns) in linear.items():
            made[f"{prefix}{part}.weight"] = random_of(rows, columns)
            made[f"{prefix}{part}.bias"] = random_of(rows)
        norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
    for norm in norms:
        made[f"{norm}.weight"], made[f"{norm}.bias"] = 1 + random_of(WIDTH), random_of(WIDTH)
    return {name: value.contiguous() for name, value in made.items()}


def table(path: Path, count: int = 400) -> Path:
    """A .jsonl of texts of 1 to 40 words, which say something good or something bad."""
    chance = random.Random(0)
    rows = []
    for number in range(count):
        label, said = (("good", GOOD), ("bad", BAD))[number % 2]
        words = [chance.choice(said if index % 2 == 0 else PLAIN) for index in range(chance.randrange(1, 40))]
        chance.shuffle(words)
        rows.append(json.dumps({"text": " ".join(words), "label": label}))
    path.write_text("\n".join(rows) + "\n")
    return path
