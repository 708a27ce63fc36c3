"""Orders to real processes: obeyed, refused, audited, remembered for those that join later."""

from __future__ import annotations

import subprocess

import pytest
from live import Listener, System, run_program, until

from mdi_exit.topics import Topics
from mdi_exit.wire import Control, Order, Status, decode, encode

pytestmark = pytest.mark.broker


def control(system: System, *words: str) -> subprocess.CompletedProcess[str]:
    where = ("--broker", system.url, "--deployment", system.deployment, "--client", "desk")
    return run_program("mdi_exit.cli", "control", *where, *words)


def statuses(listener: Listener, node: str) -> list[str]:
    messages = [decode(payload)[0] for payload in listener.on(Topics("test").agents(node))]
    return [message.state for message in messages if isinstance(message, Status)]


def controls(listener: Listener) -> list[Control]:
    messages = [decode(payload)[0] for payload in listener.on(Topics("test").control)]
    return [message for message in messages if isinstance(message, Control)]


def test_orders_are_obeyed_by_those_whom_they_concern(system: System) -> None:
    agents = [system.agent(name, "4-8") for name in ("a", "b")]
    source = system.source("--layers", "0-3", "--rate", "60/s", "--exit-threshold", "0.9", "--duration", "120s")
    source.until_results(20)
    with Listener(system.url) as listener:
        done = control(system, "drain", "a")
        assert (done.returncode, done.stdout, done.stderr) == (0, "desk: drain a\n", "")
        until(lambda: statuses(listener, "a")[-1] == "drained", lambda: str(statuses(listener, "a")))
        agents[0].until_says("taking nothing until undrained")
        agents[1].until_says("desk: drain a")
        at = len(source.rows)
        source.until_results(at + 60)
        # What was under way when it was drained is over after a few results.
        assert not [row for row in source.rows[at + 20 :] if "a" in row["path"]]
        assert [row for row in source.rows[at + 20 :] if "b" in row["path"]]

        done = control(system, "threshold", "0.2")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "desk: threshold 0.2 refused: expected at least the floor 0.5, or force, got 0.2\n"
        assert control(system, "threshold", "1.2").returncode == 2, "told without asking anybody"
        assert control(system, "--deployment", "other", "--timeout", "500ms", "pause").returncode == 1
        assert controls(listener)[-1].threshold == 0.9
        assert control(system, "threshold", "0.6").returncode == 0
        assert controls(listener)[-1].threshold == 0.6
        source.until_says("desk: threshold 0.2 refused")

        assert control(system, "pause").returncode == 0
        assert controls(listener)[-1].paused
        table = control(system, "status")
        assert table.returncode == 0
        assert "paused" in table.stdout
        assert "drained" in table.stdout
        before = len(source.rows)
        assert control(system, "undrain", "a").returncode == 0
        agents[0].until_says("ready: layers 4-8", times=2)
        assert len(source.rows) == before, "nothing is admitted while paused"
        assert control(system, "resume").returncode == 0
        source.until_results(before + 20)


def test_what_was_ordered_for_all_holds_for_an_agent_that_joins_later_and_no_order_is_obeyed_twice(
    system: System,
) -> None:
    system.agent("a", "4-8")
    source = system.source("--layers", "0-3", "--rate", "30/s", "--duration", "120s")
    source.until_results(5)
    assert control(system, "log-level", "debug").returncode == 0
    assert control(system, "policy", "offloading", "never").returncode == 0
    late = system.agent("late", "4-8")
    late.until_says("log level debug from now on, as ordered")
    late.until_says("ready: layers 4-8")
    assert control(system, "drain", "a").returncode == 0
    late.until_says("debug   a is drained")
    topics = Topics("test")
    with Listener(system.url) as listener:
        first, second = Order("rogue", 1, "threshold", "0.7"), Order("rogue", 2, "threshold", "0.6")
        for order in (first, second, first):
            listener.publish(topics.commands("rogue"), encode(order))
        source.until_says("rogue: order number 1 came again: not obeyed twice")
        assert controls(listener)[-1].threshold == 0.6
        assert controls(listener)[-1].offloading == "never"
        listener.publish(topics.commands("other"), encode(Order("rogue", 3, "pause")))
        listener.publish(topics.commands("rogue"), encode(Order("rogue", 4, "drain", "", "later")), retain=True)
        source.until_says("bad message on mdi/test/commands/other")
        source.until_says("rogue: drain later refused: expected a node that is there (a, late)")
        later = system.agent("later", "4-8")
        later.until_says("rogue: drain later refused: expected an order of now")
        later.until_says("ready: layers 4-8")
        assert not controls(listener)[-1].paused


def test_without_a_broker_it_could_not_start() -> None:
    done = run_program("mdi_exit.cli", "control", "--broker", "mqtt://127.0.0.1:9", "--timeout", "300ms", "pause")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert "expected a connection to mqtt://127.0.0.1:9" in done.stderr


def test_the_view_is_printed_once_where_there_is_no_terminal(system: System) -> None:
    where = ("--broker", system.url, "--deployment", "test", "--timeout", "500ms")
    nobody = run_program("mdi_exit.cli", "top", *where)
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr == "mdi-exit top: error: no source in deployment test yet\n"
    system.agent("a", "4-8")
    system.source("--layers", "0-3", "--rate", "30/s", "--duration", "120s").until_results(20)
    shown = run_program("mdi_exit.cli", "top", *where)
    assert shown.returncode == 0, shown.stderr
    for part in ("test · adapts: none · ", "where items stopped", "flows", "threshold 0.80 (floor 0.50)"):
        assert part in shown.stdout
    assert [line.split()[:3] for line in shown.stdout.splitlines() if line.startswith("a ")] == [["a", "ready", "4-8"]]
    (flow,) = [line.split() for line in shown.stdout.splitlines() if line.split()[:2] == ["source", "a"]]
    assert float(flow[2]) > 0, "a rate needs two full reports"
