"""Programs of this package in processes of their own, as benchmarks need them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

__all__ = ["started"]


@asynccontextmanager
async def started(
    module: str, flags: Sequence[str], output: Path | int | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program, until the end. What it says goes to ``output``: a file, or as ``subprocess`` has it (None: to the same place
    as what we say).
    """
    with ExitStack() as files:
        where = files.enter_context(output.open("wb")) if isinstance(output, Path) else output
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, *flags, stdin=asyncio.subprocess.DEVNULL, stdout=where, stderr=where
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
