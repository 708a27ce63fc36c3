"""What an artifact takes, and how it is made of what people have: one place for every kind of input.

The artifact declares its preprocessing (``InputSpec``); whoever prepares items (source, training, calibration) asks
``modality_of`` and needs to know no kind. Agents never do: what reaches them is a tensor already.
"""

from __future__ import annotations

from typing import assert_never

from mdi_exit.modality.audio import AudioInput
from mdi_exit.modality.base import Modality, Raw
from mdi_exit.modality.image import ImageInput
from mdi_exit.modality.tensor import TensorInput
from mdi_exit.model.artifact import Artifact

__all__ = ["Modality", "Raw", "modality_of"]


def modality_of(artifact: Artifact) -> Modality:
    """That of the artifact's input. Raises ``UsageError`` where an extra that it takes is not installed."""
    spec = artifact.manifest.input
    match spec.kind:
        case "image":
            return ImageInput(spec)
        case "text":
            from mdi_exit.modality.text import TextInput, tokenizer_of

            return TextInput(spec, tokenizer_of(artifact))
        case "audio":
            return AudioInput(spec)
        case "tensor":
            return TensorInput(artifact.manifest)
        case _:
            assert_never(spec.kind)
