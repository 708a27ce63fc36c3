"""``docker compose --profile demo up`` on a real engine: it comes up well, results flow, and it heals.

Run by ``make test-compose``. The images that are not the project's own are stand-ins made of Debian's packages (see
``stand_ins/Dockerfile``); Grafana's only checks its mounts and that it reaches Prometheus. The tests build on each other,
in order.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from engine import Engine, engine, until, why_not
from PIL import Image

from mdi_exit.data import shipped

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DEMO = ("agent-1", "agent-2", "agent-3")
STANDING = ("broker", "source", "gateway", "prometheus", "grafana")
PROMETHEUS, GRAFANA, GATEWAY = (f"http://127.0.0.1:{port}" for port in (9090, 3000, 8080))


@pytest.fixture(scope="module")
def stack() -> Iterator[Engine]:
    if not os.environ.get("MDI_EXIT_TEST_COMPOSE"):
        pytest.skip("takes minutes and an engine: make test-compose")
    if reason := why_not():
        pytest.skip(f"no Docker engine can be started here: {reason}")
    with engine() as one:
        with one.timed("build"):
            one.compose("--progress", "plain", "build", timeout=600)
        with one.timed("up"):
            try:
                one.compose("up", "-d", "--wait", "--wait-timeout", "180", timeout=240)
            except AssertionError as error:
                raise AssertionError(
                    f"{error}\n{one.compose('ps', '-a')}\n{one.compose('logs', '--tail', '20')}"
                ) from None
        yield one
        with one.timed("down"):
            one.compose("down", "--volumes", "--timeout", "5")
        left = one.docker("volume", "ls", "-q").split() + one.docker("ps", "-aq").split()
        assert not left, left
    print("seconds:", json.dumps(one.timings_s))  # noqa: T201 - for the log of CI


def container(stack: Engine, service: str) -> dict[str, Any]:
    """What ``docker inspect`` says of a service's container."""
    (found,) = json.loads(stack.docker("inspect", stack.compose("ps", "-aq", service).strip()))
    return dict(found)


def metric(stack: Engine, name: str) -> float:
    """The sum of a metric of the source, as the source serves it; -1 while it does not."""
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/metrics', timeout=5).read().decode())"
    text = stack.compose("exec", "-T", "source", "python", "-c", code, check=False)
    rows = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, rows)) if rows else -1.0


def more_results(stack: Engine, count: int = 30) -> None:
    """Wait for as many results more than there are."""
    name = "mdi_exit_items_completed_total"
    start = max(metric(stack, name), 0.0)
    until(lambda: metric(stack, name) >= start + count, lambda: stack.compose("logs", "--tail", "15"), 90)


def query(stack: Engine, expression: str) -> list[dict[str, Any]]:
    answer = json.loads(stack.fetch(f"{PROMETHEUS}/api/v1/query?query={expression}"))
    return list(answer["data"]["result"])


def crash(stack: Engine, service: str) -> None:
    """End a service's process as a fault would: ``docker kill`` counts as the operator's wish and is not undone."""
    os.kill(int(container(stack, service)["State"]["Pid"]), 9)


def test_everything_is_healthy_and_ran_in_order(stack: Engine) -> None:
    for service in (*DEMO, *STANDING):
        state = container(stack, service)["State"]
        assert (state["Status"], state["Health"]["Status"]) == ("running", "healthy"), service
    assert container(stack, "init")["State"]["ExitCode"] == 0
    finished = container(stack, "init")["State"]["FinishedAt"]
    assert all(container(stack, service)["State"]["StartedAt"] > finished for service in STANDING)


def test_results_flow(stack: Engine) -> None:
    more_results(stack)
    assert metric(stack, "mdi_exit_items_failed_total") == 0


def test_the_gateway_labels_an_image_and_shows_the_nodes(stack: Engine) -> None:
    images = shipped()
    file = stack.folder / "image.png"
    Image.fromarray(images.images_NHWC[0, :, :, 0]).save(file)
    answer = json.loads(stack.fetch(f"{GATEWAY}/v1/infer", file))
    assert answer["name"] == images.classes[int(images.labels_N[0])]
    nodes = {node["name"] for node in json.loads(stack.fetch(f"{GATEWAY}/v1/state"))["nodes"]}
    assert {*DEMO, "source"} <= nodes


def test_prometheus_scrapes_the_source_and_grafana_finds_its_files(stack: Engine) -> None:
    until(
        lambda: [row["value"][1] for row in query(stack, 'up{job="mdi-exit-source"}')] == ["1"],
        lambda: stack.fetch(f"{PROMETHEUS}/api/v1/targets"),
    )
    until(lambda: bool(query(stack, "mdi_exit_items_completed_total")), lambda: "no samples")
    rules = json.loads(stack.fetch(f"{PROMETHEUS}/api/v1/rules"))["data"]["groups"]
    assert sum(len(group["rules"]) for group in rules) >= 6
    assert json.loads(stack.fetch(f"{GRAFANA}/api/health"))["missing"] == []


def test_ports_are_open_to_this_machine_only(stack: Engine) -> None:
    ports = {
        service: [
            (binding["HostIp"], port) for port, bindings in container(stack, service)["NetworkSettings"]["Ports"].items()
            for binding in bindings or ()
        ]
        for service in (*DEMO, *STANDING)
    }  # fmt: skip
    assert ports == {
        "broker": [("127.0.0.1", "1883/tcp")],
        "gateway": [("127.0.0.1", "8080/tcp")],
        "prometheus": [("127.0.0.1", "9090/tcp")],
        "grafana": [("127.0.0.1", "3000/tcp")],
    } | {service: [] for service in (*DEMO, "source")}
    opened = json.loads(stack.compose("config", "--format", "json", MDI_EXIT_BIND="0.0.0.0"))  # noqa: S104
    assert [port["host_ip"] for port in opened["services"]["broker"]["ports"]] == ["0.0.0.0"]  # noqa: S104


def test_nobody_is_root_and_limits_are_in_force(stack: Engine) -> None:
    users = {service: container(stack, service)["Config"]["User"].split(":")[0] for service in (*DEMO, *STANDING)}
    assert len({users[name] for name in STANDING}) == len(STANDING)
    assert not {"", "0", "root"} & set(users.values())
    for service in (*DEMO, *STANDING):
        host = container(stack, service)["HostConfig"]
        assert min(host["Memory"], host["NanoCpus"], host["PidsLimit"]) > 0, service
        assert (host["ReadonlyRootfs"], host["CapDrop"], host["CapAdd"]) == (True, ["ALL"], None), service
        assert all(not mount["RW"] for mount in container(stack, service)["Mounts"] if mount["Type"] == "bind"), service


def test_each_password_is_read_by_its_role_only(stack: Engine) -> None:
    shown = stack.compose("run", "--rm", "-T", "init", "show", "agent").strip()
    assert re.fullmatch(r"[0-9a-f]{48}", shown)
    read = ("import sys; print(open(sys.argv[1]).read().strip())",)
    assert stack.compose("exec", "-T", "agent-1", "python", "-c", *read, "/credentials/agent/password").strip() == shown
    for service in ("agent-1", "source"):
        for foreign in ("master/operator", "grafana/password", "broker/password_file"):
            code = f"open('/credentials/{foreign}')"
            with pytest.raises(AssertionError, match="Permission denied"):
                stack.compose("exec", "-T", service, "python", "-c", code)


def test_the_broker_lets_in_those_with_a_password_and_no_others(stack: Engine) -> None:
    password = stack.compose("run", "--rm", "-T", "init", "show", "observer").strip()
    listen = (
        "mosquitto_sub",
        "-h",
        "127.0.0.1",
        "-p",
        "1883",
        "-t",
        "mdi/default/telemetry/source",
        "-C",
        "1",
        "-W",
        "15",
    )
    assert stack.inside(*listen, "-F", "%t", "-u", "observer", "-P", password).strip() == "mdi/default/telemetry/source"
    for wrong in ((), ("-u", "observer", "-P", "observer"), ("-u", "admin", "-P", "admin")):
        with pytest.raises(AssertionError, match="not authorised"):
            stack.inside(*listen, *wrong)


def test_a_board_joins_as_the_documentation_says(stack: Engine) -> None:
    stack.shell("docker compose run --rm init show agent > agent.password")
    address = ("--broker", "mqtt://127.0.0.1:1883", "--username", "agent")
    secret = ("--password-file", str(stack.project / "agent.password"))

    def states() -> dict[str, str]:
        nodes = json.loads(stack.fetch(f"{GATEWAY}/v1/state"))["nodes"]
        return {node["name"]: node["state"] for node in nodes}

    with stack.program("edge_agent.cli", "--layers", "4-8", "--name", "board", *address, *secret):
        until(lambda: states().get("board") == "ready", lambda: str(states()))


def test_credentials_can_be_put_by_and_brought_back(stack: Engine) -> None:
    keep = "docker compose run --rm -T --entrypoint tar init -C /credentials -c master > credentials.tar"
    bring_back = "docker compose run --rm -T --entrypoint tar init -C /credentials -x < credentials.tar"
    stack.shell(keep)
    before = stack.shell("docker compose run --rm init show operator")
    stack.shell("docker compose run --rm init renew operator")
    assert stack.shell("docker compose run --rm init show operator") != before
    stack.shell(bring_back)
    stack.shell("docker compose run --rm init make")
    assert stack.shell("docker compose run --rm init show operator") == before


def test_a_second_up_changes_nothing(stack: Engine) -> None:
    before = {service: container(stack, service)["Id"] for service in (*DEMO, *STANDING)}
    password = stack.compose("run", "--rm", "-T", "init", "show", "source")
    stack.compose("up", "-d", "--wait")
    assert {service: container(stack, service)["Id"] for service in (*DEMO, *STANDING)} == before
    assert stack.compose("run", "--rm", "-T", "init", "show", "source") == password


def test_a_killed_agent_is_done_without_and_comes_back(stack: Engine) -> None:
    stack.compose("kill", "agent-1")
    assert container(stack, "agent-1")["State"]["Status"] == "exited"
    more_results(stack)
    crash(stack, "agent-2")
    until(
        lambda: (
            container(stack, "agent-2")["State"].get("Health", {}).get("Status") == "healthy"
            and container(stack, "agent-2")["RestartCount"] == 1
        ),
        lambda: stack.compose("ps", "-a"),
    )
    more_results(stack)
    stack.compose("up", "-d", "--wait")
    more_results(stack)


def test_a_killed_broker_comes_back_and_results_go_on(stack: Engine) -> None:
    crash(stack, "broker")
    until(
        lambda: (
            container(stack, "broker")["State"].get("Health", {}).get("Status") == "healthy"
            and container(stack, "broker")["RestartCount"] == 1
        ),
        lambda: stack.compose("ps", "-a"),
    )
    more_results(stack)
    stack.compose("kill", "broker")
    stack.compose("up", "-d", "--wait")
    more_results(stack)


def test_nothing_restarted_that_was_not_made_to(stack: Engine) -> None:
    counts = {service: container(stack, service)["RestartCount"] for service in (*DEMO, *STANDING)}
    # Compose started agent-1 and the broker again after a kill, which begins the engine's count anew.
    assert {service: count for service, count in counts.items() if count} == {"agent-2": 1}
    assert metric(stack, "mdi_exit_items_failed_total") == 0
