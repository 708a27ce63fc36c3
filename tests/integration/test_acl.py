"""broker/acl on a real Mosquitto: what is delivered, since a refusal is never told.

The broker runs the configuration of docker-compose.yml with the credentials that its service ``init`` makes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from live import Program, System, environment, run_program
from rights import (
    DEPLOYMENT,
    INBOXES,
    LESSONS,
    LINKS,
    ORDERS,
    RESULTS,
    STATUSES,
    TELEMETRY,
    TOPICS,
    WATCHED,
    Rights,
    heard_by_each,
    said_by_each,
)

from broker.credentials import HEALTH, hashed, make, show
from broker.embedded import find_mosquitto
from mdi_exit import topics
from mdi_exit.client import Client
from mdi_exit.data import shipped
from mdi_exit.transport.mqtt import MqttTransport

ROOT = Path(__file__).parents[2]
ACL = ROOT / "broker" / "acl"

TESTER = "tester"  # who may all, and is known to this test's broker only

# One user for all programs of a role, in all deployments.
SEEN = WATCHED | {"another deployment"}
USERS = {
    "source": Rights(
        DEPLOYMENT | {"another deployment", "discovery"}, DEPLOYMENT | {"another deployment", "discovery"}
    ),
    "agent": Rights(
        {
            *INBOXES,
            *TELEMETRY,
            *STATUSES,
            *LINKS,
            *LESSONS,
            *ORDERS,
            "another deployment",
            "control",
            "manifest",
            "chunk",
        },
        {*INBOXES, *RESULTS, *TELEMETRY, *STATUSES, *LINKS, *LESSONS, "another deployment"},
    ),
    "client": Rights({"reply", "control"}, {"request"}),
    "observer": Rights(SEEN, set()),
    "operator": Rights({*SEEN, *ORDERS, "reply"}, {*ORDERS, "request"}),
    "gateway": Rights({*SEEN, "reply"}, {"request"}),
    "homeassistant": Rights({"home", "discovery"}, {"discovery"}),
    HEALTH: Rights(set(), set()),
}


class Guarded:
    """A running broker with users, and how to sign in."""

    def __init__(self, broker: Any, credentials: Path) -> None:
        self.url, self.credentials = broker.url, credentials

    @contextlib.asynccontextmanager
    async def signed_in(self, user: str, handler: Any, password: str | None = None) -> AsyncIterator[MqttTransport]:
        if password is None:
            password = TESTER if user == TESTER else show(self.credentials, user)
        transport = MqttTransport(
            self.url, client_id=f"test-{user}-{id(handler)}", handler=handler, username=user, password=password
        )
        async with transport:
            await handler.until(lambda: handler.connects or handler.reasons)
            yield transport


def _append(file: Path, text: str) -> None:
    file.chmod(0o600)
    file.write_text(file.read_text() + text)


@pytest.fixture
def guarded(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Guarded]:
    if find_mosquitto() is None:
        pytest.skip("needs mosquitto on PATH")
    mosquitto = request.getfixturevalue("mosquitto")  # stopped, and started again with users
    mosquitto.stop()
    credentials = tmp_path / "credentials"
    make(credentials, ACL)
    _append(credentials / "broker" / "acl", f"\nuser {TESTER}\ntopic readwrite #\n")
    _append(credentials / "broker" / "password_file", f"{TESTER}:{hashed(TESTER, b'0' * 12)}\n")
    for path in credentials.rglob("*"):
        os.chown(path, os.geteuid(), os.getegid())  # this broker runs as whoever runs the test
    text = (ROOT / "broker" / "mosquitto.compose.conf").read_text()
    text = text.replace("listener 1883 0.0.0.0", f"listener {mosquitto.port} 127.0.0.1")
    text = text.replace("/credentials/", f"{credentials}/").replace("/mosquitto/data/", f"{tmp_path}/")
    mosquitto.config = text + ("user root\n" if os.geteuid() == 0 else "")
    mosquitto.start()
    return Guarded(mosquitto, credentials)


def test_there_is_a_row_for_every_user_and_topic() -> None:
    users = set(re.findall(r"^user (\w+)$", ACL.read_text(), re.MULTILINE))
    assert users == set(USERS)
    kinds = [kind for kind in vars(topics).values() if isinstance(kind, topics.TopicKind)]
    first = {TOPICS[name].split("/")[2] for name in DEPLOYMENT}
    assert {kind.template.split("/")[0] for kind in kinds} <= first, "a topic that no rule has been thought of for"


async def test_each_user_is_told_what_its_rules_let_it_hear_and_nothing_else(guarded: Guarded, recorder: Any) -> None:
    await heard_by_each(USERS, TESTER, guarded.signed_in, recorder)


async def test_what_a_user_may_not_say_reaches_nobody(guarded: Guarded, recorder: Any) -> None:
    await said_by_each(USERS, TESTER, guarded.signed_in, recorder)


async def test_who_does_not_know_the_password_stays_outside(guarded: Guarded, recorder: Any) -> None:
    another = show(guarded.credentials, "source")
    for user, password in (("agent", "agent"), ("agent", ""), ("admin", "admin"), ("agent", another)):
        ear = recorder()
        async with guarded.signed_in(user, ear, password):
            assert (ear.connects, bool(ear.reasons)) == (0, True), user


def test_the_health_check_signs_in_with_its_file(guarded: Guarded) -> None:
    tool = shutil.which("mosquitto_sub")
    if tool is None:
        pytest.skip("needs mosquitto_sub")
    port = guarded.url.rsplit(":", 1)[1]
    command = [tool, "-p", port, "-t", "$SYS/broker/version", "-C", "1", "-W", "5"]
    with_file = environment() | {"XDG_CONFIG_HOME": str(guarded.credentials / "broker")}
    done = subprocess.run(command, capture_output=True, text=True, env=with_file, timeout=20)
    assert done.returncode == 0
    assert done.stdout.startswith("mosquitto version")
    without = environment() | {"XDG_CONFIG_HOME": str(guarded.credentials), "HOME": "/nonexistent"}
    assert subprocess.run(command, capture_output=True, env=without, timeout=20).returncode != 0


def test_a_source_and_agents_work_with_the_passwords_of_their_roles(guarded: Guarded, tmp_path: Path) -> None:
    agents = []
    for name, span in (("front", "0-4"), ("back", "3-8")):
        flags = ["--layers", span, "--name", name, "--broker", guarded.url, "--username", "agent"]
        flags += ["--password-file", str(guarded.credentials / "agent" / "password")]
        command = [sys.executable, "-m", "edge_agent.cli", *flags]
        agents.append(subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL))
    try:
        done = run_program(
            "source.cli", "--input", "shipped:40", "--broker", guarded.url, "--username", "source", "--exit-threshold", 1,
            "--password-file", guarded.credentials / "source" / "password", "--summary", tmp_path / "summary.json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert (summary["completed"], summary["errors"]) == (40, 0), summary
    finally:
        for agent in agents:
            agent.kill()
            agent.wait(10)


@pytest.fixture
def standing(guarded: Guarded, tmp_path: Path) -> Iterator[Program]:
    """A source with all layers that does not end."""
    folder = tmp_path / "nodes"
    folder.mkdir()
    system = System(guarded.url, folder)
    secret = str(guarded.credentials / "source" / "password")
    flags = ("--layers", "0-8", "--rate", "5/s", "--repeat", "--username", "source", "--password-file", secret)
    source = system.source(*flags)
    source.until_says("all layers are held")
    yield source
    system.close()


async def test_a_client_is_answered(guarded: Guarded, standing: Program) -> None:
    password = show(guarded.credentials, "client")
    images = shipped()
    async with Client(guarded.url, deployment="test", username="client", password=password) as client:
        answer = await client.infer(images.images_NHWC[0], deadline_s=20)
    assert answer.name == images.classes[int(images.labels_N[0])]


def test_an_operator_is_obeyed_and_an_observer_only_sees(guarded: Guarded, standing: Program, tmp_path: Path) -> None:
    def control(user: str, *order: str) -> int:
        secret = tmp_path / user
        secret.write_text(show(guarded.credentials, user))
        who = ("--broker", guarded.url, "--deployment", "test", "--username", user, "--password-file", secret)
        return run_program("mdi_exit.cli", "control", *who, "--timeout", "2s", *order).returncode

    assert control("observer", "status") == 0
    assert control("observer", "threshold", "0.65") != 0
    assert standing.metric("mdi_exit_threshold{") == 0.8
    assert control("operator", "threshold", "0.65") == 0
    assert standing.metric("mdi_exit_threshold{") == 0.65
