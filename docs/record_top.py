"""Record the terminal view: a small emulated system, ``mdi-exit top`` in a terminal of its own, keys pressed at set times.

    python docs/record_top.py [--cast docs/top.cast] [--picture docs/top.svg]

Needs the package pyte (a terminal in memory). Writes an asciinema recording (version 2; play it with ``asciinema play
docs/top.cast``) and one picture of the screen.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import pyte
from pyte.screens import Char

from broker.embedded import embedded_broker

__all__ = ["main"]

COLUMNS, LINES = 100, 30
PICTURE_AT_S = 8.0
END_S = 40.0
NODES = (
    # seconds after the start, program, flags
    (1.5, "edge_agent.cli", "--name nano-1 --layers 2-8 --profile jetson-nano"),
    (1.5, "edge_agent.cli", "--name nano-2 --layers 4-8 --profile jetson-nanox0.6"),
    (2.5, "source.cli", "--name source --layers 0-8 --profile jetson-nano --input shipped --shuffle --duration 10m "
                        "--adapt threshold --exit-threshold 0.9 --min-threshold 0.4 --schedule calm=14/s@0s,load=56/s@9s"),
    (6.0, "edge_agent.cli", "--name nano-3 --layers 2-6 --profile jetson-nanox0.4"),
)  # fmt: skip
KEYS = (
    (21.0, "s"), (22.0, "s"), (23.0, "o"), (26.0, "\x1b"), (27.0, "d"), (28.5, "y"), (32.0, "d"), (33.0, "y"),
    (34.5, "+"), (35.0, "+"), (36.0, "?"), (38.0, "\x1b"), (39.5, "q"),
)  # fmt: skip


class Recording:
    """What a program shows in a pseudo-terminal, ten times a second: of each moment only the cells that are new."""

    def __init__(self, command: Sequence[str]) -> None:
        self.events: list[tuple[float, str, str]] = []
        self._begin = time.monotonic()
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)
        self._cells: dict[tuple[int, int], Char] = {}
        self.child, self._terminal = pty.fork()
        if self.child == 0:
            os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
            os.execvp(command[0], list(command))  # noqa: S606 - our own program
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        os.set_blocking(self._terminal, False)
        asyncio.get_running_loop().add_reader(self._terminal, self._read)

    def press(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def _read(self) -> None:
        try:
            raw = os.read(self._terminal, 65536)
        except BlockingIOError:
            return
        except OSError:  # the program has closed its terminal
            raw = b""
        if raw:
            self._stream.feed(_UNKNOWN_TO_PYTE.sub(b"", raw))
        else:
            asyncio.get_running_loop().remove_reader(self._terminal)

    async def keep(self) -> None:
        """Add what is new since the last moment, until cancelled."""
        while True:
            if new := self._new():
                self.events.append((time.monotonic() - self._begin, "o", new))
            await asyncio.sleep(0.1)

    def _new(self) -> str:
        parts: list[str] = [] if self.events else ["\x1b[?25l\x1b[2J"]
        after, style = None, None
        for line in range(LINES):
            for column in range(COLUMNS):
                cell = self._screen.buffer[line][column]
                if self._cells.get((line, column), self._screen.default_char) == cell:
                    continue
                self._cells[line, column] = cell
                if after != (line, column):
                    parts.append(f"\x1b[{line + 1};{column + 1}H")
                if (wanted := cell._replace(data="")) != style:
                    parts.append(_sgr(wanted))
                    style = wanted
                parts.append(cell.data)
                after = (line, column + 1)
        return "".join(parts)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGTERM)
        os.waitpid(self.child, 0)
        os.close(self._terminal)

    def write(self, path: Path) -> None:
        head = {"version": 2, "width": COLUMNS, "height": LINES, "idle_time_limit": 2, "title": "mdi-exit top"}
        events = [json.dumps([round(at, 2), kind, data], ensure_ascii=False) for at, kind, data in self.events]
        path.write_text("\n".join([json.dumps(head), *events]) + "\n", encoding="utf-8")


def _sgr(style: Char) -> str:
    """The escape sequence of a cell's colours and weight."""
    codes = ["0"] + ["1"] * style.bold + ["3"] * style.italics + ["4"] * style.underscore + ["7"] * style.reverse
    for plane, colour in ((38, style.fg), (48, style.bg)):
        bright, name = colour.startswith(("bright", "bfight")), colour[6:]  # pyte's own spellings
        if colour in _NAMED:
            codes.append(str(plane - 8 + _NAMED.index(colour)))
        elif bright and name in _NAMED:
            codes.append(str(plane + 52 + _NAMED.index(name)))
        elif re.fullmatch("[0-9a-f]{6}", colour):
            codes.append("{};2;{};{};{}".format(plane, *bytes.fromhex(colour)))
    return f"\x1b[{';'.join(codes)}m"


_NAMED = ("black", "red", "green", "brown", "blue", "magenta", "cyan", "white")
_UNKNOWN_TO_PYTE = re.compile(rb"\x1b\[[>=<][0-9;]*[a-zA-Z]|\x1b\[\?[0-9]+\$p")


async def _at(begin: float, seconds: float) -> None:
    await asyncio.sleep(max(begin + seconds - time.monotonic(), 0.0))


async def _node(url: str, at_s: float, module: str, flags: str, begin: float) -> None:
    await _at(begin, at_s)
    command = [sys.executable, "-m", module, "--broker", url, *flags.split()]
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _picture(url: str, path: Path, begin: float) -> None:
    await _at(begin, PICTURE_AT_S)
    command = [sys.executable, "-m", "mdi_exit.cli", "top", "--broker", url, "--picture", str(path)]
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait():
        raise SystemExit("the picture could not be made")


async def _record(cast: Path, picture: Path) -> None:
    async with embedded_broker() as broker:
        begin = time.monotonic()
        recording = Recording(
            [sys.executable, "-m", "mdi_exit.cli", "top", "--broker", broker.url, "--client", "operator"]
        )
        nodes = [asyncio.create_task(_node(broker.url, *node, begin)) for node in NODES]
        keeping = asyncio.create_task(recording.keep())
        drawing = asyncio.create_task(_picture(broker.url, picture, begin))
        try:
            for at_s, keys in KEYS:
                await _at(begin, at_s)
                recording.press(keys)
            await _at(begin, END_S)
            await drawing
        finally:
            for task in (keeping, *nodes):
                task.cancel()
            await asyncio.gather(*nodes, return_exceptions=True)
            with contextlib.suppress(asyncio.CancelledError):
                await keeping
            recording.end()
        recording.write(cast)


def main() -> int:
    """Make both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("--cast", type=Path, default=here / "top.cast")
    parser.add_argument("--picture", type=Path, default=here / "top.svg")
    args = parser.parse_args()
    asyncio.run(_record(args.cast, args.picture))
    for path in (args.cast, args.picture):
        sys.stdout.write(f"{path}: {path.stat().st_size / 1000:.0f} kB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
