"""Who hears what, and who may say what: the topics and the two trials of any access list, whichever way one signs in.

The judgement is by what is delivered, since a broker never tells of a refusal. ``nano`` is a board, ``pi`` another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mdi_exit.transport.mqtt import MqttTransport

FROM = "mdi/default"
TOPICS = {
    "own inbox": f"{FROM}/layers/4-8/nano",
    "inbox of another": f"{FROM}/layers/4-8/pi",
    "own results": f"{FROM}/results/nano",
    "results of another": f"{FROM}/results/pi",
    "own telemetry": f"{FROM}/telemetry/nano",
    "telemetry of another": f"{FROM}/telemetry/pi",
    "telemetry of the source": f"{FROM}/telemetry/source",
    "own status": f"{FROM}/agents/nano",
    "status of another": f"{FROM}/agents/pi",
    "link to it": f"{FROM}/links/nano/pi",
    "link from it": f"{FROM}/links/pi/nano",
    "link between others": f"{FROM}/links/pi/source",
    "lesson to it": f"{FROM}/training/nano/cloud",
    "lesson from it": f"{FROM}/training/cloud/nano",
    "lesson between others": f"{FROM}/training/cloud/pi",
    "control": f"{FROM}/control",
    "orders of another": f"{FROM}/commands/boss",
    "orders of its own": f"{FROM}/commands/nano",
    "manifest": f"{FROM}/model/manifest",
    "chunk": f"{FROM}/model/0123456789abcdef/segment-4-5-head/0",
    "request": f"{FROM}/requests/cam",
    "reply": f"{FROM}/replies/cam",
    "frames": f"{FROM}/frames/source",
    "home": f"{FROM}/home/nano",
    "another deployment": "mdi/other/telemetry/nano",
    "discovery": "homeassistant/sensor/mdi-exit/nano/config",
    "foreign": "house/labels",
    "top": "mdi",
}
DEPLOYMENT = {name for name, topic in TOPICS.items() if topic.startswith(f"{FROM}/")}
INBOXES = {"own inbox", "inbox of another"}
RESULTS = {"own results", "results of another"}
TELEMETRY = {"own telemetry", "telemetry of another", "telemetry of the source"}
STATUSES = {"own status", "status of another"}
LINKS = {"link to it", "link from it", "link between others"}
LESSONS = {"lesson to it", "lesson from it", "lesson between others"}
ORDERS = {"orders of another", "orders of its own"}
WATCHED = {*TELEMETRY, *STATUSES, "control", "manifest", "frames"}


@dataclass(frozen=True)
class Rights:
    """Names of ``TOPICS``."""

    hears: set[str]
    says: set[str]


SignIn = Callable[[str, Any], contextlib.AbstractAsyncContextManager[MqttTransport]]
"""By a user's name and a ``Handler``."""


async def heard_by_each(users: Mapping[str, Rights], tester: str, sign_in: SignIn, recorder: Any) -> None:
    """Whoever wants to hear everything is told what ``users`` says, and nothing else; ``tester`` may say all."""
    async with contextlib.AsyncExitStack() as stack:
        speaker = await stack.enter_async_context(sign_in(tester, recorder()))
        ears = {user: recorder() for user in users}
        listeners = [await stack.enter_async_context(sign_in(user, ear)) for user, ear in ears.items()]
        for listener in listeners:
            await listener.subscribe("#", 1)
        for topic in TOPICS.values():
            assert await speaker.publish_confirmed(topic, b"x", qos=1, timeout_s=10)
        for listener in listeners:
            await listener.unsubscribe("#")  # whose answer comes behind all that was passed on
        heard = {user: {topic for topic, *_ in ear.messages} for user, ear in ears.items()}
    assert heard == {user: {TOPICS[name] for name in rights.hears} for user, rights in users.items()}


async def said_by_each(users: Mapping[str, Rights], tester: str, sign_in: SignIn, recorder: Any) -> None:
    """Of whoever says everything that comes through which ``users`` says, and nothing else; ``tester`` may hear all."""
    ear = recorder()
    async with contextlib.AsyncExitStack() as stack:
        listener = await stack.enter_async_context(sign_in(tester, ear))
        await listener.subscribe("#", 1)
        for user in users:
            transport = await stack.enter_async_context(sign_in(user, recorder()))
            for topic in TOPICS.values():
                await transport.publish_confirmed(topic, user.encode(), qos=1, timeout_s=10)
        await listener.unsubscribe("#")
        said = {user: {topic for topic, payload, _ in ear.messages if payload == user.encode()} for user in users}
    assert said == {user: {TOPICS[name] for name in rights.says} for user, rights in users.items()}
