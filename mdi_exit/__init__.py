"""Early-exit, model-distributed inference over MQTT.

``Client`` and what it gives and raises are loaded when first asked for, so that a node pays nothing for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdi_exit.client import Answer, Client, Text
    from mdi_exit.errors import BadRequest, DeadlineExceeded, Failed, Refused, RequestError

__all__ = [
    "Answer",
    "BadRequest",
    "Client",
    "DeadlineExceeded",
    "Failed",
    "Refused",
    "RequestError",
    "Text",
    "__version__",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(
        import_module("mdi_exit.client" if name in ("Answer", "Client", "Text") else "mdi_exit.errors"), name
    )
