"""TLS on the client's side: whom to trust, who we are, and what a failed handshake means in plain words."""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path
from typing import Final

from mdi_exit.errors import UsageError

__all__ = ["asked_again", "closing", "is_denial", "plain_reason", "tls_context"]

_ASK_S: Final = 2.0

# Mosquitto's alert is sometimes lost, since it closes at once.
_PERHAPS: Final = "it does not take our certificate (--cert), or wants one"

# What OpenSSL says, and what it means here. The broker's certificate first, then what the broker says of ours.
_MEANINGS: Final = (
    (r"certificate has expired", "the broker's certificate has expired (or this clock is wrong)"),
    (r"certificate is not yet valid", "the broker's certificate is not valid yet (is this clock right?)"),
    (r"(Hostname|IP address) mismatch[^.]*", "the broker's certificate is for another name than the one in --broker"),
    (
        r"unable to get (local )?issuer certificate|self.signed certificate|certificate signature failure",
        "the broker's certificate is not of a trusted authority (--ca)",
    ),
    (r"unsuitable certificate purpose|unsupported certificate purpose", "the broker's certificate is not for a server"),
    (r"certificate verify failed:? ?(?P<rest>[^(]*)", "the broker's certificate is not trusted: {rest}"),
    (r"alert certificate expired", "the broker says that our certificate (--cert) has expired"),
    (r"alert certificate revoked", "the broker says that our certificate (--cert) is revoked"),
    (r"alert (unknown ca|bad certificate|decrypt error)", "the broker does not know our certificate (--cert)"),
    (r"alert unsupported certificate", "the broker says that our certificate (--cert) is not for a client"),
    (r"certificate required|peer did not return a certificate", "the broker wants a certificate (--cert)"),
    (r"alert handshake failure", "the broker refuses the handshake: does it want a certificate (--cert)?"),
    (r"wrong version number|record layer failure", "no TLS is spoken at this port (mqtt:// instead of mqtts://?)"),
    (r"EOF occurred in violation", f"the broker ended the connection before it answered: {_PERHAPS}"),
    (r"code:13[45]\]|code:[45]\]", "refused: unknown user, or wrong password"),
)  # fmt: skip
_SURE: Final = (
    "the broker's certificate", "the broker says", "the broker does not", "the broker wants", "refused: unknown user",
)  # fmt: skip


def tls_context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """Trusts ``ca`` (None: the system's authorities), shows ``cert`` with its ``key``. Raises ``UsageError``."""
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise UsageError("--ca", "certificates (PEM)", f"{ca}: {_of_file(error)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert is None:
        return context
    for flag, file in (("--cert", cert), ("--key", key)):
        if file is not None:
            _readable(flag, file)
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except (OSError, ssl.SSLError, ValueError) as error:
        got = f"{cert} and {key or cert}: {_of_file(error)}"
        raise UsageError("--cert, --key", "a certificate and its key (PEM, without a passphrase)", got) from None
    return context


class _ClosedOnFailure(ssl.SSLSocket):
    """Closes itself when its handshake fails: paho leaves that to the garbage collector, which complains."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            self.close()
            raise


def closing(context: ssl.SSLContext | None) -> ssl.SSLContext:
    """``context``, or the default one; its sockets do not outlive a failed handshake."""
    context = context or ssl.create_default_context()
    if context.sslsocket_class is ssl.SSLSocket:
        context.sslsocket_class = _ClosedOnFailure
    return context


def _no_passphrase() -> str:
    """Without it OpenSSL would ask at the terminal."""
    raise ValueError("the key has a passphrase")


def _readable(flag: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise UsageError(flag, "a readable file (PEM)", f"{file}: {error.strerror}") from None


def _of_file(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return "key of another certificate" if "MISMATCH" in str(error) else "not PEM"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def plain_reason(text: str) -> str:
    """Why a connection failed, in words; ``text`` itself where it is not one of the known reasons."""
    for pattern, meaning in _MEANINGS:
        if found := re.search(pattern, text):
            return meaning.format(rest=(found.groupdict().get("rest") or "").strip())
    return text


def asked_again(why: str, host: str, port: int, context: ssl.SSLContext) -> str:
    """``why``, or, where the broker's alert got lost in the close of the connection, what a bare handshake hears. Blocks.

    A client that says nothing after its handshake gives the broker no reason to reset the connection.
    """
    if not why.endswith(_PERHAPS):
        return why
    try:
        with (
            socket.create_connection((host, port), _ASK_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as tls,
        ):
            tls.recv(1)
    except OSError as error:
        return plain_reason(str(error)) if isinstance(error, ssl.SSLError) else why
    return why


def is_denial(why: str, *, again: bool) -> bool:
    """Whether the reason ``why``, in words, is one that another try would meet again: who we are, or who the broker is.

    ``again``: it was the same the last time, which settles what could have been chance.
    """
    return any(why.startswith(sure) for sure in _SURE) or (again and why.endswith(_PERHAPS))
