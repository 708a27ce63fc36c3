"""``python -m broker.credentials``: passwords made once for each user of the access list, and what Mosquitto needs of them.

``make`` fills a folder (Compose's volume) and changes nothing that is there already::

    master/ROLE                the passwords, for whoever may read this folder: root
    broker/password_file       what Mosquitto checks them against
    broker/acl                 who may say what: a copy of the file that is given
    broker/mosquitto_sub       how the broker's health check signs in
    ROLE/password              for the container that plays the role, readable by its user only

``show ROLE`` prints a password, ``renew ROLE`` replaces it. Roles are the users of the access list, and Grafana's
administrator.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import os
import re
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from mdi_exit.errors import MdiExitError, StartError, UsageError

__all__ = ["HEALTH", "hashed", "main", "make", "matches", "renew", "show", "users_of"]

HEALTH: Final = "health"
GRAFANA: Final = "grafana"

_BROKER: Final = 1883  # the user that the image of Mosquitto runs as, by number
_OWNERS: Final = {"agent": 10001, "source": 10002, "gateway": 10003, GRAFANA: 472}
_NEEDED: Final = ("agent", "source", "gateway", HEALTH)
_ITERATIONS: Final = 101  # of mosquitto_passwd; a password of 192 random bits needs no slow hash
_SALT_BYTES: Final = 12
_PASSWORD_BYTES: Final = 24


def hashed(password: str, salt: bytes) -> str:
    """``password`` as a line of Mosquitto's password file holds it: PBKDF2 with SHA-512."""
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return "$".join(("", "7", str(_ITERATIONS), base64.b64encode(salt).decode(), base64.b64encode(key).decode()))


def matches(password: str, line: str) -> bool:
    """Whether ``line``, made by ``hashed``, is of ``password``."""
    try:
        salt = base64.b64decode(line.split("$")[3], validate=True)
    except (IndexError, ValueError):
        return False
    return hmac.compare_digest(hashed(password, salt), line)


def users_of(rules: str) -> tuple[str, ...]:
    """The users that an access list names. Raises ``UsageError`` for names that are unfit, or without whom nothing works."""
    users = tuple(dict.fromkeys(re.findall(r"^user +(.*?) *$", rules, re.MULTILINE)))
    if unfit := [user for user in users if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", user) or user == GRAFANA]:
        raise UsageError("--acl", f"users of letters, digits, - or _, none of them {GRAFANA}", ", ".join(unfit))
    if missing := [user for user in _NEEDED if user not in users]:
        raise UsageError("--acl", f"the users {', '.join(_NEEDED)}", f"none named {', '.join(missing)}")
    return users


def make(folder: Path, acl: Path) -> list[str]:
    """Fill ``folder`` with what it lacks and copy ``acl`` into it; the roles that got a password. Raises ``MdiExitError``."""
    try:
        rules = acl.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError("--acl", "a readable access list", f"{acl}: {_reason(error)}") from None
    users = users_of(rules)
    try:
        _folder(folder / "master", 0o700)
        new = [role for role in (*users, GRAFANA) if not (folder / "master" / role).exists()]
        for role in new:
            _write(folder / "master" / role, secrets.token_hex(_PASSWORD_BYTES) + "\n")
        _spread(folder, {role: show(folder, role) for role in (*users, GRAFANA)}, users, rules)
    except OSError as error:
        raise StartError(f"credentials in {folder}: {_reason(error)}") from None
    return new


def show(folder: Path, role: str) -> str:
    """The password of ``role``. Raises ``MdiExitError``."""
    try:
        known = sorted({path.name for path in (folder / "master").iterdir()} - {"password_file"})
        if role not in known:
            raise UsageError("role", f"one of {', '.join(known)}", repr(role))
        return (folder / "master" / role).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise StartError(f"password of {role}: {_reason(error)}: {folder / 'master'}") from None


def renew(folder: Path, role: str, acl: Path) -> None:
    """Another password for ``role``; the broker learns it when it starts again. Raises ``MdiExitError``."""
    show(folder, role)
    (folder / "master" / role).unlink()
    make(folder, acl)


def _spread(folder: Path, passwords: Mapping[str, str], users: Sequence[str], rules: str) -> None:
    """Give everybody the files of their own."""
    told = folder / "master" / "password_file"
    known = dict(line.split(":", 1) for line in told.read_text().splitlines()) if told.exists() else {}
    lines = {
        user: line
        if matches(passwords[user], line := known.get(user, ""))
        else hashed(passwords[user], secrets.token_bytes(_SALT_BYTES))
        for user in users
    }
    password_file = "".join(f"{user}:{line}\n" for user, line in lines.items())
    _write(told, password_file)

    _folder(folder / "broker", 0o711)
    _write(folder / "broker" / "password_file", password_file, _BROKER)
    _write(folder / "broker" / "acl", rules, _BROKER)
    options = ("-h 127.0.0.1", f"-u {HEALTH}", f"-P {passwords[HEALTH]}")
    _write(folder / "broker" / "mosquitto_sub", "\n".join(options) + "\n", _BROKER)
    for role, owner in _OWNERS.items():
        _folder(folder / role, 0o711)
        _write(folder / role / "password", passwords[role] + "\n", owner)


def _folder(path: Path, mode: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)


def _write(path: Path, text: str, owner: int | None = None) -> None:
    """Put a whole file in place, readable by ``owner`` alone (who is not root: nobody else can be given a file)."""
    part = path.with_name(f".{path.name}.new")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    if owner is not None and os.geteuid() == 0:
        shutil.chown(part, owner, owner)
    part.replace(path)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m broker.credentials", description="Passwords, one for each role.")
    parser.add_argument("--folder", type=Path, default=Path("/credentials"), help="where they are kept")
    parser.add_argument("--acl", type=Path, default=Path("/etc/mdi-exit/acl"), help="the broker's access list")
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("make", help="make what is missing")
    for task, text in (("show", "print a password"), ("renew", "replace a password")):
        tasks.add_parser(task, help=text).add_argument("role", help=f"a user of the broker, or {GRAFANA}")
    return parser


def _carry_out(given: argparse.Namespace) -> None:
    match given.task:
        case "make":
            made = make(given.folder, given.acl)
            sys.stdout.write(f"credentials: made for {', '.join(made)}\n" if made else "credentials: all there\n")
        case "show":
            sys.stdout.write(show(given.folder, given.role) + "\n")
        case _:
            renew(given.folder, given.role, given.acl)
            sys.stdout.write(
                f"credentials: {given.role} has another password; start the broker and {given.role} again\n"
            )


def main() -> int:
    """The program; returns its exit status."""
    given = _parser().parse_args()
    try:
        _carry_out(given)
    except MdiExitError as error:
        sys.stderr.write(f"credentials: error: {error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
