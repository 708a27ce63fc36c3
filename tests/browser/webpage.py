"""The gateway of a running system, and how to wait for something on its page."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from typing import Any

from live import Program, System

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
)


def chromium() -> str | None:
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@dataclass
class Site:
    """The gateway of a running system; it can be ended and started again at its address."""

    system: System
    port: int
    gateway: Program | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        flags = ["--broker", self.system.url, "--deployment", self.system.deployment]
        self.gateway = self.system.program("mdi_exit.cli", "serve", "serve", *flags, "--http", f"127.0.0.1:{self.port}")
        self.gateway.until_says("on http://")

    def stop(self) -> None:
        assert self.gateway is not None
        self.gateway.kill()


async def true(page: Any, expression: str, deadline_s: float = 20.0) -> None:
    """Wait until it is. Playwright's own wait evaluates text in the page, which the page's policy forbids."""
    deadline = asyncio.get_running_loop().time() + deadline_s
    while not await page.evaluate(expression):
        assert asyncio.get_running_loop().time() < deadline, f"not in {deadline_s:g} s: {expression}"
        await asyncio.sleep(0.05)
