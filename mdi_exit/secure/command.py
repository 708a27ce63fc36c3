"""``mdi-exit secure WHAT``: make the folder, give and take certificates, look at them, sign models."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from mdi_exit import values
from mdi_exit.config import Resolved, nearest, resolve, setting
from mdi_exit.discovery import own_addresses
from mdi_exit.errors import UsageError
from mdi_exit.secure.store import PROGRAM_ROLES, Record, Store
from mdi_exit.signing import private_key

__all__ = ["main"]

_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
_SOON_DAYS: Final = 30


def hosts(value: str) -> tuple[str, ...]:
    """Names and addresses of the broker, with commas between."""
    found = tuple(part.strip() for part in value.split(","))
    if not all(_is_address(host) or (_HOST.fullmatch(host) and len(host) <= 253) for host in found):
        raise UsageError("", "names or addresses such as broker.local,192.168.1.10", repr(value))
    return found


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def folder_of_boards(value: str) -> str:
    """An absolute path on another machine, without what a configuration file would have to quote."""
    if not re.fullmatch(r"/[A-Za-z0-9_./-]*[A-Za-z0-9_-]", value):
        raise UsageError("", "an absolute path without spaces", repr(value))
    return value


def roles(value: str) -> tuple[str, ...]:
    """``NAME:ROLE,NAME:ROLE``, kept as texts."""
    found = []
    for part in value.split(",") if value.strip() else ():
        name, colon, role = part.strip().partition(":")
        if not colon or role not in PROGRAM_ROLES:
            raise UsageError("", f"NAME:ROLE with a role of {', '.join(PROGRAM_ROLES)}", repr(part))
        found.append(f"{values.name(name)}:{role}")
    return tuple(found)


def _default_hosts(_: Mapping[str, Any]) -> tuple[str, ...]:
    """This machine, as others may call it."""
    name = socket.gethostname().partition(".")[0]
    fit = [f"{name}.local", name] if _HOST.fullmatch(name) else []
    return tuple(dict.fromkeys([*own_addresses(), *fit]))


@dataclass(frozen=True, slots=True, kw_only=True)
class InitSettings:
    """A new folder."""

    nodes: tuple[str, ...] = setting((), help="the agents: NAME,NAME", parse=values.names, metavar="NAMES")
    source: str = setting("source", help="the source", parse=values.name, metavar="NAME")
    also: tuple[str, ...] = setting(
        ("operator:operator",), help=f"other programs and their roles ({', '.join(PROGRAM_ROLES)})", parse=roles,
        metavar="NAME:ROLE,...",
    )  # fmt: skip
    host: tuple[str, ...] = setting(
        (), help="how the broker is reached, the first in the settings of all; default: this machine", parse=hosts,
        metavar="HOST,HOST", derive=_default_hosts,
    )  # fmt: skip
    deployment: str = setting(
        "default", help="the only one that they may take part in", parse=values.name, metavar="NAME"
    )
    port: int = setting(8883, help="of the listener for certificates", parse=values.integer(1, 65535), metavar="PORT")
    password_port: int = setting(
        8884, help="of the listener for passwords; 0: none", parse=values.integer(0, 65535), metavar="PORT"
    )
    days: int = setting(397, help="how long a certificate is good", parse=values.integer(1, 3650), metavar="DAYS")
    install: str = setting("/etc/mdi-exit", help="where a bundle will lie", parse=folder_of_boards, metavar="PATH")
    broker_install: str = setting(
        "/etc/mosquitto/mdi-exit", help="where the broker's files will lie", parse=folder_of_boards, metavar="PATH"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AddSettings:
    """One more program."""

    role: str = setting("agent", help="what it is", choices=PROGRAM_ROLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoSettings:
    """A task without settings of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignSettings:
    """A signature."""

    key: Path = setting(None, help="the signing key: DIR/model.key", parse=values.path, metavar="FILE")
    out: Path | None = setting(None, help="sign a copy of the model, in a new folder", parse=values.path, metavar="DIR")


def _init(argv: Sequence[str]) -> int:
    resolved = _resolved(
        InitSettings, argv, "init", "DIR", "Makes an authority, and all that broker and programs need."
    )
    settings, folder = resolved.settings, Path(resolved.only_word("secure init", "folder DIR"))
    users = dict.fromkeys(settings.nodes, "agent")
    for name, role in [(settings.source, "source"), *(part.split(":") for part in settings.also)]:
        if name in users:
            raise UsageError("--nodes, --source, --also", "each name once", name)
        users[name] = role
    every = tuple(dict.fromkeys([*settings.host, "localhost", "127.0.0.1"]))
    record = Record(
        deployment=settings.deployment, hosts=every, port=settings.port, password_port=settings.password_port,
        days=settings.days, install=settings.install, broker_install=settings.broker_install,
    )  # fmt: skip
    if settings.port == settings.password_port:
        raise UsageError("--password-port", "another port than --port", settings.password_port)
    store = Store.make(folder, record, users, _now())
    _show(store)
    _say(
        f"copy {folder}/broker to the broker as {settings.broker_install} (owner: its user), "
        f"each {folder}/bundles/NAME to its machine as {settings.install}; keep {folder}/authority to yourself"
    )
    return 0


def _add(argv: Sequence[str]) -> int:
    resolved = _resolved(
        AddSettings, argv, "add", "DIR NAME", "Gives one more program a certificate, password and rules."
    )
    store, name = _store_and_name(resolved)
    store.add(name, resolved.settings.role, _now())
    _say(f"{name}: its files are in {store.bundle(name)}; copy {store.folder}/broker to the broker and reload it")
    return 0


def _renew(argv: Sequence[str]) -> int:
    resolved = _resolved(
        NoSettings, argv, "renew", "DIR [NAME...|broker]", "New certificates: of those named, or of all."
    )
    folder, *names = resolved.words or ("",)
    store, moment = Store.open(_folder(folder)), _now()
    for name in names or ("broker", *sorted(store.record.users)):
        if name == "broker" and name not in store.record.users:
            store.renew_broker(moment)
        else:
            store.renew(name, moment)
    _show(store)
    return 0


def _revoke(argv: Sequence[str]) -> int:
    resolved = _resolved(NoSettings, argv, "revoke", "DIR NAME", "Shuts a program out.")
    store, name = _store_and_name(resolved)
    store.revoke(name, _now())
    _say(f"{name}: shut out as soon as {store.folder}/broker is copied to the broker and the broker reloads it")
    return 0


def _check(argv: Sequence[str]) -> int:
    resolved = _resolved(NoSettings, argv, "check", "DIR", "When certificates expire, and whether all fits together.")
    if len(resolved.words) > 1:
        raise UsageError("DIR", "one folder", " ".join(resolved.words))
    store = Store.open(_folder(*resolved.words))
    _show(store)
    moment = _now()
    problems = [f"{name}: expired" for name, at in store.certificates().items() if at <= moment]
    problems += [f"{path}: others may read it (chmod go= it)" for path in store.open_to_others()]
    problems += store.unsound()
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return int(bool(problems))


def _sign(argv: Sequence[str]) -> int:
    from mdi_exit.model.artifact import Artifact
    from mdi_exit.secure.sign import sign  # needs onnx, the others do not

    resolved = _resolved(SignSettings, argv, "sign", "MODEL", "Signs a model and all segments that it can be cut into.")
    if resolved.settings.key is None:
        raise UsageError("--key", "the signing key (FILE)", "none")
    artifact = Artifact.open(resolved.only_word("secure sign", "model MODEL"))
    path, count = sign(artifact, private_key(resolved.settings.key), resolved.settings.out)
    _say(f"signed: model {artifact.manifest.name} ({artifact.manifest.digest[:12]}) and {count} segments of it: {path}")
    return 0


_TASKS: Final[dict[str, tuple[str, Callable[[Sequence[str]], int]]]] = {
    "init": ("a folder with an authority, and all that broker and programs need", _init),
    "add": ("one more program", _add),
    "renew": ("new certificates, of all or of those named", _renew),
    "revoke": ("shut a program out", _revoke),
    "check": ("when certificates expire, and whether all fits together", _check),
    "sign": ("sign a model", _sign),
}


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    what = argv[0] if argv else ""
    if what in ("-h", "--help", ""):
        lines = [f"  {name:<7} {text}" for name, (text, _) in _TASKS.items()]
        usage = "usage: mdi-exit secure WHAT [options]   (mdi-exit secure WHAT --help)"
        sys.stdout.write("\n".join((usage, "", *lines)) + "\n")
        return 0 if what else 2
    if what not in _TASKS:
        raise UsageError("WHAT", f"one of {', '.join(_TASKS)}{nearest(what, _TASKS)}", repr(what))
    return _TASKS[what][1](argv[1:])


def _resolved(cls: type[Any], argv: Sequence[str], task: str, words: str, about: str) -> Resolved[Any]:
    prog = f"mdi-exit secure {task}"
    return resolve(cls, argv, os.environ, prog=prog, description=about, section="secure", words=words)


def _folder(text: str = "") -> Path:
    if not text:
        raise UsageError("DIR", "a folder that 'mdi-exit secure init' has made", "none (see --help)")
    return Path(text)


def _store_and_name(resolved: Resolved[Any]) -> tuple[Store, str]:
    if len(resolved.words) != 2:
        raise UsageError("mdi-exit secure", "a folder and a name: DIR NAME", " ".join(resolved.words) or "none")
    folder, name = resolved.words
    try:
        return Store.open(Path(folder)), values.name(name)
    except UsageError as error:
        raise UsageError(error.what or "NAME", error.expected, error.got) from None


def _show(store: Store) -> None:
    """Who there is, and until when."""
    table = Table()
    for column in ("name", "role", "certificate", "good until", "days"):
        table.add_column(column, justify="right" if column == "days" else "left")
    moment = _now()
    for name, at in store.certificates().items():
        who = name.split("/")[1] if name.startswith("bundles/") else name.split("/")[0]
        role = store.record.users[who].role if name.startswith("bundles/") else ""
        days = (at - moment).days
        style = "red" if days < 0 else "yellow" if days < _SOON_DAYS else None
        table.add_row(who, role, name, f"{at:%Y-%m-%d}", str(days), style=style)
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _now() -> datetime:
    return datetime.now(UTC)
