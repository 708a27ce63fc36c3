"""What runs beside a source's work: a live input, results for other programs, Home Assistant."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Protocol

from mdi_exit.model.manifest import Manifest
from mdi_exit.source_state import SourceState
from mdi_exit.topics import Topics
from mdi_exit.transport.mqtt import MqttTransport
from mdi_exit.vitals import Vitals
from source.config import SourceSettings
from source.home_bridge import HomeAssistant, HomeCleaner, home_will
from source.inputs import Input, LiveInput, TopicInput
from source.outside import OutsideLine, opened_line
from source.sinks import Sink, TopicSink

__all__ = ["beside"]


class Driver(Protocol):
    """What is needed of the source's driver."""

    source: SourceState
    topics: Topics
    sinks: list[Sink]
    vitals: Vitals

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None: ...


@contextlib.asynccontextmanager
async def beside(
    driver: Driver,
    first: MqttTransport,
    settings: SourceSettings,
    samples: Input | LiveInput | None,
    manifest: Manifest,
) -> AsyncIterator[None]:
    """All of it, for as long as the context lasts; a connection beside the ``first`` only where something needs it."""
    async with contextlib.AsyncExitStack() as stack:
        line, worker = OutsideLine(), driver.source.worker
        wanted = isinstance(samples, TopicInput) or settings.publish is not None or settings.home_assistant is not None
        if isinstance(samples, TopicInput):
            line.hear(samples.pattern, 0, samples.on_image)
        results = TopicSink(line, settings.publish, settings.publish_qos) if settings.publish is not None else None
        home = _home(driver, settings, line, manifest)
        if wanted:
            client_id = f"{driver.topics.deployment}-{worker.name}-{worker.config.incarnation}-outside"
            will = home_will(driver.topics, worker.name) if isinstance(home, HomeAssistant) else None
            await stack.enter_async_context(opened_line(line, first, settings, client_id, will))
        if results is not None:
            driver.sinks.append(results)
            line.when_up(results.flush)
            stack.push_async_callback(results.goodbye)
        if home is not None:
            stack.push_async_callback(home.goodbye)
        if isinstance(home, HomeAssistant):
            driver.sinks.append(home)
            driver.spawn("home assistant", home.run())
        if isinstance(samples, LiveInput):
            await stack.enter_async_context(samples)
        yield


def _home(
    driver: Driver, settings: SourceSettings, line: OutsideLine, manifest: Manifest
) -> HomeAssistant | HomeCleaner | None:
    if settings.home_assistant is None:
        return None
    if settings.home_assistant == "off":
        return HomeCleaner(line, driver.topics, driver.source.worker.name)
    return HomeAssistant(
        line, driver.topics, settings.home_assistant, driver.source, manifest.name, manifest.labels,
        board=lambda: driver.vitals.board,
    )  # fmt: skip
