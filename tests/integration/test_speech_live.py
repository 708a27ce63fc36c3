"""Sound of any length through an encoder on three agents, for both tasks: exits and labels are those of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")
pytest.importorskip("scipy", reason="needs the extra 'offline'")

import numpy as np
from live import System, run_program
from tones import WORDS, speech_artifacts, tone

from mdi_exit import Client
from mdi_exit.benchmark.command import main as benchmark
from mdi_exit.data import splits
from mdi_exit.data.sound import wav_bytes
from mdi_exit.model.artifact import Artifact
from mdi_exit.outcomes import outcomes

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("speech")
    speech_artifacts(root)
    return root


@pytest.mark.parametrize(("task", "kind"), [("keyword", "wav"), ("voice", "voices")])
def test_split_is_whole_for_all_test_items(folder: Path, tmp_path: Path, task: str, kind: str) -> None:
    artifact = Artifact.open(folder / "made" / task)
    test = splits(f"{kind}:{folder / 'tones'}").test
    scores_N = np.sort(outcomes(artifact, test).trace("frame-entropy").scores_NS[:, 0])
    threshold = float(scores_N[len(scores_N) // 2 - 1 : len(scores_N) // 2 + 1].mean())  # half leave at the first exit
    flags = ["split", "--model", str(artifact.folder), "--thresholds", f"{threshold:.6f}", "--out", str(tmp_path)]
    assert benchmark(flags, {}) == 0
    row = json.loads(next(tmp_path.glob("split-*.json")).read_text())["rows"][0]
    assert (row["items"], row["other"]) == (len(test), 0)
    assert row["exits"][0] > 0


async def test_a_folder_of_files_is_an_input_and_a_program_asks_with_a_file(system: System, folder: Path) -> None:
    system.agent("all", "0-2")
    model = str(folder / "made" / "keyword")
    source = system.source("--model", model, "--input", f"wav:{folder / 'tones'}", "--exit-threshold", "1")
    source.until_completed(72)
    assert {row["truth"] for row in source.rows} == {0, 1, 2}
    assert source.rows[0]["id"] == "high/ann_nohash_0.wav"
    system.source("--model", model, "--input", "requests", "--name", "asked")
    async with Client(system.url, deployment="test") as client:
        answer = await client.infer(wav_bytes(tone("high", "ann", 0.3, 1)), deadline_s=30)
    assert answer.name in WORDS


def test_of_sound_there_are_no_pictures(folder: Path) -> None:
    made = [
        "--model",
        folder / "made" / "keyword",
        "--input",
        f"wav:{folder / 'tones'}",
        "--broker",
        "mqtt://127.0.0.1:1",
    ]
    ended = run_program("source.cli", *made, "--frames", "4/s")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert (
        ended.stderr
        == "edge-source: error: --frames: expected a model of images, got audio, of which there is no picture\n"
    )


def test_the_tools_for_artifacts_take_sound_or_say_why_not(folder: Path, tmp_path: Path) -> None:
    voice, data, trace = folder / "made" / "voice", f"voices:{folder / 'tones'}", tmp_path / "voice.npz"
    ended = run_program("mdi_exit.cli", "profile", voice, "--data", data, "--out", trace)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[0].strip().startswith("daisy-voice on 14 test samples")
    ended = run_program("mdi_exit.cli", "profile", folder / "made" / "keyword", "--data", data, "--out", trace)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "data voices: expected classes that the model knows by name, got ann, bob, cy" in ended.stderr
    ended = run_program("mdi_exit.cli", "codecs", voice, "--data", data)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert (
        ended.stderr
        == "mdi-exit codecs: error: model: expected one of images, as the tool compares with pictures, got audio\n"
    )
