"""Texts of any length through a transformer on three agents: labels are those of one process, for every item."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")
pytest.importorskip("tokenizers", reason="needs the extra 'text'")

from live import Listener, System, until
from tiny_bert import LAYERS, WIDTH, encoder, table

from mdi_exit import BadRequest, Client, Text, values
from mdi_exit.benchmark.command import main as benchmark
from mdi_exit.confidence import probabilities
from mdi_exit.data import splits
from mdi_exit.model.artifact import Artifact
from mdi_exit.outcomes import outcomes
from mdi_exit.training import command
from mdi_exit.wire import Features, decode

pytestmark = pytest.mark.broker

SPANS = {"near": "0-0", "middle": "1-1", "far": "2-2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in ``made``, its texts in ``said.jsonl``."""
    root = tmp_path_factory.mktemp("texts")
    encoder(root / "bert")
    table(root / "said.jsonl")
    flags = ["--model", f"bert:{root / 'bert'}", "--data", f"text:{root / 'said.jsonl'}", "--strategy", "frozen"]
    flags += ["--threads", "1", "--epochs", "4", "--batch-size", "16", "--max-length", "24"]
    assert command.main([*flags, "--out", str(root / "made")]) == 0
    return root


def test_labels_over_three_agents_are_those_of_one_process_for_every_test_item(system: System, folder: Path) -> None:
    artifact = Artifact.open(folder / "made")
    test = splits(f"text:{folder / 'said.jsonl'}").test
    made = outcomes(artifact, test)
    scores_SN = np.stack([probabilities(logits_NK).max(1) for logits_NK in made.logits_SNK])
    threshold = next(t for t in np.arange(0.6, 0.9, 0.0007).round(6).tolist() if np.abs(scores_SN - t).min() > 1e-4)
    for name, span in SPANS.items():
        system.agent(name, span).until_says("connected")
    with Listener(system.url, "mdi/test/layers/#") as listener:
        flags = ("--input", "test", "--rate", "max", "--min-threshold", "0.1", "--exit-threshold", str(threshold))
        source = system.source("--model", str(artifact.folder), *flags)
        summary = source.until_completed(len(test))
        seen = [decode(payload) for topic, payload, _ in listener.messages]
    early_SN = scores_SN > threshold
    early_SN[-1] = True
    exits_N = early_SN.argmax(0)
    assert len(set(exits_N.tolist())) > 1
    row_of = {f"text/{position}": index for index, position in enumerate(test.ids_N.tolist())}
    for row in source.rows:
        index = row_of[row["id"]]
        number = int(exits_N[index])
        label = int(made.logits_SNK[number, index].argmax())
        assert (row["label"], row["exit"], row["truth"]) == (label, number, int(test.labels_N[index])), row["id"]
    assert summary["accuracy"] is not None
    # No padding travels: a tensor is as long as its text.
    lengths = {message.shape[0] for message, _ in seen if isinstance(message, Features)}
    shapes = {message.shape[1:] for message, _ in seen if isinstance(message, Features)}
    assert len(lengths) > 3
    assert shapes == {(), (WIDTH,)}


async def test_a_program_asks_with_a_text(system: System, folder: Path) -> None:
    system.agent("all", f"0-{LAYERS - 1}")
    system.source("--model", str(folder / "made"), "--input", "requests")
    async with Client(system.url, deployment="test") as client:
        answers = [a async for a in client.stream([Text("lovely warm day"), Text("awful " * 40)], deadline_s=30)]
        assert [answer.name for answer in answers] == [
            Artifact.open(folder / "made").manifest.labels[a.label] for a in answers
        ]
        with pytest.raises(BadRequest, match="expected text, as the model takes, got image"):
            await client.infer(b"\x89PNG", deadline_s=30)
        ready = await client.infer(np.array([3, 6, 4], np.float32), deadline_s=30)
        assert 0 <= ready.confidence <= 1
    with Listener(system.url, "mdi/test/replies/#") as listener:
        for payload in (b"a lovely day", json.dumps({"text": "a lovely day", "id": 7}).encode()):
            listener.publish("mdi/test/requests/plain", payload)
        until(lambda: len(listener.messages) >= 2, lambda: "two replies")
        replies = [json.loads(payload) for _, payload, _ in listener.messages]
    assert {reply["id"] for reply in replies} == {replies[0]["id"], replies[1]["id"]}
    assert len({(reply["label"], reply["exit"]) for reply in replies}) == 1
    assert "7" in {reply["id"] for reply in replies}


def test_lines_of_a_file_and_messages_of_a_topic_are_inputs(system: System, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("lovely day\n\nawful dinner\n")
    system.agent("all", f"0-{LAYERS - 1}")
    source = system.source("--model", str(folder / "made"), "--input", f"text:{tmp_path / 'lines.txt'}")
    source.until_completed(2)
    assert [row["id"] for row in source.rows] == ["text/0", "text/1"]
    assert all("truth" not in row or row["truth"] is None for row in source.rows)
    listening = system.source("--model", str(folder / "made"), "--input", "mqtt:said/#", "--limit", "2")
    listening.until_says("all layers are held")
    with Listener(system.url, "nothing") as client:
        for text in ("a lovely day", "an awful day"):
            client.publish("said/here", text.encode())
    listening.until_completed(2)


async def test_over_http_a_text_is_posted_as_it_is_or_in_json(system: System, folder: Path) -> None:
    pytest.importorskip("aiohttp", reason="needs the extra web")
    from aiohttp import ClientSession

    from mdi_exit.gateway.app import serving
    from mdi_exit.gateway.config import GatewaySettings

    system.agent("all", f"0-{LAYERS - 1}")
    system.source("--model", str(folder / "made"), "--input", "requests").until_says("all layers are held")
    settings = GatewaySettings(
        broker=values.brokers(system.url), deployment="test", http=values.HostPort("127.0.0.1", 0)
    )
    answers: list[dict[str, Any]] = []
    async with asyncio.timeout(60), serving(settings) as address, ClientSession() as http:
        while (await http.get(f"{address}readyz")).status != 200:
            await asyncio.sleep(0.05)
        for kind, body in (("text/plain", b"lovely day"), ("application/json", b'{"text": "lovely day"}')):
            headers = {"Content-Type": kind}
            async with http.post(f"{address}v1/infer?deadline=30s", data=body, headers=headers) as answer:
                answers.append(await answer.json())
        async with http.post(f"{address}v1/infer?deadline=30s", data=b"GIF89a") as answer:
            assert answer.status == 400
    assert answers[0]["label"] == answers[1]["label"]
    assert answers[0]["frame"] is None


@pytest.mark.parametrize("kind", ["camera", "shipped", "rtsp://host/x", "watch:here", "here"])
def test_an_input_of_images_is_refused_in_one_line(system: System, folder: Path, kind: str) -> None:
    source = system.source("--model", str(folder / "made"), "--input", kind)
    assert source.until_ends() == 2
    assert "expected text, as the model takes" in source.log
    assert "Traceback" not in source.log


def test_the_benchmark_compares_with_one_process(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["split", "--model", str(folder / "made"), "--thresholds", "0.75,1", "--out", str(tmp_path / "rows")]
    assert benchmark(flags, {}) == 0
    (path,) = (tmp_path / "rows").glob("split-*.json")
    early, never = json.loads(path.read_text())["rows"]
    assert (early["items"], early["other"], never["other"]) == (80, 0, 0)
    assert never["exits"] == [0, 0, 80]
    assert never["accuracy"] == pytest.approx(never["accuracy_whole"])
    assert early["work"] < never["work"] == 1.0
    assert "other than whole" in capsys.readouterr().out
