"""``mdi-exit partition MODEL``: any torch model cut into layers, as an artifact that agents run."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from mdi_exit import values
from mdi_exit.config import REQUIRED, resolve, setting
from mdi_exit.engine import make_engine
from mdi_exit.engine.base import Array
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.model.artifact import Artifact, check_output
from mdi_exit.model.compose import Composer
from mdi_exit.model.manifest import TOKENIZER_FILE, InputSpec, TextSpec
from mdi_exit.segments import SegmentKey

__all__ = ["PartitionSettings", "chained", "main"]

_IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_TOLERANCE: Final = 1e-4
_VERIFIED_IMAGES: Final = 4
_RANDOM_WORDS: Final = 1000
_WIDTH: Final = 126


def _numbers(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not np.isfinite(found).all():
        raise UsageError("", "a number for each channel such as 0.485,0.456,0.406", repr(text))
    return found


def _deviations(text: str) -> tuple[float, ...]:
    found = _numbers(text)
    if min(found) <= 0:
        raise UsageError("", "numbers above 0", repr(text))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSettings:
    """``classes`` None: the model's own number. ``layers`` None: a layer wherever the model can be cut."""

    input_shape: tuple[int, int, int] | None = setting(
        None,
        help="of one image (needed but for texts)",
        parse=values.image_shape,
        metavar="C,H,W",
        show=lambda axes: ",".join(map(str, axes)) if axes else "",
    )
    max_length: int = setting(
        128, help="of texts, in tokens, for bert:FOLDER", parse=values.integer(2, 65_536), metavar="N"
    )
    out: Path = setting(REQUIRED, help="folder of the artifact", parse=values.path, metavar="DIR")
    weights: Path | None = setting(
        None, help="state dict, .pt or .safetensors (default: random)", parse=values.path, metavar="FILE"
    )
    seed: int = setting(0, help="of random weights", parse=values.integer(0), metavar="N")
    classes: int | None = setting(
        None, help="of a torchvision model (default: as many as labels, else the model's own)",
        parse=values.integer(2, 100_000), metavar="N",
    )  # fmt: skip
    layers: int | None = setting(
        None, help="at most so many, neighbours being merged to layers of like cost", parse=values.integer(1, 4096),
        metavar="N",
    )  # fmt: skip
    crossing: int = setting(
        1, help="tensors that may cross a cut; several are packed into one", parse=values.integer(1, 64), metavar="N"
    )
    labels: Path | None = setting(None, help="names of the classes, one a line", parse=values.path, metavar="FILE")
    mean: tuple[float, ...] | None = setting(
        None, help="by channel, of pixels from 0 to 1 (default: ImageNet's, or 0.5 for grey)", parse=_numbers,
        metavar="NUMBERS",
    )  # fmt: skip
    std: tuple[float, ...] | None = setting(None, help="by channel, likewise", parse=_deviations, metavar="NUMBERS")


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    resolved = resolve(
        PartitionSettings,
        argv,
        os.environ,
        prog="mdi-exit partition",
        section="partition",
        description="Cuts a torch model into layers where one tensor crosses, and writes an artifact that agents run.",
        words="MODEL",
        epilog="MODEL: a torchvision name (resnet18), MODULE:FACTORY (the current folder counts), or a FILE.pt2 that "
        "torch.export.save wrote (reading one may run code in it: use your own), or bert:FOLDER.",
    )
    model = resolved.only_word("mdi-exit partition", "MODEL")
    if importlib.util.find_spec("torch") is None:
        raise UsageError("mdi-exit partition", "the extra 'torch' (pip install 'mdi-exit[torch]')", "none")
    _partition(model, resolved.settings)
    return 0


def _partition(model: str, settings: PartitionSettings) -> None:
    import torch

    from mdi_exit.model.build import TEXT_MODELS, built
    from mdi_exit.model.export import export_artifact

    out = settings.out.absolute()
    check_output(out)
    spec, labels = _input_spec(settings, texts=model.startswith(TEXT_MODELS)), _labels(settings.labels)
    torch.set_num_threads(1)
    made = built(
        model,
        input_shape=spec.shape,
        classes=settings.classes or len(labels) or None,
        weights=settings.weights,
        seed=settings.seed,
        layers=settings.layers,
        crossing=settings.crossing,
    )
    if labels and len(labels) != made.classes:
        raise UsageError("--labels", f"{made.classes} names, as many as the model has classes", len(labels))
    artifact = export_artifact(
        made.network,
        out,
        name=_name(model),
        input_spec=spec,
        labels=labels,
        rebuild=made.description,
        training={},
        names=made.layer_names,
        files=made.files,
        timed=True,
        length=settings.max_length if spec.kind == "text" else None,
    )
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    _show(console, artifact)
    console.print(_verified(artifact, made.whole, channels_last=made.network.channels_last), soft_wrap=True)


def _name(model: str) -> str:
    """Of what a name of an artifact may have; of a path its last part."""
    word = Path(model).stem if model.endswith(".pt2") else Path(model).name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", word)[:80]


def _input_spec(settings: PartitionSettings, *, texts: bool) -> InputSpec:
    if texts:
        return InputSpec(kind="text", shape=(settings.max_length,), text=TextSpec(tokenizer=TOKENIZER_FILE))
    if settings.input_shape is None:
        raise UsageError("--input-shape", "C,H,W of one image", "none")
    channels = settings.input_shape[0]
    default = _IMAGENET if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
    mean, std = settings.mean or default[0], settings.std or default[1]
    for flag, numbers in (("--mean", mean), ("--std", std)):
        if len(numbers) != channels:
            raise UsageError(flag, f"{channels} numbers, one for each channel", len(numbers))
    return InputSpec(kind="image", shape=settings.input_shape, mean=mean, std=std)


def _labels(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    try:
        names = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("--labels", "a text file, one name a line", f"{file}: {error}") from None
    if len(names) < 2:
        raise UsageError("--labels", "at least two names, one a line", f"{len(names)} in {file}")
    return names


def _show(console: Console, artifact: Artifact) -> None:
    """What each layer costs and what leaves it."""
    manifest = artifact.manifest
    table = Table(title=f"{artifact.folder}: {len(manifest.layers)} layers")
    for column in ("layer", "name", "shape out", "MACs", "share", "parameters", "KB out", "ms"):
        table.add_column(column, justify="left" if column == "name" else "right", overflow="fold")
    head = manifest.exits[-1]
    whole = max(sum(layer.macs for layer in manifest.layers) + head.macs, 1)
    for index, layer in enumerate(manifest.layers):
        table.add_row(
            str(index), layer.name, "×".join(map(str, layer.out_shape)), f"{layer.macs:,}", f"{layer.macs / whole:.1%}",
            f"{layer.params:,}", f"{4 * np.prod(layer.out_shape) / 1000:,.1f}", f"{1000 * (layer.seconds or 0):.3f}",
        )  # fmt: skip
    if head.params:
        table.add_row("exit", "classifier", "", f"{head.macs:,}", f"{head.macs / whole:.1%}", f"{head.params:,}")
    console.print(table)


def _verified(artifact: Artifact, whole: Any, *, channels_last: bool) -> str:
    """Random inputs through the model as it came and through the artifact, cut everywhere; what was found, in words.

    Raises ``MdiExitError`` where they differ by a bit in torch, or by more than 1e-4 (of the largest logit, if that is
    above 1) or in a label in ONNX Runtime.
    """
    import torch

    from mdi_exit.model.graph import as_traced

    x_N = _random_inputs(artifact.manifest.input)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    with torch.inference_mode(), as_traced():
        expected_NK = whole.to(memory_format=layout)(_laid_out(torch.from_numpy(x_N), layout)).numpy()
    in_torch = chained(make_engine("torch", model=str(artifact.folder)), artifact, x_N)
    in_onnx = chained(make_engine("onnxruntime"), artifact, x_N)
    cuts = f"every cut ({len(artifact.manifest.layers) - 1})"
    off = float(np.abs(in_onnx - expected_NK).max())
    if not np.array_equal(in_torch, expected_NK):
        raise MdiExitError(
            f"torch: split at {cuts} differs by {np.abs(in_torch - expected_NK).max():.1e} from the whole"
        )
    if not off <= _TOLERANCE * max(1.0, float(np.abs(expected_NK).max())):
        raise MdiExitError(f"ONNX Runtime: split at {cuts} differs by {off:.1e} from the whole in torch")
    if not np.array_equal(in_onnx.argmax(1), expected_NK.argmax(1)):
        raise MdiExitError(f"ONNX Runtime: split at {cuts} gives other labels than the whole in torch")
    return f"split at {cuts} = whole: bit-equal in torch; in ONNX Runtime within {off:.1e}, the same labels"


def _random_inputs(spec: InputSpec) -> Array:
    """A few; texts are of unlike lengths."""
    rng = np.random.default_rng(0)
    if spec.kind != "text":
        return rng.standard_normal((_VERIFIED_IMAGES, *spec.shape)).astype(np.float32)
    x_NT = rng.integers(1, _RANDOM_WORDS, (_VERIFIED_IMAGES, *spec.shape)).astype(np.float32)
    for row, length in zip(x_NT, rng.integers(1, spec.shape[0] + 1, _VERIFIED_IMAGES), strict=True):
        row[length:] = 0
    return x_NT


def _laid_out(x_N: Any, layout: Any) -> Any:
    return x_N.contiguous(memory_format=layout) if x_N.ndim == 4 else x_N


def chained(engine: Any, artifact: Artifact, x_N: Array) -> Array:
    """Logits of the last exit, N×K, every layer being run by itself as a segment."""
    composer, last = Composer(artifact), len(artifact.manifest.layers) - 1
    for layer in range(last + 1):
        key = SegmentKey(layer, layer + 1, head=layer == last)
        engine.load(key, composer.segment(key))
        output = engine.run(key, x_N)
        x_N = output.logits_NK if layer == last else output.features
    return x_N
