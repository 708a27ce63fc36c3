"""A real system with its gateway, and a real Chromium."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from live import System
from webpage import FLAGS, Site, chromium, true

from broker.embedded import free_port


@pytest.fixture(scope="module")
def site(standing_mosquitto: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    pytest.importorskip("aiohttp", reason="needs the extra web")
    pytest.importorskip("playwright", reason="needs playwright")
    if chromium() is None:
        pytest.skip("needs Chromium (chromium on PATH, or CHROMIUM)")
    system = System(standing_mosquitto, tmp_path_factory.mktemp("nodes"), "browser")
    system.source("--layers", "0-3", "--rate", "15/s", "--frames", "4/s", "--duration", "900s")
    system.agent("one", "4-8", "--profile", "jetson-nano")
    site = Site(system, free_port())
    site.start()
    yield site
    system.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(site: Site) -> AsyncIterator[Any]:
    from playwright.async_api import async_playwright

    del site
    async with async_playwright() as started:
        browser = await started.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def faults() -> list[str]:
    """What the page complains of: errors, and anything that its policy has kept out."""
    return []


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Any, site: Site, faults: list[str]) -> AsyncIterator[Any]:
    """The live page, once it shows a number; its faults fail the test."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900}, permissions=["camera"])
    page = await context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type in ("error", "warning") else None)
    await page.goto(site.address)
    await true(page, "Number(document.querySelector('#t-total').textContent.replace(',', '')) > 5")
    yield page
    await context.close()
    assert faults == []
