"""``mdi-exit codecs``: its flags, its rows, and the artifact that it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mdi_exit import cli
from mdi_exit.data import shipped
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.tensors import CODECS, encoded_size, is_compressed
from mdi_exit.workbench.codecs import Wanted, bottlenecks_of, codecs_of


def codecs(monkeypatch: pytest.MonkeyPatch, *flags: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mdi-exit", "codecs", *map(str, flags)])
    return cli.main()


def test_cuts_and_bottlenecks_as_people_write_them() -> None:
    assert codecs_of("5=int4, 3=int8+zstd") == ((3, "int8+zstd"), (5, "int4"))
    assert bottlenecks_of("3:8x2,5:4") == ((3, Wanted(8, 2)), (5, Wanted(4, 1)))
    assert [str(wanted) for _, wanted in bottlenecks_of("3:8x2,5:4")] == ["8x2", "4"]


@pytest.mark.parametrize("text", ["", "3", "3=int9", "x=int8", "3=int8,3=int4", "-1=int8", "3=int8,", "²=int8"])
def test_what_is_no_codec_of_a_cut_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        codecs_of(text)


@pytest.mark.parametrize("text", ["", "3", "3:0", "3:8x0", "3:8x", "a:8", "3:8,3:4", "3:8X2"])
def test_what_is_no_bottleneck_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        bottlenecks_of(text)


BAD = {
    "no artifact": ([], "one ARTIFACT"),
    "two artifacts": (["a", "b"], "one ARTIFACT"),
    "unknown artifact": (["nothing"], "a folder with model.json"),
    "first layer": ([DEFAULT_MODEL, "--cut", "0=int8"], "--cut: expected a layer of 1-8"),
    "beyond the last": ([DEFAULT_MODEL, "--cut", "9=int8"], "--cut: expected a layer of 1-8"),
    "codec": ([DEFAULT_MODEL, "--cut", "3=gzip"], "--cut: expected LAYER=CODEC"),
    "bottleneck at no cut": ([DEFAULT_MODEL, "--bottleneck", "0:4"], "--bottleneck: expected a layer of 1-8"),
    "too many channels": ([DEFAULT_MODEL, "--bottleneck", "3:9999"], "--bottleneck 3: expected 1 to"),
    "too large a stride": ([DEFAULT_MODEL, "--bottleneck", "3:4x99"], "--bottleneck 3: expected a stride of at most"),
    "nothing to train on": ([DEFAULT_MODEL, "--data", "fashion-mnist/test", "--bottleneck", "3:4"], "--data: expected"),
    "nothing to write": ([DEFAULT_MODEL, "--out", "x"], "--out: expected something to write"),
    "data": ([DEFAULT_MODEL, "--data", "nonesuch"], "data: expected one of"),
    "samples": ([DEFAULT_MODEL, "--samples", "0"], "--samples: expected"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags, says = BAD[case]
    monkeypatch.chdir(tmp_path)
    assert codecs(monkeypatch, *flags, *([] if "--data" in flags else ["--data", "shipped"])) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert len(err.splitlines()) == 1
    assert not out
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("mine")
    assert codecs(monkeypatch, DEFAULT_MODEL, "--data", "shipped", "--cut", "3=int8", "--out", tmp_path) == 2
    assert "expected an empty folder or an artifact to replace" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_no_data_is_a_mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert codecs(monkeypatch, DEFAULT_MODEL) == 2
    assert "--data" in capsys.readouterr().err


def test_every_codec_at_every_cut_beside_pictures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "rows.json"
    flags = ("--data", "shipped", "--samples", 20, "--json", file)
    assert codecs(monkeypatch, DEFAULT_MODEL, *flags) == 0
    assert "int4+zstd" in capsys.readouterr().out
    record = json.loads(file.read_text())
    manifest = Artifact.open(DEFAULT_MODEL).manifest
    assert (record["digest"], record["samples"]) == (manifest.digest, 20)
    inputs = [row for row in record["rows"] if row["kind"] == "input"]
    assert [row["codec"] for row in inputs][:5] == ["raw", "PNG", "JPEG 90", "JPEG 75", "JPEG 50"]
    assert inputs[0]["bytes"] == 784
    for row in inputs:
        lossless = row["codec"] in ("raw", "PNG", "WebP lossless")
        assert not lossless or row["accuracies"] == record["accuracies"]
    cuts = [row for row in record["rows"] if row["kind"] == "cut"]
    assert [(row["cut"], row["codec"]) for row in cuts] == [(cut, codec) for cut in range(1, 9) for codec in CODECS]
    for row in cuts:
        shape = tuple(row["shape"])
        size = encoded_size(row["codec"], shape)
        assert row["bytes"] <= size if is_compressed(row["codec"]) else row["bytes"] == size
        assert row["ratio"] == pytest.approx(encoded_size("float32", shape) / row["bytes"])
        behind = [spec.layer >= row["cut"] for spec in manifest.exits]
        assert [share is not None for share in row["accuracies"]] == behind
        if row["codec"] in ("float32", "float32+zstd"):
            kept = [share for share in row["accuracies"] if share is not None]
            assert kept == record["accuracies"][-len(kept) :]


def test_out_writes_an_artifact_with_these_codecs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ("--data", "shipped", "--samples", 20, "--cut", "3=int8+zstd,5=int4", "--out", tmp_path / "small")
    assert codecs(monkeypatch, DEFAULT_MODEL, *flags) == 0
    made = Artifact.open(tmp_path / "small").manifest
    assert [layer.codec for layer in made.layers[2:6]] == [None, "int8+zstd", None, "int4"]
    assert made.digest[:12] in capsys.readouterr().out


def test_out_writes_an_artifact_with_a_bottleneck(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    data = tmp_path / "data.npz"
    some = shipped()
    import numpy as np

    np.savez(
        data,
        images=some.images_NHWC[:300, ..., 0],
        labels=some.labels_N[:300],
        classes=np.array(some.classes),
    )
    out, file = tmp_path / "small", tmp_path / "rows.json"
    flags = ("--data", f"npz:{data}", "--bottleneck", "3:8x2", "--cut", "3=int8", "--epochs", 1, "--threads", 1)
    assert codecs(monkeypatch, DEFAULT_MODEL, *flags, "--out", out, "--json", file) == 0, capsys.readouterr().err
    manifest = Artifact.open(out).manifest
    layer = manifest.layers[3]
    assert layer.codec == "int8"
    assert layer.bottleneck is not None
    assert layer.bottleneck.shape == (8, 4, 4)
    assert manifest.training["bottlenecks"]["3"]["codec"] == "int8"
    record = json.loads(file.read_text())
    assert record["variant"] == manifest.digest
    rows = [row for row in record["rows"] if row["kind"] == "cut"]
    assert {row["cut"] for row in rows} == {3}
    assert all(row["bottleneck"] for row in rows)
    plain = encoded_size("float32", layer.in_shape)
    assert {row["codec"]: row["ratio"] for row in rows}["int8"] == pytest.approx(plain / (8 * 4 * 4 + 4 * 8))
    assert codecs(monkeypatch, out, *flags) == 2
    assert "an artifact without any" in capsys.readouterr().err
