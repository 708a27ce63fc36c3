"""A client that got in although it should not have, as on a broker that lets anybody in: what it forges changes nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from live import Listener, Source, System, run_program, until

from mdi_exit.model.artifact import DEFAULT_MODEL
from mdi_exit.signing import new_key
from mdi_exit.topics import Topics
from mdi_exit.wire import Control, Manifest, ResultRow, Results, crc32, decode, encode

pytestmark = pytest.mark.broker

TOPICS = Topics("test")


def _labels(source: Source) -> dict[str, int]:
    return {row["id"]: row["label"] for row in source.rows}


def _results(listener: Listener) -> Results:
    until(lambda: bool(listener.on(TOPICS.results("a"))), lambda: "results")
    message, _ = decode(listener.on(TOPICS.results("a"))[0])
    assert isinstance(message, Results)
    return message


def _run(system: System, name: str) -> Source:
    return system.source("--limit", "150", "--rate", "60/s", "--exit-threshold", "1", name=name)


def test_forged_and_replayed_results_change_nothing(system: System) -> None:
    system.agent("a", "0-8").until_says("connected")
    honest = _run(system, "source")
    honest.until_completed(150)
    attacked = _run(system, "source")
    attacked.until_results(20)
    with Listener(system.url) as listener:
        real = _results(listener)
        (done, *_) = (row for row in real.rows if row.label is not None)
        lie = msgspec.structs.replace(done, label=(done.label or 0) ^ 1)
        unknown = ResultRow(10**12, 0, ("a",), 0, 1, 0.99)
        ahead = tuple(ResultRow(item, 7, ("a",), 0, 1, 0.99) for item in range(60, 150))  # attempts that never were
        given_back = msgspec.structs.replace(done, label=None, error="forged", refused=True)
        forged = [
            msgspec.structs.replace(real, incarnation=real.incarnation - 1),  # as of an earlier start
            *(Results(real.run, real.incarnation, (row,)) for row in (lie, unknown, given_back)),
            Results(real.run, real.incarnation, ahead),
            Results(real.run - 1, real.incarnation, (lie,)),  # of another run
        ]
        for message in (real, *forged, real):
            listener.publish(TOPICS.results("a"), encode(message))
        listener.publish("mdi/other/results/a", encode(real))
    summary = attacked.until_completed(150)
    assert _labels(attacked) == _labels(honest)
    assert summary["duplicates"] > 0
    log = attacked.log
    assert [reason for reason in ("item", "run") if f"{reason}: expected" not in log] == []


def test_only_segments_that_were_signed_are_taken(system: System, tmp_path: Path) -> None:
    private, public = new_key()
    (tmp_path / "key").write_bytes(private)
    (tmp_path / "pub").write_bytes(public)
    signed = tmp_path / "signed"
    done = run_program("mdi_exit.cli", "secure", "sign", DEFAULT_MODEL, "--key", tmp_path / "key", "--out", signed)
    assert done.returncode == 0, done.stderr
    wary = ("--require-signed-model", str(tmp_path / "pub"))
    first = system.agent("a", "0-4", *wary)
    first.until_says("connected")
    source = system.source("--model", str(signed), "--duration", "60s", "--rate", "20/s", "--exit-threshold", "1")
    first.until_says("ready")
    with Listener(system.url) as listener:
        until(lambda: bool(listener.on(TOPICS.manifest)), lambda: "a manifest")
        offer, body = decode(listener.on(TOPICS.manifest)[-1])
        assert isinstance(offer, Manifest)
        assert all(len(segment.signature) == 64 for segment in (offer, *offer.segments))
        real = offer.segments[0]
        forgeries = (
            msgspec.structs.replace(real, sha256="0" * 64),  # another graph under its signature
            msgspec.structs.replace(real, entry=5, stop=6),  # its signature, for other layers
            msgspec.structs.replace(real, entry=5, stop=6, signature=b""),
        )

        def forge() -> None:
            for bad in forgeries:
                forged = msgspec.structs.replace(offer, segments=(bad,))
                listener.publish(TOPICS.manifest, encode(forged, body), retain=True)

        second = system.agent("b", "5-8", *wary)
        # Again and again, since the source puts its own offer in the place of a forged one at once.
        until(lambda: forge() or "expected a signature by the key of" in second.log, lambda: second.log)
        # The source offers again what was taken from the broker's memory, and both work.
        second.until_says("ready")
        source.until_results(30)
        unsigned = msgspec.structs.replace(offer, signature=b"", model="ab" * 16, crc=crc32(b"{}"))
        listener.publish(TOPICS.manifest, encode(unsigned, b"{}"))
        listener.publish(TOPICS.control, encode(Control(offer.run, 1, "source", 1, "ab" * 16, 0.5)))
    source.until_results(len(source.rows) + 30)
    assert source.stop() == 0
    source.until_completed()
    assert first.running
    assert second.running
