"""What an agent that wants signatures makes of an offer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from mdi_exit.errors import WireError
from mdi_exit.events import ModelRefused
from mdi_exit.exchange import ModelClient
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.secure.sign import signature_of
from mdi_exit.segments import SegmentKey, possible_segments
from mdi_exit.signing import ModelSignature, Verifier, new_key, private_key
from mdi_exit.span import LayerSpan
from mdi_exit.topics import Topics
from mdi_exit.wire import Manifest, SegmentFile, crc32

ARTIFACT = Artifact.open(DEFAULT_MODEL)
PLAN = ARTIFACT.manifest.plan


class Driver:
    """As much of a driver as a client of the model needs."""

    def __init__(self) -> None:
        self.plan: Any = None
        self.manifest: Any = None
        self.topics = Topics("test")
        self.events: list[Any] = []
        self.bad: list[WireError] = []
        self.asked: list[str] = []

    def use_model(self, manifest: Any) -> None:
        self.manifest, self.plan = manifest, manifest.plan

    def feed(self, event: Any) -> None:
        self.events.append(event)

    def count_bad(self, error: WireError, topic: str) -> None:
        assert topic == "mdi/test/model/manifest"
        self.bad.append(error)

    def spawn(self, name: str, work: Any) -> None:
        self.asked.append(name)
        work.close()


class Transport:
    async def subscribe(self, pattern: str, qos: int = 0) -> None: ...

    async def unsubscribe(self, pattern: str) -> None: ...


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSignature, Verifier]:
    folder: Path = tmp_path_factory.mktemp("keys")
    private, public = folder / "key", folder / "pub"
    for path, content in zip((private, public), new_key(), strict=True):
        path.write_bytes(content)
    return signature_of(ARTIFACT, private_key(private)), Verifier.load(public)


def offer(signature: ModelSignature, /, **changed: Any) -> Manifest:
    """Everything that there is; ``changed``: fields of the segment ``segment-4-5-head``."""
    segments = []
    for key in sorted(possible_segments(PLAN)):
        signed = signature.segments[key.file]
        file = SegmentFile(*key, 1000, signed.sha256, 1, bytes.fromhex(signed.signature))
        segments.append(msgspec.structs.replace(file, **changed) if key == SegmentKey(4, 6, True) else file)
    raw = ARTIFACT.manifest_bytes
    return Manifest(7, "source", PLAN.digest, crc32(raw), tuple(segments), bytes.fromhex(signature.signature))


def client(verifier: Verifier | None, *spans: LayerSpan) -> tuple[ModelClient, Driver]:
    driver = Driver()
    return ModelClient(driver, Transport(), spans, verifier), driver  # type: ignore[arg-type]


def test_what_is_signed_is_asked_for(keys: tuple[ModelSignature, Verifier]) -> None:
    signature, verifier = keys
    agent, driver = client(verifier, LayerSpan(4, 9))
    agent.manifest_received(offer(signature), memoryview(ARTIFACT.manifest_bytes))
    assert "fetch segment-4-5-head" in driver.asked
    assert driver.events == [ModelRefused(refused=False)]


@pytest.mark.parametrize("changed", [{"sha256": "0" * 64}, {"signature": b""}, {"signature": bytes(64)}])
def test_a_segment_that_is_not_is_left_out_and_the_others_are_not(
    keys: tuple[ModelSignature, Verifier], changed: dict[str, Any]
) -> None:
    signature, verifier = keys
    agent, driver = client(verifier, LayerSpan(4, 9))
    bad, body = offer(signature, **changed), memoryview(ARTIFACT.manifest_bytes)
    with pytest.raises(WireError, match=r"signature: segment-4-5-head: expected a signature by the key of .*pub, got"):
        agent.manifest_received(bad, body)
    assert driver.events == [ModelRefused()]
    assert "fetch segment-4-5-head" not in driver.asked
    assert "fetch segment-6-6-head" in driver.asked
    agent.manifest_received(offer(signature), body)
    assert driver.events[-1] == ModelRefused(refused=False)
    assert "fetch segment-4-5-head" in driver.asked


def test_a_manifest_that_is_not_is_not_the_model_in_force(keys: tuple[ModelSignature, Verifier]) -> None:
    signature, verifier = keys
    agent, driver = client(verifier, LayerSpan(4, 9))
    unsigned = msgspec.structs.replace(offer(signature), signature=b"")
    with pytest.raises(WireError, match=r"signature: model fashion-mnist-mobilenetv2: .* got no signature"):
        agent.manifest_received(unsigned, memoryview(ARTIFACT.manifest_bytes))
    assert (driver.manifest, driver.asked, driver.events) == (None, [], [ModelRefused()])


@pytest.mark.parametrize(
    ("changed", "reason"), [({"sha256": "0" * 64}, "signature"), ({"chunks": 100_000}, "manifest")]
)
def test_layers_that_are_given_later_are_checked_then_and_end_nothing(
    keys: tuple[ModelSignature, Verifier], changed: dict[str, Any], reason: str
) -> None:
    signature, verifier = keys
    agent, driver = client(verifier, LayerSpan(0, 2))
    agent.manifest_received(offer(signature, **changed), memoryview(ARTIFACT.manifest_bytes))
    assert driver.bad == []
    driver.executor = type("Executor", (), {"unload": lambda self, gone: _nothing()})()  # type: ignore[attr-defined]
    agent.hold((LayerSpan(4, 9),))
    assert [error.reason for error in driver.bad] == [reason]


async def _nothing() -> None: ...


def test_without_a_key_nothing_is_looked_at(keys: tuple[ModelSignature, Verifier]) -> None:
    agent, driver = client(None, LayerSpan(4, 9))
    agent.manifest_received(offer(keys[0], signature=b""), memoryview(ARTIFACT.manifest_bytes))
    assert "fetch segment-4-5-head" in driver.asked
    assert driver.events == []
