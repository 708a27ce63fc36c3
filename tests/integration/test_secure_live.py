"""The production configuration of ``mdi-exit secure init`` on a real Mosquitto, judged by what is delivered."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from guarded import Production, production
from live import Program, System, run_program
from rights import (
    DEPLOYMENT,
    INBOXES,
    ORDERS,
    STATUSES,
    TELEMETRY,
    TOPICS,
    WATCHED,
    Rights,
    heard_by_each,
    said_by_each,
)

from broker.embedded import find_mosquitto
from mdi_exit.secure.authority import Authority
from mdi_exit.transport.mqtt import MqttTransport
from mdi_exit.transport.tls import tls_context

pytestmark = pytest.mark.broker

ALSO = "cam:client,eye:observer,boss:operator,web:gateway,house:homeassistant"
# One user for each program, in one deployment, its name in its topics.
USERS = {
    "nano": Rights(
        {"own inbox", *TELEMETRY, *STATUSES, "link to it", "lesson to it", "control", *ORDERS, "manifest", "chunk"},
        {*INBOXES, "own results", "own telemetry", "own status", "link from it", "lesson from it"},
    ),
    "source": Rights(DEPLOYMENT | {"discovery"}, DEPLOYMENT | {"discovery"}),
    "cam": Rights({"control", "reply"}, {"request"}),
    "eye": Rights(WATCHED, set()),
    "boss": Rights(WATCHED | ORDERS, {"orders of another"}),  # which are boss's own
    "web": Rights(WATCHED, set()),
    "house": Rights({"discovery", "home"}, {"discovery"}),
}
EXTRA = "user tester\ntopic readwrite #\n"  # who hears and says all


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Production]:
    if find_mosquitto() is None:
        pytest.skip("needs mosquitto on PATH")
    with production(tmp_path, "nano,pi", ALSO) as made:
        yield made


@pytest.fixture
def overheard(guarded: Production) -> Production:
    """With a ``tester`` who hears all, by the operator's own rules (``access.extra``)."""
    guarded.secure("add", guarded.folder, "tester", "--role", "observer")
    (guarded.folder / "broker" / "access.extra").write_text(EXTRA)
    guarded.secure("add", guarded.folder, "another")  # writes the access list anew
    guarded.reload()
    return guarded


@contextlib.asynccontextmanager
async def signed_in(made: Production, name: str, handler: Any, **how: Any) -> AsyncIterator[MqttTransport]:
    async with made.transport(name, handler, **how) as transport:
        await handler.until(lambda: handler.connects or handler.reasons)
        assert handler.connects, handler.reasons
        yield transport


async def test_each_hears_what_concerns_it_and_nothing_else(overheard: Production, recorder: Any) -> None:
    await heard_by_each(USERS, "tester", partial(signed_in, overheard), recorder)


async def test_what_one_may_not_say_reaches_nobody(overheard: Production, recorder: Any) -> None:
    await said_by_each(USERS, "tester", partial(signed_in, overheard), recorder)


def test_an_agent_with_the_credentials_of_another_says_that_nobody_hears_it(
    guarded: Production, tmp_path: Path
) -> None:
    (tmp_path / "nodes").mkdir()
    system = System(guarded.url, tmp_path / "nodes", deployment="default")
    config = ("--config", str(guarded.board("nano") / "mdi-exit.toml"), "--layers", "0-4")
    try:
        honest = system.program("edge_agent.cli", "honest", *config)
        liar = system.program("edge_agent.cli", "liar", *config, "--name", "pi")
        liar.until_says("name pi: expected the broker to pass on this node's status, got nothing for 5 s")
        twin = system.program("edge_agent.cli", "twin", *config)
        assert twin.until_ends() == 3
        assert twin.log.splitlines()[-1].endswith(
            "name nano: expected one that no live node has, got one in use (--name)"
        )
        assert "expected the broker to pass on" not in honest.log
    finally:
        system.close()


async def test_a_name_that_is_claimed_beside_the_certificate_counts_nothing(
    overheard: Production, recorder: Any
) -> None:
    ear = recorder()
    async with (
        signed_in(overheard, "tester", ear) as listener,
        signed_in(overheard, "nano", recorder(), user="source") as liar,
    ):
        await listener.subscribe("#", 1)
        for name in ("control", "results of another", "own results"):
            await liar.publish_confirmed(TOPICS[name], b"lie", qos=1, timeout_s=10)
        await listener.unsubscribe("#")
        assert {topic for topic, *_ in ear.messages} == {TOPICS["own results"]}


async def _denied(url: str, recorder: Any, tls: Any, **how: Any) -> str:
    """Why the first connection fails, as the transport tells it once for all."""
    handler, denials = recorder(), []
    async with MqttTransport(
        url, client_id=f"x-{id(handler)}", handler=handler, tls=tls, on_denied=denials.append, **how
    ):
        await handler.until(lambda: handler.connects or bool(denials))
    assert not handler.connects
    assert len(denials) == 1
    return str(denials[0])


async def test_who_does_not_belong_here_stays_outside(guarded: Production, tmp_path: Path, recorder: Any) -> None:
    made, ours = guarded, guarded.folder
    ca, nano = ours / "authority" / "ca.crt", ours / "bundles" / "nano"
    authority = Authority.load(ca.read_bytes(), (ours / "authority" / "ca.key").read_bytes())
    now = datetime.now(UTC)
    foreign = Authority.new("another", now)
    issued = {
        "expired": authority.for_user("nano", now - timedelta(days=30), 10),
        "foreign": foreign.for_user("nano", now, 10),
        "server": authority.for_broker(["nano"], now, 10),
    }
    for name, one in issued.items():
        (tmp_path / f"{name}.crt").write_bytes(one.certificate)
        (tmp_path / f"{name}.key").write_bytes(one.key)

    def shown(name: str) -> Any:
        return tls_context(ca, tmp_path / f"{name}.crt", tmp_path / f"{name}.key")

    bare = tls_context(ca, None, None)
    password = (nano / "password").read_text().strip()
    assert "wants a certificate" in await _denied(made.url, recorder, bare)
    assert "wants a certificate" in await _denied(made.url, recorder, bare, username="nano", password=password)
    assert "certificate (--cert) has expired" in await _denied(made.url, recorder, shown("expired"))
    assert "does not know our certificate" in await _denied(made.url, recorder, shown("foreign"))
    assert "not for a client" in await _denied(made.url, recorder, shown("server"))
    mine = tls_context(tmp_path / "foreign.crt", nano / "node.crt", nano / "node.key")
    assert "not of a trusted authority" in await _denied(made.url, recorder, mine)
    right = tls_context(ca, nano / "node.crt", nano / "node.key")
    assert "another name" in await _denied(f"mqtts://127.0.0.2:{made.port}", recorder, right)
    for how in ({}, {"username": "nano", "password": "guess"}, {"username": "nano"}):
        assert "refused: unknown user, or wrong password" in await _denied(made.password_url, recorder, bare, **how)
    async with MqttTransport(
        made.password_url, client_id="p", handler=(handler := recorder()), tls=bare, username="nano", password=password
    ):
        await handler.until(lambda: handler.connects == 1)


async def test_plain_mqtt_gets_no_answer(guarded: Production, recorder: Any) -> None:
    for port in (guarded.port, guarded.password_port):
        handler = recorder()
        async with MqttTransport(f"mqtt://localhost:{port}", client_id="plain", handler=handler):
            await handler.until(lambda handler=handler: len(handler.reasons) > 0)
        assert not handler.connects


async def test_who_is_shut_out_says_and_hears_nothing_from_the_next_reload_on(
    overheard: Production, recorder: Any
) -> None:
    made, ear = overheard, recorder()
    password = (made.folder / "bundles" / "pi" / "password").read_text().strip()
    async with signed_in(made, "tester", ear) as listener, signed_in(made, "pi", pi := recorder()) as still_there:
        await listener.subscribe("#", 1)
        await still_there.subscribe(TOPICS["inbox of another"], 1)
        await still_there.publish_confirmed(TOPICS["results of another"], b"before", qos=1, timeout_s=10)
        await ear.until(lambda: b"before" in ear.payloads)
        made.secure("revoke", made.folder, "pi")
        made.reload()
        await still_there.publish_confirmed(TOPICS["results of another"], b"after", qos=1, timeout_s=2)
        await listener.publish_confirmed(TOPICS["inbox of another"], b"for pi", qos=1, timeout_s=10)
        await listener.unsubscribe("#")
        assert b"after" not in ear.payloads
        assert pi.payloads == []
    board = made.board("pi")
    tls = tls_context(board / "ca.crt", board / "node.crt", board / "node.key")
    assert "is revoked" in await _denied(made.url, recorder, tls)
    bare = tls_context(board / "ca.crt", None, None)
    assert "refused" in await _denied(made.password_url, recorder, bare, username="pi", password=password)


def test_programs_that_are_not_let_in_say_why_in_one_line_and_exit_3(guarded: Production, tmp_path: Path) -> None:
    made, board = guarded, guarded.board("nano")
    (tmp_path / "wrong").write_text("guess")
    stranger = Authority.new("another", datetime.now(UTC)).for_user("nano", datetime.now(UTC), 1)
    (tmp_path / "other.crt").write_bytes(stranger.certificate)
    (tmp_path / "other.key").write_bytes(stranger.key)
    ca, mine = ("--ca", board / "ca.crt"), ("--cert", board / "node.crt", "--key", board / "node.key")
    theirs = ("--cert", tmp_path / "other.crt", "--key", tmp_path / "other.key")
    guess = ("--username", "nano", "--password-file", tmp_path / "wrong")
    cases = {
        "wants a certificate": (made.url, *ca),
        "does not know our certificate": (made.url, *ca, *theirs),
        "not of a trusted authority": (made.url, "--ca", tmp_path / "other.crt", *mine),
        "for another name": (f"mqtts://127.0.0.2:{made.port}", *ca, *mine),
        "unknown user, or wrong password": (made.password_url, *ca, *guess),
    }
    for said, (url, *flags) in cases.items():
        for module, own in (
            ("edge_agent.cli", ("--layers=0-8", "--log-level", "error")),
            ("source.cli", ("--input=shipped:5", "--log-level", "error")),
            ("mdi_exit.cli", ("control", "--timeout", "20s", "status")),
            ("mdi_exit.cli", ("serve", "--http", "127.0.0.1:0", "--log-level", "error")),
        ):
            done = run_program(module, *own[:1], "--broker", url, *flags, *own[1:])
            assert done.returncode == 3, (module, said, done.stderr)
            assert done.stderr.count("\n") == 1, done.stderr
            assert said in done.stderr


def _secrets(made: Production) -> list[str]:
    """Every secret there is, or a piece of it that nothing else contains."""
    files = [made.folder / "authority" / "ca.key", made.folder / "model.key", made.folder / "broker" / "broker.key"]
    files += sorted(made.folder.glob("bundles/*/node.key"))
    found = [path.read_text().splitlines()[1][:40] for path in files]
    found += [path.read_text().strip() for path in sorted(made.folder.glob("bundles/*/password"))]
    return found + [line.split("$")[-1] for line in (made.folder / "broker" / "passwords").read_text().splitlines()]


def _command_lines(programs: list[Program]) -> str:
    return "\n".join(Path(f"/proc/{program.process.pid}/cmdline").read_text() for program in programs)


def test_a_whole_run_with_certificates_and_a_signed_model_and_no_secret_anywhere(
    guarded: Production, tmp_path: Path
) -> None:
    made = guarded
    signed = tmp_path / "signed"
    said = [made.secure("sign", "fashion-mnist-mobilenetv2", "--key", made.folder / "model.key", "--out", signed)]
    folder = tmp_path / "nodes"
    folder.mkdir()
    system = System(made.url, folder, deployment="default")
    try:
        agents = [
            system.program(
                "edge_agent.cli", name, "--config", str(made.board(name) / "mdi-exit.toml"), "--layers", span
            )
            for name, span in (("nano", "0-4"), ("pi", "3-8"))
        ]
        for agent in agents:
            agent.until_says("connected")
        flags = ("--config", str(made.board("source") / "mdi-exit.toml"), "--model", str(signed))
        source = system.source(*flags, "--repeat", "--exit-threshold", "1", "--rate", "60/s", name="source")
        source.until_results(50)
        scraped = "".join(program.scrape() for program in (source, *agents))
        boss = ("control", "--config", made.board("boss") / "mdi-exit.toml")
        said.append(run_program("mdi_exit.cli", *boss, "status"))
        assert "ready" in said[-1].stdout, said[-1].stderr
        said.append(run_program("mdi_exit.cli", *boss, "threshold", "0.9"))
        assert said[-1].returncode == 0, said[-1].stderr
        argv = _command_lines([source, *agents])
        assert source.stop() == 0
        source.until_completed()
        for agent in agents:
            assert agent.stop() == 0
    finally:
        system.close()
    password = ("--username", "nano", "--password-file", made.board("nano") / "password")
    check = ("--config", made.board("nano") / "mdi-exit.toml", *password, "--layers", "1-2", "--check")
    said.append(run_program("edge_agent.cli", *check))
    assert "(set)" in said[-1].stdout
    said += [made.secure("check", made.folder), made.secure("renew", made.folder, "nano")]
    written = [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()]
    everything = "\n".join((*written, scraped, argv, made.log, *(done.stdout + done.stderr for done in said)))
    assert [secret for secret in _secrets(made) if secret in everything] == []
    assert {path.stat().st_mode & 0o077 for path in made.folder.rglob("*")} == {0}


def _only_signed(made: Production, system: System, name: str, span: str) -> Program:
    return system.program("edge_agent.cli", name, "--config", str(made.board(name) / "mdi-exit.toml"), "--layers", span)


def test_an_unsigned_model_is_refused_in_one_line_and_a_signed_one_taken_later(
    guarded: Production, tmp_path: Path
) -> None:
    made = guarded
    folder = tmp_path / "nodes"
    folder.mkdir()
    system = System(made.url, folder, deployment="default")
    config = str(made.board("source") / "mdi-exit.toml")
    toml = Path(config)
    lax = made.boards / "lax.toml"
    lax.write_text("".join(line for line in toml.read_text().splitlines(keepends=True) if "require" not in line))
    try:
        agent = _only_signed(made, system, "nano", "0-8")
        agent.until_says("connected")
        refused = run_program(
            "source.cli", "--config", config, "--input", "shipped:5"
        )  # the source wants it signed, too
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert "expected one that is signed (model.sig.json), got none" in refused.stderr
        unsigned = system.source("--config", str(lax), "--input", "shipped:20", name="source")
        agent.until_says("is not signed as --require-signed-model has it")
        agent.until_says("expected a signature by the key of")
        assert agent.get("/readyz") == (503, "model not signed\n")
        assert agent.bad_messages()["signature"] >= 1
        assert agent.running
        assert agent.log.count("expected a signature by the key of") == 1
        assert unsigned.stop() == 0
        assert unsigned.rows == [] or all("error" in row for row in unsigned.rows)

        other = tmp_path / "other.key"
        _new_key(other)
        for key, name in ((other, "theirs"), (made.folder / "model.key", "ours")):
            made.secure("sign", "fashion-mnist-mobilenetv2", "--key", key, "--out", tmp_path / name)
        wrong = run_program("source.cli", "--config", config, "--input", "shipped:5", "--model", tmp_path / "theirs")
        assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1), wrong.stderr
        source = system.source("--config", config, "--input", "shipped:20", "--model", str(tmp_path / "ours"))
        source.until_completed(20)
        assert agent.stop() == 0
    finally:
        system.close()


def _new_key(file: Path) -> None:
    from mdi_exit.signing import new_key

    file.write_bytes(new_key()[0])


def test_a_local_model_must_be_signed_too(guarded: Production, tmp_path: Path) -> None:
    config = guarded.board("nano") / "mdi-exit.toml"
    flags = ("--config", config, "--layers", "0-8", "--log-level", "error", "--model")
    bare = run_program("edge_agent.cli", *flags, "fashion-mnist-mobilenetv2")
    assert (bare.returncode, bare.stderr.count("\n")) == (2, 1), bare.stderr
    assert "expected one that is signed" in bare.stderr
    signed = tmp_path / "signed"
    guarded.secure("sign", "fashion-mnist-mobilenetv2", "--key", guarded.folder / "model.key", "--out", signed)
    graph = next(iter(sorted(signed.glob("*.onnx"))))
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x01")
    changed = run_program("edge_agent.cli", *flags, signed)
    assert changed.returncode == 2
    assert "SHA-256" in changed.stderr
    shutil.rmtree(signed)


def test_a_bundle_is_for_its_owner_only(guarded: Production) -> None:
    """What a board is given holds no other's key, nor the authority's."""
    keys = {path: path.read_text() for path in guarded.folder.rglob("*.key")}
    for name in ("nano", "pi", "source"):
        bundle = guarded.folder / "bundles" / name
        assert sorted(path.name for path in bundle.iterdir()) == [
            "ca.crt", "mdi-exit.toml", "model.pub", "node.crt", "node.key", "password"
        ]  # fmt: skip
        inside = "".join(path.read_text() for path in bundle.iterdir())
        assert [path for path, key in keys.items() if key in inside] == [bundle / "node.key"]
    assert sorted(path.name for path in (guarded.folder / "broker").iterdir()) == [
        "acl", "broker.crt", "broker.key", "ca.crt", "mosquitto.conf", "passwords", "revoked.pem"
    ]  # fmt: skip
    assert guarded.folder.stat().st_mode & 0o077 == 0


def test_the_listeners_are_the_two_with_tls(guarded: Production) -> None:
    text = (guarded.folder / "broker" / "mosquitto.conf").read_text()
    lines = [line for line in text.splitlines() if line.startswith(("listener", "allow_anonymous", "keyfile"))]
    key = f"keyfile {guarded.folder}/broker/broker.key"
    assert lines == [
        "allow_anonymous false", f"listener {guarded.port}", key, f"listener {guarded.password_port}", key
    ]  # fmt: skip
