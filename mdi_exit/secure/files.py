"""The texts that ``mdi-exit secure`` writes: the broker's configuration, and the settings of each program."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mdi_exit.secure.store import Record

__all__ = ["bundle_settings", "mosquitto_conf"]

_COMMON: Final = "# Without this, a small message"  # from here on all configurations of Mosquitto are the same
_TABLES: Final = {
    "agent": ("agent",),
    "source": ("source",),
    "observer": ("top",),
    "operator": ("top", "control"),
    "gateway": ("serve",),
}  # fmt: skip

_LISTENERS: Final = """\
# Mosquitto for production, 2.0 and later, written by `mdi-exit secure`. Nobody gets in without a certificate of our
# authority or a password, and who is in may say and hear what the access list has for its name.
allow_anonymous false
acl_file {at}/acl
password_file {at}/passwords

# For boards and all programs of ours: TLS on both sides. The name in the certificate is the user, whatever else is claimed.
listener {port}
cafile {at}/ca.crt
certfile {at}/broker.crt
keyfile {at}/broker.key
crlfile {at}/revoked.pem
require_certificate true
use_identity_as_username true
"""
_PASSWORDS: Final = """
# For programs without a certificate: TLS, and a password inside it.
listener {port}
certfile {at}/broker.crt
keyfile {at}/broker.key
"""


def mosquitto_conf(record: Record) -> str:
    """The broker's configuration: listeners of our own, the rest as in ``broker/mosquitto.conf``."""
    text = (resources.files("broker") / "mosquitto.conf").read_text(encoding="utf-8")
    common = text[text.index(_COMMON) :]
    listeners = _LISTENERS.format(at=record.broker_install, port=record.port)
    if record.password_port:
        listeners += _PASSWORDS.format(at=record.broker_install, port=record.password_port)
    return f"{listeners}\n{common}"


def bundle_settings(record: Record, name: str, role: str) -> str:
    """``mdi-exit.toml`` of one program: how it reaches the broker, and as whom."""
    host = f"[{record.hosts[0]}]" if ":" in record.hosts[0] else record.hosts[0]
    at = record.install
    settings = {
        "broker": f"mqtts://{host}:{record.port}",
        "deployment": record.deployment,
        "username": name,
        "ca": f"{at}/ca.crt",
        "cert": f"{at}/node.crt",
        "key": f"{at}/node.key",
    }
    if role in ("agent", "source"):
        settings = {"name": name} | settings | {"require_signed_model": f"{at}/model.pub"}
    tables = _TABLES.get(role, ())
    lines = [f"# {role} {name}: copy this folder to its machine as {at}, and give --config {at}/mdi-exit.toml."]
    if not tables:
        lines.append(
            "# What a program of your own needs to know; it may take the names of these keys, or none of them."
        )
    for table in tables or (role,):
        lines += ["", f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    return "\n".join(lines) + "\n"
