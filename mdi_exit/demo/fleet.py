"""The nodes of a demo as child processes: started at their time, stopped in order, none left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from broker.embedded import dies_with_parent
from mdi_exit.errors import MdiExitError

__all__ = ["Fleet", "NodeEndedError"]

_STOP_S: Final = 12.0


def _environment() -> Mapping[str, str]:
    """Ours without MDI_EXIT_*: the children are told everything by flags."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MDI_EXIT_")}


class NodeEndedError(MdiExitError):
    """A node ended with ``status``: what was wrong for it was wrong for the whole, which ends likewise."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.exit_status = status if status > 0 else MdiExitError.exit_status


@dataclass(slots=True)
class Fleet:
    """Child processes by name; each writes its log to ``folder``."""

    folder: Path
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    async def start(
        self,
        name: str,
        module: str,
        flags: Sequence[str],
        *,
        inside: Sequence[str] = (),
        more: Mapping[str, str] | None = None,
    ) -> None:
        """Start ``python -m module`` with ``flags``, and ``more`` in its environment; one that is started again goes on with
        its log. ``inside``: a command that becomes the one after it.
        """
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                *inside,
                sys.executable,
                "-m",
                module,
                *flags,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_environment(), **(more or {})},
                start_new_session=True,
                preexec_fn=dies_with_parent(),
            )

    def complaint(self, name: str) -> str:
        """The last line that a node said."""
        lines = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"

    def fallen(self) -> str | None:
        """The name of a node that has ended with an error."""
        return next((name for name, process in self.processes.items() if process.returncode not in (None, 0)), None)

    def check(self) -> None:
        """Raises ``NodeEndedError`` where a node has ended with an error."""
        if (fallen := self.fallen()) is not None:
            status = self.processes[fallen].returncode or 0
            log = self.folder / f"{fallen}.log"
            how = f"ended with status {status}:" if status > 0 else f"was killed by signal {-status}, its last line:"
            raise NodeEndedError(f"{fallen} {how} {self.complaint(fallen)} (log: {log})", status)

    async def stop(self) -> None:
        """Ask every node to drain, the source first, then insist. Raises ``NodeEndedError`` if one ends with an error."""
        for process in self.processes.values():
            await self._stop_one(process)
        self.check()

    async def _stop_one(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), _STOP_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
