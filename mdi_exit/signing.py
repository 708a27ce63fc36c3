"""Signatures of models: Ed25519 over the manifest's digest and over each segment that can be composed of its graphs.

The manifest's digest covers all files of the artifact. What an agent runs is none of these files, though, but a segment that
the source composes of them, so each possible segment is signed too, when the artifact is. The source needs no key: it passes
signatures on, and whoever takes over a source can offer nothing that was not signed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from mdi_exit.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = [
    "SIGNATURE_FILE",
    "ModelSignature",
    "Verifier",
    "manifest_statement",
    "new_key",
    "private_key",
    "read_signature",
    "segment_statement",
]

SIGNATURE_FILE: Final = "model.sig.json"
_MOST_BYTES: Final = 16 * 1024 * 1024

Signature = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


class SignedSegment(Struct, frozen=True, kw_only=True):
    """``sha256``: of the composed graph."""

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    signature: Signature


class ModelSignature(Struct, frozen=True, kw_only=True):
    """``model.sig.json``, beside ``model.json``: ``digest`` is the manifest's, ``segments`` by name.

    ``composed_with``: the version of onnx, for the error when another one composes other bytes.
    """

    format: Annotated[int, Meta(ge=1, le=1)]
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    signature: Signature
    segments: Annotated[dict[str, SignedSegment], Meta(max_length=100_000)]
    composed_with: Annotated[str, Meta(max_length=40)] = ""


def manifest_statement(digest: str) -> bytes:
    """What is signed of a manifest; ``digest``: its whole one."""
    return b"mdi-exit model 1\n" + digest.encode()


def segment_statement(digest: str, name: str, sha256: str) -> bytes:
    """What is signed of a segment: of which model, what it is called, and its digest."""
    return "\n".join(("mdi-exit segment 1", digest, name, sha256)).encode()


def needs_library(what: str) -> None:
    """Raises ``UsageError`` where ``cryptography`` is not installed."""
    if importlib.util.find_spec("cryptography") is None:
        raise UsageError(what, "the extra 'secure' (pip install 'mdi-exit[secure]')", "none")


@dataclass(frozen=True, slots=True)
class Verifier:
    """Knows one public key, from the file ``origin``."""

    key: Ed25519PublicKey
    origin: str

    @classmethod
    def load(cls, file: Path) -> Verifier:
        """A public key in PEM. Raises ``UsageError``."""
        what = "--require-signed-model"
        needs_library(what)
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            key = load_pem_public_key(file.expanduser().read_bytes())
        except OSError as error:
            raise UsageError(what, "a public key (PEM)", f"{file}: {error.strerror}") from None
        except (ValueError, UnsupportedAlgorithm):
            raise UsageError(what, "a public key (PEM)", f"{file}, which is none") from None
        if not isinstance(key, Ed25519PublicKey):
            raise UsageError(what, "an Ed25519 public key", f"{file}, of another kind")
        return cls(key, str(file))

    def is_signed(self, statement: bytes, signature: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature

        try:
            self.key.verify(signature, statement)
        except InvalidSignature:
            return False
        return True

    def check_artifact(self, folder: Path, digest: str) -> None:
        """The artifact in ``folder``, whose manifest has this digest, is signed. Raises ``ArtifactError``."""
        signature = read_signature(folder, digest)
        if signature is None:
            raise ArtifactError(f"model {folder}", f"one that is signed ({SIGNATURE_FILE})", "none")
        if not self.is_signed(manifest_statement(digest), bytes.fromhex(signature.signature)):
            raise ArtifactError(f"model {folder}: signature", f"one by the key of {self.origin}", "another")


def read_signature(folder: Path, digest: str) -> ModelSignature | None:
    """The signature beside the artifact of this digest; None: it has none. Raises ``ArtifactError``."""
    path = folder / SIGNATURE_FILE
    try:
        raw = path.read_bytes() if path.stat().st_size <= _MOST_BYTES else b""
        signature = msgspec.json.decode(raw, type=ModelSignature)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactError(str(path), "a readable file", error.strerror or error) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(str(path), "a model's signature", str(error)) from None
    if signature.digest != digest:
        raise ArtifactError(str(path), f"the signature of {digest[:12]} (sign the model again)", signature.digest[:12])
    return signature


def private_key(file: Path) -> Ed25519PrivateKey:
    """A signing key in PEM. Raises ``UsageError``."""
    needs_library("secure sign")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(file.expanduser().read_bytes(), None)
    except OSError as error:
        raise UsageError("--key", "a private key (PEM)", f"{file}: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError("--key", "a private key (PEM) without a passphrase", f"{file}, which is none") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError("--key", "an Ed25519 private key", f"{file}, of another kind")
    return key


def new_key() -> tuple[bytes, bytes]:
    """A new key: private and public half, PEM."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), public
