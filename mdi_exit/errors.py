"""The errors of the project: one base, a shallow tree, attributes and not only text.

A library's exceptions are mapped to these at one boundary each: onnxruntime's in the
engine, aiomqtt's in the transport, msgspec's in the wire.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "BadRequest",
    "DeadlineExceeded",
    "EngineError",
    "Failed",
    "IllegalEventError",
    "MdiExitError",
    "Refused",
    "RequestError",
    "StartError",
    "StoppedError",
    "TransportError",
    "UsageError",
    "WireError",
]


class MdiExitError(Exception):
    """Base of every error that the project raises on purpose. ``exit_status`` is what a program ends with."""

    exit_status = 1


class UsageError(MdiExitError):
    """A flag, environment variable, file or argument is wrong: one plain line, exit status 2.

    The message reads "what: expected X, got Y".
    """

    exit_status = 2

    def __init__(self, what: str, expected: str, got: object) -> None:
        self.what, self.expected, self.got = what, expected, got
        super().__init__(f"{what}: expected {expected}, got {got}")


class ArtifactError(UsageError):
    """A model artifact, or a file of it, cannot be used: wrong version, digest, shape or graph."""


class StartError(MdiExitError):
    """The program is configured well but could not start (port taken, name taken, no broker binary)."""

    exit_status = 3


class StoppedError(MdiExitError):
    """Somebody asked the program to end before it was done."""


class EngineError(MdiExitError):
    """A segment could not be loaded or run."""


class TransportError(MdiExitError):
    """A message could not be sent, or the connection could not be made."""


class WireError(MdiExitError):
    """Bytes that are not a valid message. ``reason`` is a short label fit for a metric."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}")


class IllegalEventError(MdiExitError):
    """An event that the core's state does not allow: a defect of the driver. ``story`` is the tail of its event log."""

    def __init__(self, what: str, story: tuple[str, ...]) -> None:
        self.story = story
        super().__init__("\n  ".join((what, "last events:", *story)))


class RequestError(MdiExitError):
    """A request has no label. ``id`` is the request's, ``reason`` says why, for people."""

    def __init__(self, id: str, reason: str) -> None:  # noqa: A002 - what it is called on the wire
        self.id, self.reason = id, reason
        super().__init__(f"request {id}: {reason}")


class Refused(RequestError):  # noqa: N818 - what happened to the request, as its user reads it
    """The source is full, or leaving: the same request may succeed later."""


class DeadlineExceeded(RequestError):  # noqa: N818
    """The deadline has passed, or would have before an answer could be had."""


class BadRequest(RequestError):  # noqa: N818
    """No image, or one that the model cannot take: it would fail again."""


class Failed(RequestError):  # noqa: N818
    """Admitted, and not answered: a node failed again and again, or an end was put to the run."""
