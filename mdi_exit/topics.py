"""All topics on one screen: topic, message type, QoS, retain.

``mdi/{deployment}/`` comes first in each; names match ``[A-Za-z0-9_-]{1,40}``. QoS 0 with the
application's own credits and acknowledgements for features; QoS 1 for control and results.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mdi_exit.errors import UsageError, WireError
from mdi_exit.span import LayerSpan

__all__ = [
    "AGENTS",
    "CHUNK",
    "COMMANDS",
    "CONTROL",
    "FRAMES",
    "HOME_LIFE",
    "HOME_STATE",
    "LAYERS",
    "LINKS",
    "MANIFEST",
    "NAME",
    "REPLIES",
    "REQUESTS",
    "RESULTS",
    "SYS_PREFIX",
    "SYS_STATS",
    "TELEMETRY",
    "TRAINING",
    "Route",
    "TopicKind",
    "Topics",
    "checked_name",
    "user_pattern",
    "user_topic",
]


@dataclass(frozen=True, slots=True)
class TopicKind:
    """One row of the table: a template, the wire message that it carries, QoS and retain flag."""

    template: str
    message: str
    qos: int
    retain: bool


# fmt: off
LAYERS    = TopicKind("layers/{span}/{node}",             "Features",  0, retain=False)
RESULTS   = TopicKind("results/{node}",                   "Results",   1, retain=False)
TELEMETRY = TopicKind("telemetry/{node}",                 "Telemetry", 0, retain=False)  # and the source's SourceReport
FRAMES    = TopicKind("frames/{node}",                    "Frame",      0, retain=False)
AGENTS    = TopicKind("agents/{node}",                    "Status",    1, retain=True)
LINKS     = TopicKind("links/{node}/{sender}",            "Link",      0, retain=False)
CONTROL   = TopicKind("control",                          "Control",   1, retain=True)
COMMANDS  = TopicKind("commands/{node}",                  "Order",     1, retain=False)
REQUESTS  = TopicKind("requests/{node}",                  "Request",   1, retain=False)  # or a bare image, or JSON
REPLIES   = TopicKind("replies/{node}",                   "Reply",     1, retain=False)  # or JSON, as it was asked
MANIFEST  = TopicKind("model/manifest",                   "Manifest",  1, retain=True)
CHUNK     = TopicKind("model/{digest}/{file}/{chunk}",    "Chunk",     1, retain=True)
TRAINING  = TopicKind("training/{node}/{sender}",         "Lesson",    0, retain=False)  # EdgeReport, CloudReport; Weights: 1

# For programs that are no nodes, in JSON and plain words: nodes neither listen here nor parse it. Beside these stand the
# user's own topics, wherever they like outside mdi/ (user_topic, user_pattern), and Home Assistant's discovery topics.
HOME_STATE = TopicKind("home/{node}",                     "JSON",      0, retain=False)
HOME_LIFE  = TopicKind("home/{node}/life",                "on|offline", 1, retain=True)
# fmt: on

SYS_PREFIX = "$SYS/"  # the broker's own topics, outside of every deployment
SYS_STATS = (f"{SYS_PREFIX}broker/#", 0)  # what Mosquitto says of itself; the source listens

NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
_MAX_USER_TOPIC_BYTES = 1000
_FIELD = {
    "span": r"(?P<span>[0-9]{1,4}-[0-9]{1,4})",
    "node": r"(?P<node>[A-Za-z0-9_-]{1,40})",
    "sender": r"(?P<sender>[A-Za-z0-9_-]{1,40})",
    "digest": r"(?P<digest>[0-9a-f]{8,64})",
    "file": r"(?P<file>[A-Za-z0-9_.-]{1,80})",
    "chunk": r"(?P<chunk>[0-9]{1,6})",
}


def _pattern(kind: TopicKind) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", lambda match: _FIELD[match[1]], kind.template))


_KINDS = [
    (kind, _pattern(kind))
    for kind in (
        LAYERS,
        RESULTS,
        TELEMETRY,
        FRAMES,
        AGENTS,
        LINKS,
        CONTROL,
        COMMANDS,
        REQUESTS,
        REPLIES,
        MANIFEST,
        CHUNK,
        TRAINING,
    )
]


def checked_name(name: str, what: str = "name") -> str:
    """``name`` if it may stand in a topic; else ``UsageError``."""
    if not NAME.fullmatch(name):
        raise UsageError(what, "1 to 40 letters, digits, - or _", repr(name))
    return name


def user_topic(text: str) -> str:
    """A topic of the user's own to publish to; raises ``UsageError``."""
    topic = text.strip()
    if not _fit(topic) or "+" in topic or "#" in topic:
        raise UsageError("", "a topic such as house/labels (no + or #, not under mdi/)", repr(text))
    return topic


def user_pattern(text: str) -> str:
    """A pattern of the user's own to listen to: ``+`` stands for a level, ``#`` for the rest; raises ``UsageError``."""
    pattern = text.strip()
    levels = pattern.split("/")
    wild = all(level in ("+", "#") or not set(level) & set("+#") for level in levels)
    if not _fit(pattern) or not wild or "#" in levels[:-1]:
        raise UsageError("", "a topic such as frigate/+/person/snapshot (not under mdi/)", repr(text))
    return pattern


def _fit(topic: str) -> bool:
    ours = topic == "mdi" or topic.startswith(("mdi/", "$"))
    return bool(topic) and not ours and topic.isprintable() and len(topic.encode()) <= _MAX_USER_TOPIC_BYTES


@dataclass(frozen=True, slots=True)
class Route:
    """A parsed topic: its kind and the fields that it names."""

    kind: TopicKind
    node: str = ""
    sender: str = ""
    span: str = ""
    digest: str = ""
    file: str = ""
    chunk: int = 0


class Topics:
    """The topics of one deployment."""

    __slots__ = ("_prefix", "deployment")

    def __init__(self, deployment: str) -> None:
        self.deployment = checked_name(deployment, "deployment")
        self._prefix = f"mdi/{deployment}/"

    def layers(self, span: LayerSpan, node: str) -> str:
        return f"{self._prefix}layers/{span.first}-{span.last}/{node}"

    def inbox(self, node: str) -> str:
        """A pattern: features for ``node`` whatever its span, so that none is missed while senders learn of another."""
        return f"{self._prefix}layers/+/{node}"

    def results(self, node: str) -> str:
        return f"{self._prefix}results/{node}"

    def telemetry(self, node: str) -> str:
        return f"{self._prefix}telemetry/{node}"

    def frames(self, node: str) -> str:
        return f"{self._prefix}frames/{node}"

    def agents(self, node: str) -> str:
        return f"{self._prefix}agents/{node}"

    def links(self, to: str, sender: str) -> str:
        return f"{self._prefix}links/{to}/{sender}"

    def training(self, to: str, sender: str) -> str:
        return f"{self._prefix}training/{to}/{sender}"

    @property
    def control(self) -> str:
        return f"{self._prefix}control"

    def commands(self, client: str) -> str:
        return f"{self._prefix}commands/{client}"

    def requests(self, client: str) -> str:
        return f"{self._prefix}requests/{client}"

    def replies(self, client: str) -> str:
        return f"{self._prefix}replies/{client}"

    @property
    def manifest(self) -> str:
        return f"{self._prefix}model/manifest"

    def chunk(self, digest: str, file: str, chunk: int | str) -> str:
        return f"{self._prefix}model/{digest}/{file}/{chunk}"

    def home_state(self, node: str) -> str:
        return f"{self._prefix}home/{node}"

    def home_life(self, node: str) -> str:
        return f"{self._prefix}home/{node}/life"

    def home_config(self, prefix: str, component: str, entity: str) -> str:
        """Where Home Assistant looks for an entity's description; ``+`` for ``component`` and ``entity`` makes a pattern."""
        return f"{prefix}/{component}/mdi-exit-{self.deployment}/{entity}/config"

    def parse(self, topic: str) -> Route:
        """The route of ``topic``. Raises ``WireError``: reason ``deployment`` or ``topic``."""
        if not topic.startswith(self._prefix):
            raise WireError("deployment", f"expected a topic under {self._prefix}, got {topic[:120]!r}")
        rest = topic[len(self._prefix) :]
        for kind, pattern in _KINDS:
            if match := pattern.fullmatch(rest):
                fields: dict[str, str] = match.groupdict()
                chunk = int(fields.pop("chunk", "0"))
                return Route(kind, chunk=chunk, **fields)
        raise WireError("topic", f"expected a known topic, got {topic[:120]!r}")
