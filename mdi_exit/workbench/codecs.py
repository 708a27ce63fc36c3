"""``mdi-exit codecs ARTIFACT --data SPEC``: what features cost at each cut, and an artifact in which they are small."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mdi_exit import values
from mdi_exit.config import REQUIRED, resolve, setting
from mdi_exit.cut_rows import Row, accuracies_of, cut_rows, input_rows
from mdi_exit.data import IMAGE_SPECS, Dataset, Splits
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.model.artifact import Artifact, check_output
from mdi_exit.model.manifest import Manifest
from mdi_exit.model.variant import Halves, Variant, write_variant
from mdi_exit.tensors import CODECS, encoded_size
from mdi_exit.workbench.samples import split_as_recorded

__all__ = ["CodecsSettings", "Wanted", "bottlenecks_of", "codecs_of", "main"]

_WIDTH = 126
_MANY_EXITS = 5


@dataclass(frozen=True, slots=True)
class Wanted:
    """A bottleneck to be trained: ``channels`` of the code, and by which both sides of a map shrink."""

    channels: int
    stride: int = 1

    def __str__(self) -> str:
        return f"{self.channels}x{self.stride}" if self.stride > 1 else str(self.channels)


def codecs_of(text: str) -> tuple[tuple[int, str], ...]:
    """``3=int8+zstd,5=int4``: by the layer that the tensor enters."""
    found = []
    for part in text.split(","):
        layer, equals, codec = part.strip().partition("=")
        if not equals or not re.fullmatch(r"[0-9]{1,5}", layer) or codec not in CODECS:
            raise UsageError("", f"LAYER=CODEC such as 3=int8, with one of {', '.join(CODECS)}", repr(part))
        found.append((int(layer), codec))
    return _once(found, text)


def bottlenecks_of(text: str) -> tuple[tuple[int, Wanted], ...]:
    """``3:8x2,5:4``: by the layer that the tensor enters, channels of the code and stride."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,5}):([1-9][0-9]{0,5})(?:x([1-9][0-9]{0,2}))?", part.strip())
        if match is None:
            raise UsageError("", "LAYER:CHANNELS or LAYER:CHANNELSxSTRIDE such as 3:8x2", repr(part))
        found.append((int(match[1]), Wanted(int(match[2]), int(match[3] or 1))))
    return _once(found, text)


def _once(found: list[tuple[int, Any]], text: str) -> tuple[tuple[int, Any], ...]:
    if len({layer for layer, _ in found}) != len(found):
        raise UsageError("", "each layer once", repr(text))
    return tuple(sorted(found))


def _show_pairs(between: str) -> Callable[[Any], str]:
    return lambda pairs: ",".join(f"{layer}{between}{what}" for layer, what in pairs) or "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecsSettings:
    """``cut`` and ``bottleneck``: by the layer that the tensor enters. ``out`` None: nothing is written."""

    data: str = setting(REQUIRED, help=f"real samples: {', '.join(IMAGE_SPECS)}", metavar="SPEC")
    cut: tuple[tuple[int, str], ...] = setting(
        (), help="codec of the tensor that enters a layer: 3=int8+zstd,5=int4", parse=codecs_of,
        metavar="LAYER=CODEC,...", show=_show_pairs("="),
    )  # fmt: skip
    bottleneck: tuple[tuple[int, Wanted], ...] = setting(
        (), help="train an autoencoder there, by the channels and the stride of its code (needs the extra torch): 3:8x2",
        parse=bottlenecks_of, metavar="LAYER:CHANNELS[xSTRIDE],...", show=_show_pairs(":"),
    )  # fmt: skip
    epochs: int = setting(4, help="of training a bottleneck", parse=values.positive_int, metavar="N")
    images: int | None = setting(
        None, help="training images for bottlenecks; default: all", parse=values.positive_int, metavar="N"
    )
    samples: int = setting(2000, help="test samples measured, at most", parse=values.positive_int, metavar="N")
    out: Path | None = setting(
        None, help="write an artifact with these codecs and bottlenecks", parse=values.path, metavar="DIR"
    )
    json: Path | None = setting(None, help="write the raw rows", parse=values.path, metavar="FILE")
    seed: int | None = setting(
        None, help="of split and training; default: the artifact's, or 0", parse=values.integer(0), metavar="N"
    )
    threads: int = setting(2, help="of training", parse=values.integer(1, 1024), metavar="N")
    data_dir: Path = setting(
        Path("data"), help="where data sets are looked for and stored", parse=values.path, metavar="DIR"
    )

    def __post_init__(self) -> None:
        if self.out is not None and not self.cut and not self.bottleneck:
            raise UsageError("--out", "something to write (--cut, --bottleneck)", "neither")


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    resolved = resolve(
        CodecsSettings, argv, os.environ, prog="mdi-exit codecs", section="codecs", words="ARTIFACT",
        description="Bytes, time and accuracy of every codec at every cut, beside sending the input as a picture; with "
        "--cut and --bottleneck only those, and with --out an artifact that has them.",
        epilog="ARTIFACT: a folder, or the name of a shipped model. A cut is named by the layer that its tensor enters.",
    )  # fmt: skip
    settings = resolved.settings
    artifact = Artifact.open(resolved.only_word("mdi-exit codecs", "ARTIFACT"))
    _check(artifact, settings)
    parts = split_as_recorded(artifact.manifest, settings.data, seed=settings.seed, data_dir=settings.data_dir)
    test = parts.test.subset(np.arange(min(settings.samples, len(parts.test))))
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    rows, about = _run(artifact, settings, parts, test, console)
    if settings.json is not None:
        record = {
            "command": "mdi-exit codecs " + " ".join(argv),
            "data": parts.record.spec,
            "samples": len(test),
            **about,
        }
        _write_json(settings.json, record | {"rows": [row.to_json() for row in rows]})
    return 0


def _check(artifact: Artifact, settings: CodecsSettings) -> None:
    """Raises ``UsageError`` for what this artifact has no place for."""
    manifest = artifact.manifest
    if manifest.input.kind != "image":
        raise UsageError("model", "one of images, as the tool compares with pictures", manifest.input.kind)
    last = len(manifest.layers) - 1
    for flag, pairs in (("--cut", settings.cut), ("--bottleneck", settings.bottleneck)):
        for layer, _ in pairs:
            if not 1 <= layer <= last:
                raise UsageError(flag, f"a layer of 1-{last}, which a cut of {manifest.name} precedes", layer)
    if settings.out is not None:
        check_output(settings.out)
    if not settings.bottleneck:
        return
    if importlib.util.find_spec("torch") is None:
        raise UsageError("--bottleneck", "the extra 'torch' (pip install 'mdi-exit[torch]')", "none")
    if any(layer.bottleneck for layer in manifest.layers):
        raise UsageError("--bottleneck", "an artifact without any, all being trained together", f"{artifact.folder}")


def _run(
    artifact: Artifact, settings: CodecsSettings, parts: Splits, test: Dataset, console: Console
) -> tuple[list[Row], dict[str, Any]]:
    """The rows that were asked for, shown, and what else the record says."""
    before = accuracies_of(artifact, test)
    about: dict[str, Any] = {"artifact": artifact.manifest.name, "digest": artifact.manifest.digest}
    about["accuracies"] = list(before)
    with ExitStack() as stack:
        if not settings.cut and not settings.bottleneck:
            rows = [
                *input_rows(artifact, test),
                *_cuts(artifact, test, range(1, len(artifact.manifest.layers)), console),
            ]
            _show(console, artifact.manifest, rows, len(test))
            return rows, about
        trained, record = _trained(artifact, settings, parts, console)
        folder = settings.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mdi-exit-codecs-")))
        made = write_variant(artifact, folder, Variant(dict(settings.cut), trained, record))
        layers = sorted({layer for layer, _ in (*settings.cut, *settings.bottleneck)})
        rows = [*input_rows(artifact, test), *_cuts(made, test, layers, console)]
        after = accuracies_of(made, test)
        about |= {"variant": made.manifest.digest, "variant_accuracies": list(after), **record}
    _show(console, made.manifest, rows, len(test))
    _compare(console, made.manifest, before, after)
    if settings.out is not None:
        console.print(f"artifact: {settings.out} (digest {made.manifest.digest[:12]})")
        if artifact.manifest.calibration.promise is not None:
            console.print("the promise of its calibration was made for the old features: calibrate it anew")
    return rows, about


def _cuts(artifact: Artifact, test: Dataset, layers: Iterable[int], console: Console) -> list[Row]:
    wanted = [*layers]
    rows: list[Row] = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=len(wanted) * len(CODECS))
        for row in cut_rows(artifact, test, wanted):
            rows.append(row)
            bar.advance(task)
    return rows


def _trained(
    artifact: Artifact, settings: CodecsSettings, parts: Splits, console: Console
) -> tuple[dict[int, Halves], dict[str, Any]]:
    """The bottlenecks, one after the other, each through those before it; and the record of their training."""
    if not settings.bottleneck:
        return {}, {}
    from mdi_exit.workbench.bottlenecks import train_all

    if len(parts.train) == 0:
        raise UsageError("--data", "samples for training bottlenecks", f"{settings.data}, which has none")
    images = parts.train.subset(np.arange(min(settings.images or len(parts.train), len(parts.train))))
    return train_all(
        artifact,
        images,
        {layer: (wanted.channels, wanted.stride) for layer, wanted in settings.bottleneck},
        dict(settings.cut),
        epochs=settings.epochs,
        seed=parts.record.seed,
        threads=settings.threads,
        console=console,
    )


# --- what people see


def _show(console: Console, manifest: Manifest, rows: Sequence[Row], samples: int) -> None:
    table = Table(
        title=f"{manifest.name} on {samples:,} test samples: what enters a layer, and accuracy (%) at each exit",
        padding=(0, 0) if len(manifest.exits) > _MANY_EXITS else (0, 1),
    )
    for column in ("layer", "shape", "as", "bytes", "ratio", "enc ms", "dec ms"):
        table.add_column(column, justify="left" if column in ("shape", "as") else "right", no_wrap=True)
    for number in range(len(manifest.exits)):
        table.add_column(f"exit {number}", justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        new = number == 0 or rows[number - 1].cut != row.cut
        if new and number:
            table.add_section()
        shape = "×".join(map(str, row.shape)) + (" code" if row.bottleneck else "")
        exits = ("" if share is None else f"{100 * share:.2f}" for share in row.accuracies)
        table.add_row(
            *((str(row.cut), shape) if new else ("", "")),
            row.codec,
            f"{row.bytes:,.0f}",
            f"{row.ratio:.1f}",
            f"{row.encode_ms:.3f}",
            f"{row.decode_ms:.3f}",
            *exits,
        )
    console.print(table)


def _compare(console: Console, manifest: Manifest, before: Sequence[float], after: Sequence[float]) -> None:
    """Accuracy of the whole before and after, and what crosses each cut that has changed."""
    table = Table(title="with all of them")
    for column in ("exit", "before %", "after %", "points"):
        table.add_column(column, justify="right")
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        table.add_row(str(number), f"{100 * old:.2f}", f"{100 * new:.2f}", f"{100 * (new - old):+.2f}")
    console.print(table)
    for index, layer in enumerate(manifest.layers):
        if layer.codec is None and layer.bottleneck is None:
            continue
        shape, codec = manifest.in_shape(index), layer.codec or "float32"
        plain_bytes, most_bytes = encoded_size("float32", layer.in_shape), encoded_size(codec, shape)
        console.print(
            f"layer {index}: {'×'.join(map(str, layer.in_shape))} float32, {plain_bytes:,} bytes → "
            f"{'×'.join(map(str, shape))} {codec}, at most {most_bytes:,} bytes"
        )


def _write_json(path: Path, record: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise MdiExitError(f"--json: could not write {path}: {error.strerror}") from None
    sys.stdout.write(f"raw rows: {path}\n")
