"""Real agents and sources as processes on a real broker, for tests that wait for what these say and write."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import paho.mqtt.client as mqtt

DEADLINE_S = 45.0

SUMMARY_FIELDS = {
    "admitted", "completed", "errors", "pending", "refused", "duplicates", "retried", "accuracy", "rate_per_s",
    "elapsed_s", "latency_s", "exits", "bytes_sent", "threshold", "emulated", "single_process_per_s", "error_reasons",
    "energy_j", "energy_method", "joules_per_item",
}  # fmt: skip


def until(condition: Callable[[], bool], what: Callable[[], str], deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition; fail with ``what`` when it does not come about."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {deadline_s:g} s: {what()}"
        time.sleep(0.02)


def environment() -> dict[str, str]:
    """Ours without settings of the programs."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MDI_EXIT_")}


def run_program(module: str, *flags: object, deadline_s: float = DEADLINE_S) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    command = [sys.executable, "-m", module, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=deadline_s, env=environment(), check=False)


@dataclass
class Program:
    """A running program; its stderr is in ``log``."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def until_says(self, text: str, times: int = 1) -> None:
        """Wait for a piece of its log; fail at once if it ends first."""

        def said() -> bool:
            return self.log.count(text) >= times

        until(lambda: said() or not self.running, lambda: f"{self.name} says {text!r}:\n{self.log}")
        assert said(), f"{self.name} ended with {self.process.returncode} before it said {text!r}:\n{self.log}"

    def until_ends(self) -> int:
        until(lambda: not self.running, lambda: f"{self.name} ends:\n{self.log}")
        return self.process.returncode

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.signal(signal.SIGTERM)
        return self.until_ends()

    def kill(self) -> None:
        if self.running:
            self.process.kill()
        self.process.wait(DEADLINE_S)

    def scrape(self) -> str:
        """The text of its metrics endpoint, whose address it logs."""
        self.until_says("metrics on http")
        address = self.log.split("metrics on ")[1].split()[0]
        with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 - http on loopback
            text: str = answer.read().decode()
            return text

    def bad_messages(self) -> dict[str, float]:
        """Bad messages by reason, from the metrics."""
        found = {}
        for line in self.scrape().splitlines():
            if line.startswith("mdi_exit_bad_messages_total{"):
                found[line.split('reason="')[1].split('"')[0]] = float(line.rsplit(" ", 1)[1])
        return found

    def metric(self, wanted: str) -> float:
        """The value of the first sample of that name with at least those labels; 0 when there is none."""
        name, _, labels = wanted.rstrip("}").partition("{")
        for line in self.scrape().splitlines():
            if line.startswith(name + "{") and all(label in line for label in labels.split(",")):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of another page at the same port."""
        self.until_says("metrics on http")
        address = self.log.split("metrics on ")[1].split()[0].removesuffix("/metrics")
        try:
            with urllib.request.urlopen(address + path, timeout=10) as answer:  # noqa: S310 - http on loopback
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@dataclass
class Source(Program):
    """A running source with its files."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        path = self.folder / "results.jsonl"
        raw = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in raw.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def summary(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return content

    @property
    def timeline(self) -> list[dict[str, Any]]:
        path = self.folder / "timeline.jsonl"
        raw = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in raw.splitlines(keepends=True) if line.endswith("\n")]

    def until_results(self, count: int) -> None:
        until(
            lambda: len(self.rows) >= count or not self.running,
            lambda: f"{count} results, got {len(self.rows)}:\n{self.log}",
        )
        assert len(self.rows) >= count, f"{self.name} ended early:\n{self.log}"

    def until_completed(self, admitted: int | None = None) -> dict[str, Any]:
        """Wait for the end, and check that every admitted item got its one label; the summary."""
        assert self.until_ends() == 0, self.log
        summary = self.summary
        assert set(summary) == SUMMARY_FIELDS
        assert summary["errors"] == summary["pending"] == 0, f"{summary}\n{self.log}"
        assert summary["admitted"] == summary["completed"] == len(self.rows), self.log
        assert admitted is None or summary["admitted"] == admitted
        ids = [row["id"] for row in self.rows]
        assert len(set(ids)) == len(ids)
        return summary


P = TypeVar("P", bound=Program)


class Listener:
    """A bare MQTT client: what was published under a pattern, newest last; publishes anything."""

    def __init__(self, url: str, pattern: str = "mdi/#") -> None:
        self.messages: list[tuple[str, bytes, bool]] = []
        self._subscribed = threading.Event()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        host, _, port = url.removeprefix("mqtt://").partition(":")
        self._client.connect(host, int(port))
        self._client.loop_start()
        self._client.subscribe(pattern, 1)
        assert self._subscribed.wait(DEADLINE_S)

    def _on_message(self, _client: object, _userdata: object, message: mqtt.MQTTMessage) -> None:
        self.messages.append((message.topic, message.payload, bool(message.retain)))

    def on(self, topic: str) -> list[bytes]:
        """Payloads on one topic."""
        return [payload for name, payload, _ in self.messages if name == topic]

    def topics(self) -> list[str]:
        return list(dict.fromkeys(name for name, _, _ in self.messages))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(DEADLINE_S)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        # The callbacks know this object: left in place, a cycle would keep the client's sockets until some later collection.
        self._client.on_message = self._client.on_subscribe = None

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class System:
    """Programs of one deployment on the broker at ``url``."""

    url: str
    folder: Path
    deployment: str = "test"
    programs: list[Program] = field(default_factory=list)

    def agent(self, name: str, layers: str, *flags: str) -> Program:
        wanted = ["--layers", layers, *self._common(name), *flags]
        return self._start(Program, "edge_agent.cli", name, wanted)

    def source(self, *flags: str, name: str = "source") -> Source:
        """A source over the shipped images, that writes its files beside its log."""
        folder = self._folder(name)
        files = [f"--results={folder}/results.jsonl", f"--summary={folder}/summary.json"]
        files.append(f"--timeline={folder}/timeline.jsonl")
        given = flags if "--input" in flags else ("--input", "shipped", *flags)
        return self._start(Source, "source.cli", name, [*self._common(name), *files, *given], folder)

    def program(self, module: str, name: str, *flags: str) -> Program:
        """Any program with just these flags."""
        return self._start(Program, module, name, flags)

    def close(self) -> None:
        for program in self.programs:
            with contextlib.suppress(ProcessLookupError):
                program.kill()

    def _common(self, name: str) -> list[str]:
        return ["--name", name, "--deployment", self.deployment, "--broker", self.url]

    def _folder(self, name: str) -> Path:
        taken = len(list(self.folder.glob(f"{name}-*")))
        folder = self.folder / f"{name}-{taken}"
        folder.mkdir()
        return folder

    def _start(self, kind: type[P], module: str, name: str, flags: Sequence[str], folder: Path | None = None) -> P:
        folder = folder or self._folder(name)
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *flags],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment(),
            )
        program = kind(name, folder, process)
        self.programs.append(program)
        return program
