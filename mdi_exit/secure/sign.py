"""``mdi-exit secure sign``: a signature beside ``model.json``, over it and over every segment that can be composed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import onnx

from mdi_exit.errors import ArtifactError, UsageError
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.segments import possible_segments
from mdi_exit.signing import (
    SIGNATURE_FILE,
    ModelSignature,
    SignedSegment,
    manifest_statement,
    segment_statement,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["sign", "signature_of"]


def signature_of(artifact: Artifact, key: Ed25519PrivateKey) -> ModelSignature:
    """Signs the artifact as it was opened, hence with every file checked against the manifest."""
    digest = artifact.manifest.digest
    segments, composer = {}, Composer(artifact)
    for segment in sorted(possible_segments(artifact.manifest.plan)):
        sha256 = composer.composed(segment).sha256
        statement = segment_statement(digest, segment.file, sha256)
        segments[segment.file] = SignedSegment(sha256=sha256, signature=key.sign(statement).hex())
    return ModelSignature(
        format=1,
        digest=digest,
        signature=key.sign(manifest_statement(digest)).hex(),
        segments=segments,
        composed_with=onnx.__version__,
    )


def sign(artifact: Artifact, key: Ed25519PrivateKey, out: Path | None) -> tuple[Path, int]:
    """Write the signature, into a copy of the artifact if ``out`` is given; where it is, and how many segments it covers.

    Raises ``ArtifactError`` where it cannot be written, ``UsageError`` if ``out`` exists.
    """
    signature = signature_of(artifact, key)
    folder = artifact.folder
    if out is not None:
        if out.exists():
            raise UsageError("--out", "a folder that does not exist", out)
        folder = out
    path = folder / SIGNATURE_FILE
    try:
        if out is not None:
            shutil.copytree(artifact.folder, out)
        part = path.with_name(f".{SIGNATURE_FILE}.new")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(signature), indent=1) + b"\n")
        part.replace(path)
    except OSError as error:
        raise ArtifactError(
            str(path), "a folder that can be written (--out copies the model)", error.strerror
        ) from None
    return path, len(signature.segments)
