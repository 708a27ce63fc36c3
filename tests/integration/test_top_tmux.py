"""The terminal view in a real terminal, driven by keys, over a real small system."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Listener, System, environment, until

from mdi_exit.topics import Topics
from mdi_exit.wire import Control, Status, decode

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux on PATH"),
]


class Terminal:
    """A terminal of 80 columns and 24 lines in a tmux server of its own."""

    def __init__(self, folder: Path) -> None:
        self._tmux = ["tmux", "-f", "/dev/null", "-S", str(folder / "tmux")]

    def start(self, *command: str) -> None:
        """Run it; its exit status is the last line that the terminal shows."""
        line = f"{shlex.join(command)}; echo ended with $?; exec cat"
        self._run("new-session", "-d", "-x", "80", "-y", "24", "sh", "-c", line)

    def keys(self, *names: str) -> None:
        for name in names:
            self._run("send-keys", name)

    def screen(self) -> str:
        return self._run("capture-pane", "-p")

    def until_shows(self, *texts: str, without: str = "\0") -> str:
        """The screen, once it has all of these."""
        seen = ""

        def there() -> bool:
            nonlocal seen
            seen = self.screen()
            return all(text in seen for text in texts) and without not in seen

        until(there, lambda: f"{texts} on the screen:\n{seen}")
        return seen

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True, timeout=10)

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            [*self._tmux, *words], check=True, capture_output=True, text=True, timeout=10, env=environment()
        )
        return done.stdout


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


def row(screen: str, node: str) -> list[str]:
    """The words of a node's line."""
    lines = [line.split() for line in screen.splitlines() if line.split()[:1] == [node]]
    return lines[0] if lines else []


def newest(listener: Listener, topic: str) -> Control | Status:
    message = decode(listener.on(topic)[-1])[0]
    assert isinstance(message, Control | Status)
    return message


def test_it_shows_a_system_and_its_keys_change_it(system: System, terminal: Terminal) -> None:
    view = (sys.executable, "-m", "mdi_exit.cli", "top", "--broker", system.url, "--deployment", "test")
    terminal.start(*view, "--client", "keys")
    terminal.until_shows("waiting: no source in deployment test yet", "? Help")
    for name in ("pi-1", "pi-2"):
        system.agent(name, "4-8", "--profile", "jetson-nano")
    system.source("--layers", "0-3", "--profile", "jetson-nano", "--rate", "12/s", "--duration", "120s")
    screen = terminal.until_shows("emulated: jetson-nano", "of 12", "exit 4", "source → pi-", without="waiting: ")
    assert row(screen, "source")[1:3] == ["ready", "0-3"]
    screen = terminal.until_shows("/s", "0.80", "floor 0.50")
    until(lambda: row(terminal.screen(), "pi-2")[1:3] == ["ready", "4-8"], terminal.screen)

    topics = Topics("test")
    with Listener(system.url) as listener:
        terminal.keys("+")
        terminal.until_shows("keys: threshold 0.85", "threshold     0.85")
        until(lambda: getattr(newest(listener, topics.control), "threshold", None) == 0.85, terminal.screen)
        terminal.keys("-", "-", "-")
        terminal.until_shows("threshold     0.70")

        terminal.keys("Up", "Up", "Up", "Down", "d")
        terminal.until_shows("Drain pi-1?", "y yes    n no")
        terminal.keys("n")
        terminal.until_shows("events", without="Drain pi-1?")
        terminal.keys("d")
        terminal.until_shows("Drain pi-1?")
        terminal.keys("y")
        terminal.until_shows("keys: drain pi-1", "pi-1 is drained")
        until(lambda: row(terminal.screen(), "pi-1")[1:2] == ["drained"], terminal.screen)
        assert getattr(newest(listener, topics.agents("pi-1")), "state", None) == "drained"

    terminal.keys("s", "s")
    terminal.until_shows("queue▲")
    terminal.keys("o")
    terminal.until_shows("esc closes", "onnxruntime CPU", "emulating jetson-nano")
    terminal.keys("Escape")
    terminal.until_shows("where items stopped", without="esc closes")
    terminal.keys("q")
    terminal.until_shows("ended with 0")


def test_it_says_that_there_is_no_broker_and_goes_on_trying(terminal: Terminal) -> None:
    terminal.start(sys.executable, "-m", "mdi_exit.cli", "top", "--broker", "mqtt://127.0.0.1:9")
    terminal.until_shows("waiting for the broker at mqtt://127.0.0.1:9", "refused")
    terminal.keys("q")
    terminal.until_shows("ended with 0")
