"""Broken models and artifacts, through the commands: one plain line each, exit status 2."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
import pytest
from live import environment

from mdi_exit.benchmark.synthetic import write_identity_artifact
from mdi_exit.model.manifest import Manifest

DEADLINE_S = 100.0
MODELS = """
import torch
from torch import nn


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        x = self.first(x)
        if x.mean() > 0:
            x = x.relu()
        return self.last(x.mean((2, 3)))


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))


def failing():
    raise ValueError("no such thing")
"""


def command(folder: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    """In ``folder``, so that its modules are found."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, flags)], capture_output=True, text=True, timeout=DEADLINE_S, cwd=folder,
        env={**environment(), "PYTHONPATH": str(Path(__file__).parents[2])}, check=False,
    )  # fmt: skip


def the_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if " info " not in line]  # an agent says where its metrics are
    assert done.stdout == ""
    return line


@pytest.mark.parametrize(
    ("model", "flags", "says"),
    [
        ("models:Branching", (), "models.py:13 (if x.mean() > 0:)"),
        ("models:plain", ("--input-shape", "1,8,8"), "to have 3 channels, but got 1"),
        ("models:plain", ("--input-shape", "3,8"), "--input-shape"),
        ("models:failing", (), "models.py:23 (raise"),
        ("models:plain", ("--weights", "noise.pt"), "noise.pt"),
        ("noise.pt2", (), "noise.pt2"),
        ("resnet19", (), "resnet19"),
    ],
)
def test_a_model_that_cannot_be_partitioned(tmp_path: Path, model: str, flags: tuple[str, ...], says: str) -> None:
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    (tmp_path / "models.py").write_text(MODELS)
    for name in ("noise.pt", "noise.pt2"):
        (tmp_path / name).write_bytes(b"noise")
    shape = () if "--input-shape" in flags else ("--input-shape", "3,8,8")
    line = the_line(command(tmp_path, "mdi_exit.cli", "partition", model, *shape, *flags, "--out", "out"))
    assert line.startswith("mdi-exit partition: error: ")
    assert says in line


def test_a_model_that_can_be_partitioned_says_that_the_split_is_the_whole(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "labels.txt").write_text("\n".join(f"class {number}" for number in range(10)))
    flags = ("--input-shape", "3,8,8", "--labels", "labels.txt")
    done = command(tmp_path, "mdi_exit.cli", "partition", "models:plain", *flags, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "split at every cut (1) = whole: bit-equal in torch; in ONNX Runtime within" in done.stdout
    batch = torch.export.Dim("N", max=1024)
    program = torch.export.export(
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 6), torch.nn.Flatten()).eval(),
        (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},),
    )  # fmt: skip
    torch.export.save(program, tmp_path / "saved.pt2")
    done = command(tmp_path, "mdi_exit.cli", "partition", "saved.pt2", "--input-shape", "3,8,8", "--out", "saved")
    assert done.returncode == 0, done.stderr
    assert "split at every cut (1) = whole" in done.stdout


# --- artifacts


def replaced(folder: Path, raw: bytes) -> None:
    """Another graph for layer 1, of which the manifest knows the size and the digest."""
    (folder / "layer-1.onnx").write_bytes(raw)
    path = folder / "model.json"
    plain = msgspec.json.decode(path.read_bytes())
    graph = next(layer["graph"] for layer in plain["layers"][1:2])
    graph.update(file="layer-1.onnx", bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
    plain["digest"] = msgspec.convert(plain, Manifest).computed_digest()
    path.write_bytes(msgspec.json.encode(plain))


def graph_of(folder: Path) -> bytes:
    plain = msgspec.json.decode((folder / "model.json").read_bytes())
    return (folder / plain["layers"][1]["graph"]["file"]).read_bytes()


def truncated(folder: Path) -> None:
    raw = graph_of(folder)
    replaced(folder, raw[: len(raw) // 2])


def external(folder: Path) -> None:
    model = onnx.load_from_string(graph_of(folder))
    tensor = model.graph.initializer.add(name="secret", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    replaced(folder, model.SerializeToString())


def other_shape(folder: Path) -> None:
    write_identity_artifact(folder.with_name("other"), (1, 4, 5), 3)
    replaced(folder, graph_of(folder.with_name("other")))


def edited(folder: Path) -> None:
    path = folder / "model.json"
    path.write_bytes(path.read_bytes().replace(b'"identity"', b'"identitz"'))


def flipped(folder: Path) -> None:
    plain = msgspec.json.decode((folder / "model.json").read_bytes())
    path = folder / plain["layers"][1]["graph"]["file"]
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def cut_short(folder: Path) -> None:
    plain = msgspec.json.decode((folder / "model.json").read_bytes())
    path = folder / plain["layers"][1]["graph"]["file"]
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (truncated, "layer 1: expected a valid ONNX graph"),
        (cut_short, "size: expected"),
        (external, "layer 1: expected all weights inside the file, got a reference to external data"),
        (other_shape, "layer 1: input shape: expected (N, 1, 4, 4)"),
        (edited, "digest: expected"),
        (flipped, "SHA-256: expected"),
    ],
)
def test_a_broken_artifact_is_refused_by_every_program_that_opens_one(
    tmp_path: Path, breaks: Callable[[Path], None], says: str
) -> None:
    folder = tmp_path / "model"
    write_identity_artifact(folder, (1, 4, 4), 3)
    breaks(folder)
    nowhere = ("--broker", "mqtt://127.0.0.1:1")
    for name, flags in {
        "mdi-exit demo": ("mdi_exit.cli", "demo", "--artifact", folder, "--duration", "1s", "--out", tmp_path / "run"),
        "edge-source": ("source.cli", "--model", folder, "--input", "shipped:1", *nowhere),
        "edge-agent": ("edge_agent.cli", "--model", folder, "--layers", "0-2", "--metrics", "off", *nowhere),
    }.items():
        line = the_line(command(tmp_path, *flags))
        assert line.startswith(f"{name}: error: ")
        assert says in line
    shutil.rmtree(folder)
