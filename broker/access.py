"""Who may say and hear what, by role: the one table behind every access list of the broker.

``python -m broker.access`` prints it for users that stand for a whole role, as docker-compose.yml has them (broker/acl);
``mdi-exit secure`` writes it for users that stand for one program each, with their own names in the topics.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from mdi_exit.errors import UsageError

__all__ = ["ROLES", "Role", "Rule", "by_name", "by_role", "main", "rules_of"]

Access = Literal["read", "write", "readwrite"]

ME: Final = "{me}"  # the user's own name

_HEAD: Final = """\
# Who may say what (mosquitto.conf's acl_file). What is not listed is refused, without a word: Mosquitto acknowledges a
# refused message and drops it, and grants a refused subscription and stays silent.
"""
_SHARED: Final = """\
#
# Here one user stands for all programs of a role, so an agent could speak in another agent's name: keep the agents' password
# to your boards, or give each its own with `mdi-exit secure init`. Printed by `python -m broker.access`. `+` after `mdi/`
# is the deployment.
"""
_OWN: Final = """\
#
# One user for each program, its name in its topics: written by `mdi-exit secure`, anew with every change. Rules of your own
# go into the file access.extra beside it.
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """``topic`` is below ``mdi/DEPLOYMENT/`` unless it is ``absolute``; in it ``{me}`` is the user's own name."""

    access: Access
    topic: str
    absolute: bool = False


@dataclass(frozen=True, slots=True)
class Role:
    """``about``: what it does, for people; ``hint``: lines for the shared list that a user may uncomment."""

    about: str
    rules: tuple[Rule, ...]
    hint: tuple[str, ...] = ()


def _read(*topics: str) -> tuple[Rule, ...]:
    return tuple(Rule("read", topic) for topic in topics)


def _write(*topics: str) -> tuple[Rule, ...]:
    return tuple(Rule("write", topic) for topic in topics)


_SYSTEM: Final = Rule("read", "$SYS/#", absolute=True)
_WATCHED: Final = _read("agents/+", "telemetry/+", "frames/+", "control", "model/manifest")

ROLES: Final[Mapping[str, Role]] = {
    "agent": Role(
        "A board: tasks to anybody's inbox and from its own, credits, its own results, status and load; the model and the "
        "source's wishes; its part in hierarchical training.",
        (
            *_write("layers/+/+"), *_read(f"layers/+/{ME}"),
            *_write(f"links/+/{ME}"), *_read(f"links/{ME}/+"),
            *_write(f"agents/{ME}"), *_read("agents/+"),
            *_write(f"telemetry/{ME}"), *_read("telemetry/+"),
            *_write(f"results/{ME}"),
            *_write(f"training/+/{ME}"), *_read(f"training/{ME}/+"),
            *_read("control", "commands/+", "model/#"),
        ),
    ),
    "source": Role(
        "The source: everything of its deployment, what the broker says of itself, and what it tells Home Assistant. Topics "
        "of your own are added like the last two lines: what a camera sends, where labels go.",
        (Rule("readwrite", "#"), Rule("readwrite", "homeassistant/#", absolute=True), _SYSTEM),
        ("topic read frigate/+/person/snapshot", "topic write house/labels"),
    ),
    "client": Role(
        "Another program: asks, and reads its answers. It learns from `control` that there is a source.",
        (*_write(f"requests/{ME}"), *_read(f"replies/{ME}", "control")),
    ),
    "observer": Role("Watches, and changes nothing: mdi-exit top, a dashboard of your own.", (*_WATCHED, _SYSTEM)),
    "operator": Role(
        "Watches, asks, and gives orders.",
        (
            *_WATCHED, *_write(f"commands/{ME}"), *_read("commands/+"), *_write(f"requests/{ME}"),
            *_read(f"replies/{ME}"), _SYSTEM,
        ),
    ),
    "gateway": Role(
        "The HTTP gateway: asks for others, and shows the deployment.",
        (*_WATCHED, *_write(f"requests/{ME}"), *_read(f"replies/{ME}")),
    ),
    "homeassistant": Role(
        "Home Assistant: finds labels and the nodes' health by itself.",
        (Rule("readwrite", "homeassistant/#", absolute=True), *_read("home/#")),
    ),
    "health": Role("The broker's own health check.", (Rule("read", "$SYS/broker/version", absolute=True),)),
}  # fmt: skip


def rules_of(role: str, me: str, deployment: str) -> tuple[Rule, ...]:
    """The rules of a role with whole topics; ``me`` and ``deployment`` may be ``+``. Raises ``UsageError``."""
    if role not in ROLES:
        raise UsageError("role", f"one of {', '.join(ROLES)}", repr(role))
    found: dict[str, Access] = {}
    for rule in ROLES[role].rules:
        topic = rule.topic.replace(ME, me)
        topic = topic if rule.absolute else f"mdi/{deployment}/{topic}"
        known = found.get(topic)
        found[topic] = rule.access if known in (None, rule.access) else "readwrite"
    return tuple(Rule(access, topic, absolute=True) for topic, access in found.items())


def by_role() -> str:
    """The list for one user a role, in all deployments."""
    parts = [_HEAD + _SHARED]
    for name, role in ROLES.items():
        lines = [*_wrapped(role.about), f"user {name}", *_lines(rules_of(name, "+", "+"))]
        parts.append("\n".join([*lines, *(f"#{line}" for line in role.hint)]) + "\n")
    return "\n".join(parts)


def by_name(users: Mapping[str, str], deployment: str, more: str = "") -> str:
    """The list for ``users`` (role by name) of one deployment; ``more``: rules of the operator's own, put at the end."""
    parts = [_HEAD + _OWN]
    for name, role in sorted(users.items()):
        parts.append("\n".join([f"# {role}", f"user {name}", *_lines(rules_of(role, name, deployment))]) + "\n")
    return "\n".join(parts) + (f"\n{more.strip()}\n" if more.strip() else "")


def _lines(rules: Iterable[Rule]) -> list[str]:
    return [f"topic {rule.access} {rule.topic}" for rule in rules]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 118, initial_indent="# ", subsequent_indent="# ")


def main() -> int:
    """Print the list of roles."""
    sys.stdout.write(by_role())
    return 0


if __name__ == "__main__":
    sys.exit(main())
