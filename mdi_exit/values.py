"""What the text of a setting may be: one parser per kind of value.

A parser takes text and gives the value, or raises ``UsageError`` with an empty ``what``; ``mdi_exit.config`` puts the
flag, variable or file there.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mdi_exit.engine.profile import parse_profile
from mdi_exit.errors import UsageError
from mdi_exit.topics import checked_name

__all__ = [
    "BROKERS_AUTO",
    "BROKER_AUTO",
    "BrokerAddress",
    "Brokers",
    "HostPort",
    "broker_address",
    "brokers",
    "device",
    "duration",
    "fraction",
    "host_port",
    "host_port_or_off",
    "image_shape",
    "integer",
    "ip_address",
    "memory",
    "name",
    "names",
    "path",
    "picture",
    "positive_float",
    "positive_int",
    "rate",
    "show_memory",
    "show_off",
    "show_rate",
    "show_seconds",
    "switch",
    "text",
]

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h|)")
_BYTES = re.compile(r"(\d+(?:\.\d*)?)\s*([kMG]?)B")
_UNIT_BYTES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_UNIT_S = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is; written ``mqtt://HOST:PORT``, or ``mqtts://`` with TLS; port 0: to be looked for (``auto``)."""

    host: str
    port: int
    tls: bool = False

    @property
    def is_auto(self) -> bool:
        return self.port == 0

    def __str__(self) -> str:
        if self.is_auto:
            return "auto"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' if self.tls else ''}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Brokers:
    """Where a broker is, in the order in which they are tried; at least one, each once."""

    addresses: tuple[BrokerAddress, ...]

    @property
    def is_auto(self) -> bool:
        return self.addresses[0].is_auto

    def __str__(self) -> str:
        return ",".join(map(str, self.addresses))


@dataclass(frozen=True, slots=True)
class HostPort:
    """An address to listen on; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


BROKER_AUTO = BrokerAddress("", 0)
BROKERS_AUTO = Brokers((BROKER_AUTO,))


def broker_address(value: str) -> BrokerAddress:
    """``mqtt://HOST[:PORT]`` (1883), ``mqtts://HOST[:PORT]`` (8883), or ``auto``: this machine's, else one found by mDNS."""
    expected = "mqtt://HOST:PORT, mqtts://HOST:PORT or auto"
    if value.strip() == "auto":
        return BROKER_AUTO
    try:
        url = urlsplit(value.strip())
        port = url.port
    except ValueError:
        raise UsageError("", expected, repr(value)) from None
    if "@" in url.netloc:  # the text would end up in logs and process lists: it is not repeated here either
        raise UsageError("", f"{expected} (user by --username, password by --password-file)", "a URL with a user in it")
    extra = url.path not in ("", "/") or url.query or url.fragment
    if url.scheme not in _PORTS or not url.hostname or extra or port == 0 or re.search(r"\s", value.strip()):
        raise UsageError("", expected, repr(value))
    return BrokerAddress(url.hostname, port or _PORTS[url.scheme], tls=url.scheme == "mqtts")


def brokers(value: str) -> Brokers:
    """One or more of what ``broker_address`` reads, with commas between; ``auto`` stands alone."""
    found = tuple(broker_address(part) for part in value.split(","))
    if len(set(found)) != len(found):
        raise UsageError("", "each broker once", repr(value))
    if len(found) > 1 and BROKER_AUTO in found:
        raise UsageError("", "auto alone, or brokers by name", repr(value))
    return Brokers(found)


def host_port(value: str) -> HostPort:
    """``HOST:PORT``; an IPv6 host stands in brackets."""
    host, colon, port = value.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    fits = colon and host and (bracketed or ":" not in host) and port.isascii() and port.isdecimal()
    if not fits or int(port) > 65535:
        raise UsageError("", "HOST:PORT such as 127.0.0.1:9100", repr(value))
    return HostPort(host, int(port))


def host_port_or_off(value: str) -> HostPort | None:
    """``HOST:PORT``, or ``off``: None."""
    if value.strip() == "off":
        return None
    try:
        return host_port(value)
    except UsageError as error:
        raise UsageError("", f"{error.expected}, or off", error.got) from None


def ip_address(value: str) -> str:
    """An address of IPv4 or IPv6."""
    try:
        return str(ipaddress.ip_address(value.strip()))
    except ValueError:
        raise UsageError("", "an IP address such as 192.168.1.10", repr(value)) from None


def name(value: str) -> str:
    """A name that may stand in a topic."""
    return checked_name(value.strip(), "")


def names(value: str) -> tuple[str, ...]:
    """Names with commas between; ``""`` is nobody."""
    found = tuple(name(part) for part in value.split(",")) if value.strip() else ()
    if len(set(found)) != len(found):
        raise UsageError("", "each name once", repr(value))
    return found


def device(value: str) -> str:
    """The name of a device profile, ``NAME`` or ``NAMExFACTOR``."""
    return parse_profile(value.strip()).name


def duration(value: str) -> float:
    """``500ms``, ``2s``, ``1m``, ``1h`` or plain seconds; above 0."""
    match = _DURATION.fullmatch(value.strip())
    seconds = float(match[1]) * _UNIT_S[match[2]] if match else 0.0
    if not 0 < seconds < math.inf:
        raise UsageError("", "a duration above 0 such as 500ms, 2s, 1m", repr(value))
    return seconds


def rate(value: str) -> float | None:
    """``25/s`` or ``25``: items a second; ``max``: ``None``, as fast as admission allows."""
    if value.strip() == "max":
        return None
    per_s = _number(value.strip().removesuffix("/s"))
    if per_s is None or per_s <= 0:
        raise UsageError("", "items a second such as 25/s, or max", repr(value))
    return per_s


def fraction(value: str) -> float:
    """A number in [0, 1]."""
    found = _number(value)
    if found is None or not 0 <= found <= 1:
        raise UsageError("", "a number from 0 to 1", repr(value))
    return found


def positive_float(value: str) -> float:
    found = _number(value)
    if found is None or found <= 0:
        raise UsageError("", "a number above 0", repr(value))
    return found


def memory(text: str) -> int:
    """``512MB``: bytes. Raises ``UsageError``."""
    match = _BYTES.fullmatch(text.strip())
    if not match or (found := int(float(match[1]) * _UNIT_BYTES[match[2]])) < 1:
        raise UsageError("", "an amount of memory such as 512MB", repr(text))
    return found


def show_memory(value: int | None) -> str:
    return "auto" if value is None else f"{value / 1e6:g}MB"


def integer(least: int, most: int = 2**53) -> Callable[[str], int]:
    """The parser of whole numbers from ``least`` to ``most``."""
    limits = f"of at least {least}" if most == 2**53 else f"from {least} to {most}"

    def parse(value: str) -> int:
        stripped = value.strip()
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", stripped) or not least <= int(stripped) <= most:
            raise UsageError("", f"a whole number {limits}", repr(value))
        return int(stripped)

    return parse


positive_int = integer(1)


def image_shape(value: str) -> tuple[int, int, int]:
    """``3,224,224`` or ``3x224x224``: channels, height, width."""
    axes = value.replace("x", ",").split(",")
    if len(axes) != 3 or not all(re.fullmatch(r"\s*[0-9]{1,5}\s*", axis) and int(axis) for axis in axes):
        raise UsageError("", "channels, height and width such as 3,224,224", repr(value))
    channels, height, width = map(int, axes)
    return channels, height, width


def path(value: str) -> Path:
    """A path; ``~`` is the home directory."""
    if not value.strip() or "\0" in value:
        raise UsageError("", "a path", repr(value))
    return Path(value).expanduser()


def picture(value: str) -> Path:
    """A file in a form that can be drawn."""
    found = path(value)
    if found.suffix not in (".png", ".svg"):
        raise UsageError("", "a file that ends in .png or .svg", repr(value))
    return found


def text(value: str) -> str:
    """Any text but none."""
    if not value.strip():
        raise UsageError("", "some text", repr(value))
    return value


def switch(value: str) -> bool:
    """yes or no, in the usual spellings."""
    lowered = value.strip().lower()
    if lowered in {"1", "true", "yes", "on"}:
        return True
    if lowered in {"0", "false", "no", "off"}:
        return False
    raise UsageError("", "true or false", repr(value))


def show_off(value: object) -> str:
    return "off" if value is None else str(value)


def show_rate(value: float | None) -> str:
    return "max" if value is None else f"{value:g}/s"


def show_seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:g}ms" if value < 1 else f"{value:g}s"


def _number(value: str) -> float | None:
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None
