"""The OpenAPI description, its schemas made of the very classes that are sent."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from mdi_exit import __version__
from mdi_exit.gateway.feed import Update
from mdi_exit.gateway.infer import MAX_IMAGE_BYTES, Answer, Fault
from mdi_exit.gateway.state import State

__all__ = ["description"]

_FAULTS: Final = {
    400: "Not what the model takes, or a deadline that is none",
    403: "Sent by the page of another site",
    413: f"More than {MAX_IMAGE_BYTES:,} bytes",
    415: "Neither the bytes of an image or of sound nor a text",
    429: "Refused under overload; Retry-After says in how many seconds to try again",
    502: "Admitted, but no label could be found",
    503: "No broker or no source",
    504: "No label within the deadline",
}
_BINARY: Final = {"type": "string", "format": "binary"}


def description() -> dict[str, Any]:
    """OpenAPI 3.1."""
    (answer, state, update, fault), components = msgspec.json.schema_components(
        (Answer, State, Update, Fault), ref_template="#/components/schemas/{name}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mdi-exit",
            "version": __version__,
            "description": "Labels for images, sound or texts, from a network that is spread over several boards.",
        },
        "paths": {
            "/v1/infer": {"post": _infer(answer, fault)},
            "/v1/state": {"get": _get("What is known of the deployment now", _json("The state", state))},
            "/v1/events": {"get": _events(update)},
            "/v1/frames/{number}.jpg": {"get": _picture()},
            "/healthz": {"get": _get("Whether the gateway runs", _text("It does"))},
            "/readyz": {"get": _ready()},
        },
        "components": {"schemas": components},
    }


def _infer(answer: Any, fault: Any) -> dict[str, Any]:
    text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    parts = {"image": _BINARY, "audio": _BINARY, "text": {"type": "string"}}
    form = {"type": "object", "properties": parts, "minProperties": 1}
    return {
        "summary": "The label of an image, or of sound or a text where the model takes these",
        "operationId": "infer",
        "parameters": [
            {
                "name": "deadline",
                "in": "query",
                "description": "How long to wait: 500ms, 2s; at most 60s",
                "schema": {"type": "string"},
            }
        ],
        "requestBody": {
            "required": True,
            "description": "JPEG, PNG or another usual format; a WAV file; or a text in UTF-8",
            "content": {
                "image/*": {"schema": _BINARY},
                "audio/wav": {"schema": _BINARY},
                "multipart/form-data": {"schema": form},
                "text/plain": {"schema": {"type": "string"}},
                "application/json": {"schema": text},
            },
        },
        "responses": {"200": _json("The label", answer)}
        | {str(status): _json(text, fault) for status, text in _FAULTS.items()},
    }


def _events(update: Any) -> dict[str, Any]:
    text = (
        "Server-sent events: `update` at most five times a second, with the state and the samples and frames that are new "
        "since the one before (the first has the last five minutes); `beat` when there was nothing for a second."
    )
    stream = {"description": text, "content": {"text/event-stream": {"schema": update}}}
    busy = {"description": "Too many streams are open"}
    return {
        "summary": "What happens, as it happens",
        "operationId": "events",
        "responses": {"200": stream, "503": busy},
    }


def _picture() -> dict[str, Any]:
    number = {"name": "number", "in": "path", "required": True, "schema": {"type": "integer"}}
    image = {"description": "A JPEG", "content": {"image/jpeg": {"schema": _BINARY}}}
    return {
        "summary": "The small picture of a frame of late",
        "parameters": [number],
        "responses": {"200": image, "404": {"description": "No longer kept"}},
    }


def _ready() -> dict[str, Any]:
    one = _get("Whether a broker and a source are there", _text("Both are"))
    one["responses"]["503"] = _text("Which is not")
    return one


def _get(summary: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": answer}}


def _json(text: str, schema: Any) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _text(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"text/plain": {"schema": {"type": "string"}}}}
