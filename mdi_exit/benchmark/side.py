"""One side of a paired run, in a process of its own: ``side URL DEPLOYMENT WINDOW MESSAGES PERIOD`` writes a JSON object.

``PERIOD``: seconds between two scrapes of the metrics of both nodes, or ``off``: neither serves any.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

from mdi_exit.benchmark.hop import throughput, write_artifact

__all__ = ["main"]

_SHAPE: Final = (1, 64, 64)


async def main(url: str, deployment: str, window: str, messages: str, period: str) -> None:
    """Measure and write the row."""
    with tempfile.TemporaryDirectory(prefix="mdi-exit-side-") as folder:
        rate, cpu_s = await throughput(
            url,
            write_artifact(Path(folder), _SHAPE),
            deployment=deployment,
            window=int(window),
            messages=int(messages),
            scrape_period_s=None if period == "off" else float(period),
        )
    sys.stdout.write(json.dumps({"items_per_s": rate, "cpu_s_per_item": cpu_s}) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
