"""The source exports what the broker says of itself, for as long as it is connected to it."""

from __future__ import annotations

from typing import Any

from live import Listener, System, until

UPTIME = "mdi_exit_mosquitto_uptime_seconds{"
PROBED = "mdi_exit_mosquitto_publish_received_total{"


def test_what_the_broker_says_is_exported_and_is_no_bad_message(talkative: System, mosquitto: Any) -> None:
    source = talkative.source("--limit", "1")
    until(lambda: source.metric(UPTIME) >= 1, source.scrape)
    text = source.scrape()
    assert 'mdi_exit_mosquitto_info{deployment="test",version="mosquitto version ' in text
    until(lambda: source.metric("mdi_exit_mosquitto_clients_connected{") >= 1, source.scrape)
    before = source.metric(PROBED)
    with Listener(talkative.url, "elsewhere") as client:
        for _ in range(20):
            client.publish("elsewhere", b"anything")
    until(lambda: source.metric(PROBED) >= before + 20, source.scrape)
    assert source.bad_messages() == {}

    mosquitto.kill()
    until(lambda: "mdi_exit_mosquitto_" not in source.scrape(), source.scrape)
    mosquitto.start()
    until(lambda: 0 < source.metric(UPTIME) < 30, source.scrape)


def test_a_source_that_is_told_so_does_not_ask(talkative: System) -> None:
    source = talkative.source("--limit", "1", "--broker-stats", "none")
    other = talkative.source("--limit", "1", name="other")
    until(lambda: other.metric(UPTIME) >= 1, other.scrape)
    until(lambda: source.metric("mdi_exit_broker_connected{") == 1, source.scrape)
    assert "mdi_exit_mosquitto_" not in source.scrape()
