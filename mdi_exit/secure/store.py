"""The folder that ``mdi-exit secure`` keeps: who there is, and every file that the broker and each program are given.

::

    secure.json            who there is and what was issued; no secrets
    authority/             ca.key, ca.crt: keep this folder on one machine, or off all of them
    model.key, model.pub   to sign models, and to check signatures
    broker/                all that the broker is given: copy it there
    bundles/NAME/          all that one program is given: copy it to its machine

Folders are of mode 0700, files 0600. Nothing is overwritten but by a command that says so.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from msgspec import Meta, Struct

from broker.access import ROLES, by_name
from broker.credentials import hashed, matches
from mdi_exit.errors import StartError, UsageError
from mdi_exit.secure.authority import Authority, Issued, expires, pem, serial_of
from mdi_exit.secure.files import bundle_settings, mosquitto_conf
from mdi_exit.signing import new_key

__all__ = ["PROGRAM_ROLES", "Record", "Store", "User"]

RECORD_FILE: Final = "secure.json"
PROGRAM_ROLES: Final = tuple(role for role in ROLES if role != "health")
_FORMAT: Final = 1
_PASSWORD_BYTES: Final = 24
_SALT_BYTES: Final = 12


class User(Struct, frozen=True, kw_only=True):
    """One program: its role, and the serial numbers of all certificates that it was given."""

    role: str
    serials: tuple[int, ...] = ()


class Record(Struct, frozen=True, kw_only=True):
    """``secure.json``. Ports 0: no such listener; ``install`` and ``broker_install``: where the files will lie."""

    format: Annotated[int, Meta(ge=_FORMAT, le=_FORMAT)] = _FORMAT
    deployment: str
    hosts: tuple[str, ...]
    port: int
    password_port: int
    days: int
    install: str
    broker_install: str
    users: dict[str, User] = {}
    revoked: tuple[int, ...] = ()


@dataclass(slots=True)
class Store:
    """An opened folder. Errors of the file system are ``StartError``."""

    folder: Path
    record: Record

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Raises ``UsageError`` for a folder that none has been made in."""
        path = folder / RECORD_FILE
        try:
            return cls(folder, msgspec.json.decode(path.read_bytes(), type=Record))
        except OSError as error:
            raise UsageError(
                "DIR", "a folder that 'mdi-exit secure init' has made", f"{path}: {error.strerror}"
            ) from None
        except msgspec.MsgspecError as error:
            raise UsageError("DIR", "a folder that 'mdi-exit secure init' has made", f"{path}: {error}") from None

    @classmethod
    def make(cls, folder: Path, record: Record, users: Mapping[str, str], now: datetime) -> Store:
        """A new folder with everything for ``users``, role by name. Raises ``UsageError`` if there is something already."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError("DIR", "a folder that is new or empty (nothing is overwritten)", folder)
        store = cls(folder, record)
        with _told(folder):
            for part in (folder, folder / "authority", folder / "broker", folder / "bundles"):
                part.mkdir(parents=True, exist_ok=True)
                part.chmod(0o700)
            authority = Authority.new(f"mdi-exit {record.deployment}", now)
            issued = Issued(_certificate(authority), _key(authority))
            store._put("authority/ca.key", issued.key)
            store._put("authority/ca.crt", issued.certificate)
            private, public = new_key()
            store._put("model.key", private)
            store._put("model.pub", public)
            store._put("broker/ca.crt", issued.certificate)
            store._put("broker/mosquitto.conf", mosquitto_conf(record).encode())
            store.renew_broker(now)
            for name, role in users.items():
                store._give(name, role, now)
            store._save(now)
        return store

    @property
    def authority(self) -> Authority:
        return Authority.load(self.read("authority/ca.crt"), self.read("authority/ca.key"))

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise StartError(f"{self.folder / name}: {error.strerror}") from None

    def bundle(self, name: str) -> Path:
        return self.folder / "bundles" / name

    # --- changes

    def add(self, name: str, role: str, now: datetime) -> None:
        """One more program. Raises ``UsageError`` for a name that is taken."""
        if name in self.record.users:
            raise UsageError("NAME", "one that is not taken (renew replaces certificates)", name)
        with _told(self.folder):
            self._give(name, role, now)
            self._save(now)

    def renew(self, name: str, now: datetime) -> None:
        """Another certificate, with another key; the old one stays good until it expires. Raises ``UsageError``."""
        self._known(name)
        with _told(self.folder):
            self._certify(name, now)
            self._save(now)

    def renew_broker(self, now: datetime) -> None:
        """Another certificate for the broker, with another key."""
        with _told(self.folder):
            issued = self.authority.for_broker(self.record.hosts, now, self.record.days)
            self._put("broker/broker.key", issued.key)
            self._put("broker/broker.crt", issued.certificate)

    def revoke(self, name: str, now: datetime) -> None:
        """None of its certificates counts any more, nor its password, nor has it any rule. Raises ``UsageError``."""
        user = self._known(name)
        with _told(self.folder):
            rest = {other: found for other, found in self.record.users.items() if other != name}
            revoked = (*self.record.revoked, *user.serials)
            self.record = msgspec.structs.replace(self.record, users=rest, revoked=revoked)
            self._save(now)
            shutil.rmtree(self.bundle(name), ignore_errors=True)

    def _known(self, name: str) -> User:
        if name not in self.record.users:
            raise UsageError("NAME", f"one of {', '.join(sorted(self.record.users)) or 'nobody'}", name)
        return self.record.users[name]

    def _give(self, name: str, role: str, now: datetime) -> None:
        folder = self.bundle(name)
        folder.mkdir(mode=0o700)
        self.record = msgspec.structs.replace(self.record, users=self.record.users | {name: User(role=role)})
        self._put(f"bundles/{name}/ca.crt", self.read("authority/ca.crt"))
        self._put(f"bundles/{name}/model.pub", self.read("model.pub"))
        self._put(f"bundles/{name}/password", secrets.token_hex(_PASSWORD_BYTES).encode() + b"\n")
        self._put(f"bundles/{name}/mdi-exit.toml", bundle_settings(self.record, name, role).encode())
        self._certify(name, now)

    def _certify(self, name: str, now: datetime) -> None:
        issued = self.authority.for_user(name, now, self.record.days)
        user = self.record.users[name]
        user = msgspec.structs.replace(user, serials=(*user.serials, serial_of(issued.certificate)))
        self.record = msgspec.structs.replace(self.record, users=self.record.users | {name: user})
        self._put(f"bundles/{name}/node.key", issued.key)
        self._put(f"bundles/{name}/node.crt", issued.certificate)

    def _save(self, now: datetime) -> None:
        """What the broker is told of all users, and the record."""
        record = self.record
        more = self.folder / "broker" / "access.extra"
        extra = more.read_text(encoding="utf-8") if more.exists() else ""
        roles = {name: user.role for name, user in record.users.items()}
        self._put("broker/acl", by_name(roles, record.deployment, extra).encode())
        self._put("broker/passwords", self._password_lines().encode())
        self._put("broker/revoked.pem", self.authority.revocations(record.revoked, now))
        self._put(RECORD_FILE, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")

    def _password_lines(self) -> str:
        told = self.folder / "broker" / "passwords"
        known = dict(line.split(":", 1) for line in told.read_text().splitlines()) if told.exists() else {}
        lines = []
        for name in sorted(self.record.users):
            password = self.read(f"bundles/{name}/password").decode().strip()
            line = known.get(name, "")
            line = line if matches(password, line) else hashed(password, secrets.token_bytes(_SALT_BYTES))
            lines.append(f"{name}:{line}\n")
        return "".join(lines)

    def _put(self, name: str, content: bytes) -> None:
        """A whole file, readable by its owner alone from its first byte on."""
        path = self.folder / name
        part = path.with_name(f".{path.name}.new")
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        part.replace(path)

    # --- a look at it

    def certificates(self) -> dict[str, datetime]:
        """When each certificate expires, by the name of its file in the folder."""
        names = ["authority/ca.crt", "broker/broker.crt"]
        names += [f"bundles/{name}/node.crt" for name in sorted(self.record.users)]
        return {name: expires(self.read(name)) for name in names}

    def open_to_others(self) -> list[Path]:
        """Files and folders whose mode lets others than the owner in."""
        return sorted(path for path in self.folder.rglob("*") if path.stat().st_mode & 0o077)

    def unsound(self) -> list[str]:
        """What does not fit together, in words: certificates of another authority, keys of other certificates, no rules."""
        problems = []
        for name, what in (("broker", "broker/broker"), *((n, f"bundles/{n}/node") for n in sorted(self.record.users))):
            if fault := self._fault(what):
                problems.append(f"{name}: {fault}")
        acl = set(re.findall(r"^user (\S+)$", self.read("broker/acl").decode(), re.MULTILINE))
        problems += [f"{name}: no rules in broker/acl" for name in sorted(self.record.users.keys() - acl)]
        problems += [f"{name}: rules in broker/acl, but unknown" for name in sorted(acl - self.record.users.keys())]
        return problems

    def _fault(self, what: str) -> str:
        certificate = x509.load_pem_x509_certificate(self.read(f"{what}.crt"))
        try:
            certificate.verify_directly_issued_by(self.authority.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return f"{what}.crt is of another authority"
        key = load_pem_private_key(self.read(f"{what}.key"), None)
        return "" if key.public_key() == certificate.public_key() else f"{what}.key is of another certificate"


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Errors of the file system, as a program says them. Raises ``StartError``."""
    try:
        yield
    except OSError as error:
        raise StartError(f"{error.filename or folder}: {error.strerror}") from None


def _certificate(authority: Authority) -> bytes:
    return authority.certificate.public_bytes(Encoding.PEM)


def _key(authority: Authority) -> bytes:
    return pem(authority.key)
