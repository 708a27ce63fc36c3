"""The artifact: a folder with ``model.json``, one ONNX graph per layer, one per exit head, and the weights for torch.

Opening one needs neither torch nor onnx. A file is read, and its size and SHA-256 checked, when it is asked for.
"""

from __future__ import annotations

import hashlib
import shutil
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec

from mdi_exit.errors import ArtifactError, UsageError
from mdi_exit.limits import MAX_MANIFEST_BYTES
from mdi_exit.model.manifest import Calibration, GraphFile, Manifest, parse_manifest

__all__ = [
    "DEFAULT_MODEL",
    "Artifact",
    "calibration_of",
    "check_output",
    "graph_file",
    "made_output",
    "placed",
    "rewritten",
    "sealed",
    "shipped_models",
    "with_digest",
]

MANIFEST_FILE: Final = "model.json"
DEFAULT_MODEL: Final = "fashion-mnist-mobilenetv2"


def _assets() -> Path:
    return Path(str(resources.files("mdi_exit"))) / "assets"


def shipped_models() -> tuple[str, ...]:
    """Names of the artifacts that come with the package."""
    return tuple(sorted(path.parent.name for path in _assets().glob(f"*/{MANIFEST_FILE}")))


def _folder(name_or_path: str | Path) -> Path:
    folder = Path(name_or_path)
    shipped = not folder.is_dir() and str(name_or_path) in shipped_models()
    return _assets() / str(name_or_path) if shipped else folder


def manifest_of(name_or_path: str | Path) -> Manifest | None:
    """An artifact's manifest, its files unread; None for one that cannot be opened, which says so itself."""
    path = _folder(name_or_path) / MANIFEST_FILE
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except (OSError, ArtifactError):
        return None


def calibration_of(name_or_path: str | Path) -> Calibration | None:
    """What it says of its calibration; None as ``manifest_of``."""
    found = manifest_of(name_or_path)
    return found.calibration if found is not None else None


class Artifact:
    """An opened artifact: ``folder`` and the checked ``manifest``."""

    __slots__ = ("folder", "manifest", "manifest_bytes")

    def __init__(self, folder: Path, manifest: Manifest, manifest_bytes: bytes) -> None:
        self.folder, self.manifest, self.manifest_bytes = folder, manifest, manifest_bytes

    @classmethod
    def open(cls, name_or_path: str | Path) -> Artifact:
        """An artifact in a folder, or one that comes with the package, by name. Raises ``ArtifactError``."""
        folder = _folder(name_or_path)
        path = folder / MANIFEST_FILE
        if not path.is_file():
            expected = f"a folder with {MANIFEST_FILE}, or one of {', '.join(shipped_models()) or 'none shipped'}"
            raise ArtifactError("model", expected, repr(str(name_or_path)))
        try:
            with path.open("rb") as stream:
                raw = stream.read(MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            raise ArtifactError(f"model file {path}", "a readable file", error.strerror or error) from None
        artifact = cls(folder, parse_manifest(raw, str(path)), raw)
        for graph in artifact.files():
            artifact.read(graph)
        return artifact

    def files(self) -> list[GraphFile]:
        manifest = self.manifest
        graphs = [*(layer.graph for layer in manifest.layers), *(spec.graph for spec in manifest.exits)]
        graphs += [extra for spec in manifest.exits for extra in (spec.gate, spec.branch) if extra is not None]
        for layer in manifest.layers:
            if layer.bottleneck is not None:
                graphs += [layer.bottleneck.encoder, layer.bottleneck.decoder]
        return [*graphs, *manifest.files, *([manifest.weights] if manifest.weights else [])]

    def read(self, graph: GraphFile) -> bytes:
        """The bytes of one file, checked against the manifest. Raises ``ArtifactError``."""
        path = self.folder / graph.file
        try:
            if (size := path.stat().st_size) != graph.bytes:
                raise ArtifactError(f"model file {path}: size", f"{graph.bytes} bytes", size)
            raw = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"model file {path}", "a readable file", error.strerror or error) from None
        if (digest := hashlib.sha256(raw).hexdigest()) != graph.sha256:
            raise ArtifactError(f"model file {path}: SHA-256", graph.sha256, digest)
        return raw


def with_digest(manifest: Manifest) -> Manifest:
    """The manifest as it will be read, and its digest: msgspec leaves out a default by identity, not by equality."""
    read = msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest)
    return msgspec.structs.replace(read, digest=read.computed_digest())


def sealed(manifest: Manifest) -> bytes:
    """``model.json`` of a manifest, its digest reckoned anew."""
    return msgspec.json.format(msgspec.json.encode(with_digest(manifest), order="deterministic"), indent=1)


def graph_file(folder: Path, name: str, raw: bytes) -> GraphFile:
    """Write one file of an artifact; what the manifest is to say of it."""
    (folder / name).write_bytes(raw)
    return GraphFile(file=name, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())


def made_output(folder: Path) -> None:
    """``folder``, made if it is not there. Raises ``UsageError`` unless an artifact may be written into it."""
    check_output(folder)
    folder.mkdir(exist_ok=True)


def check_output(folder: Path) -> None:
    """Raises ``UsageError`` unless an artifact may be written into ``folder``. Only the folders above it stay made."""
    try:
        was_there = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        is_free = not any(folder.iterdir()) or (folder / MANIFEST_FILE).exists()
        if not was_there:
            folder.rmdir()
    except OSError as error:
        raise UsageError("output folder", "one that can be written to", f"{folder}: {error.strerror}") from None
    if not is_free:
        raise UsageError("output folder", "an empty folder or an artifact to replace", str(folder))


def rewritten(artifact: Artifact, manifest: Manifest, folder: Path) -> Artifact:
    """The artifact with another manifest, its files untouched: in its own folder, or copied into another.

    The manifest comes last and in one step, so that the folder never holds half an artifact. Raises ``UsageError``.
    """
    made_output(folder)
    return placed(artifact, manifest, folder)


def placed(artifact: Artifact, manifest: Manifest, folder: Path) -> Artifact:
    """As ``rewritten``, into a folder that was found free, and may have new files of ``manifest`` by now."""
    elsewhere = folder.resolve() != artifact.folder.resolve()
    try:
        for graph in artifact.files() if elsewhere else []:
            shutil.copyfile(artifact.folder / graph.file, folder / graph.file)
        fresh = folder / f"{MANIFEST_FILE}.new"
        fresh.write_bytes(sealed(manifest))
        fresh.replace(folder / MANIFEST_FILE)
    except OSError as error:
        raise UsageError("output folder", "one that can be written to", f"{folder}: {error.strerror}") from None
    return Artifact.open(folder)
