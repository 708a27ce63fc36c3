"""Texts as a network takes them: the numbers of their tokens, by the tokenizer that belongs to the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdi_exit.data.splits import Splits
from mdi_exit.errors import UsageError
from mdi_exit.modality.text import TextInput, tokenizer_of
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.build import TEXT_MODELS
from mdi_exit.model.manifest import TOKENIZER_FILE, InputSpec, TextSpec
from mdi_exit.model.transformer import encoder_folder
from mdi_exit.training.config import TrainSettings

__all__ = ["TextPlan", "text_plan"]


@dataclass(frozen=True, slots=True)
class TextPlan:
    """``length``: tokens of a training text in the mean, at which costs are stated."""

    spec: InputSpec
    modality: TextInput
    length: int


def text_plan(settings: TrainSettings, parts: Splits) -> TextPlan:
    """Raises ``UsageError``."""
    if settings.input_shape is not None:
        raise UsageError("--input-shape", "--max-length for texts", ",".join(map(str, settings.input_shape)))
    if settings.model is not None:
        if not settings.model.startswith(TEXT_MODELS):
            raise UsageError("--model", f"{TEXT_MODELS}FOLDER for texts", settings.model)
        folder = encoder_folder(settings.model.removeprefix(TEXT_MODELS))
        tokenizer, most = (folder / TOKENIZER_FILE).read_bytes(), settings.max_length
    elif settings.start is not None:
        start = Artifact.open(settings.start)
        if start.manifest.input.kind != "text":
            raise UsageError("--from", "an artifact that takes texts, as the data is", start.manifest.input.kind)
        tokenizer, most = tokenizer_of(start), start.manifest.input.shape[0]
    else:
        raise UsageError("--model", f"{TEXT_MODELS}FOLDER for texts", "none")
    spec = InputSpec(kind="text", shape=(most,), text=TextSpec(tokenizer=TOKENIZER_FILE))
    modality = TextInput(spec, tokenizer)
    lengths_N = (modality.batch(parts.train.items) != 0).sum(axis=1)
    return TextPlan(spec, modality, max(round(float(np.mean(lengths_N))), 1))
