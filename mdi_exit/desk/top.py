"""``mdi-exit top``: any running deployment, in the terminal; printed once where there is none."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final

from rich.console import Console

from mdi_exit.config import resolve
from mdi_exit.desk.config import TopSettings
from mdi_exit.desk.control import seen, watching
from mdi_exit.desk.giving import Desk
from mdi_exit.desk.parts import printable
from mdi_exit.desk.plain import everything
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.observer import Observer
from mdi_exit.reports import FULL_PERIOD_S

__all__ = ["main"]

_SECOND_REPORT_S: Final = 2 * FULL_PERIOD_S + 0.6  # rates need two, and not every report is a full one
_PICTURE_S: Final = 12.0  # sparklines need some past
_PICTURE_SIZE: Final = (100, 30)


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    settings = resolve(
        TopSettings,
        argv,
        os.environ,
        prog="mdi-exit top",
        section="top",
        description="Shows a running deployment: nodes, queues, flows, exits, threshold; keys change it (? lists them).",
    ).settings
    logging.getLogger().addHandler(logging.NullHandler())
    if settings.once or (settings.picture is None and not _at_terminal()):
        return asyncio.run(_once(settings))
    if importlib.util.find_spec("textual") is None:
        raise UsageError("mdi-exit top", "the extra 'top' (pip install 'mdi-exit[top]'), or --once", "neither")
    return asyncio.run(_picture(settings) if settings.picture else _live(settings))


def _at_terminal() -> bool:
    """Keys come in by stdin; the screen goes out by stderr, as Textual does it, and nobody wants it with stdout away."""
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


async def _once(settings: TopSettings) -> int:
    async with watching(settings) as observer:
        await seen(lambda: observer.watched.source is not None, settings.timeout)
        await asyncio.sleep(_SECOND_REPORT_S)
        view = observer.view()
        if view.source is not None or view.nodes:
            Console().print(everything(view))
        if view.trouble:
            raise MdiExitError(printable(view.trouble))
        return 0


async def _live(settings: TopSettings) -> int:
    from mdi_exit.desk.app import TopApp

    user, password, tls = settings.username, settings.password, settings.tls()
    async with Observer(settings.broker, settings.deployment, username=user, password=password, tls=tls) as observer:
        app = TopApp(observer.view, Desk(observer, settings.client), str(settings.broker))
        await app.run_async()
    return app.return_code or 0


async def _picture(settings: TopSettings) -> int:
    from mdi_exit.desk.app import TopApp

    if settings.picture is None:
        raise UsageError("--picture", "a file", "none")
    async with watching(settings) as observer:
        if not await seen(lambda: observer.watched.source is not None, settings.timeout):
            raise MdiExitError(printable(observer.view().trouble))
        app = TopApp(observer.view, Desk(observer, settings.client), str(settings.broker))
        app.draw_after(_PICTURE_S)
        await app.run_async(headless=True, size=_PICTURE_SIZE)
    try:
        await asyncio.to_thread(settings.picture.write_text, app.picture, encoding="utf-8")
    except OSError as error:
        raise MdiExitError(f"--picture: could not write {settings.picture}: {error.strerror}") from None
    return app.return_code or 0
