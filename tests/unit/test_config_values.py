from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mdi_exit import values
from mdi_exit.errors import UsageError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mqtt://broker", "mqtt://broker:1883"),
        ("mqtts://broker", "mqtts://broker:8883"),
        ("mqtt://10.0.0.1:2883/", "mqtt://10.0.0.1:2883"),
        ("mqtt://[::1]:1884", "mqtt://[::1]:1884"),
    ],
)
def test_a_broker_address_is_read_and_written(text: str, shown: str) -> None:
    address = values.broker_address(text)
    assert str(address) == shown
    assert values.broker_address(shown) == address


WRONG: list[tuple[Callable[[str], Any], list[str]]] = [
    (values.broker_address, ["", "broker", "broker:1883", "http://b", "mqtt://", "mqtt://b:x", "mqtt://b:99999",
                             "mqtt://b:0", "mqtt://b/topic", "mqtt://a b", "mqtt://b?x=1", "mqtt://[::1"]),
    (values.brokers, ["", "mqtt://a,", "mqtt://a,mqtt://a:1883", "auto,mqtt://a", "mqtt://a,b"]),
    (values.host_port, ["", "9100", "host", "host:", ":9100", "host:x", "host:70000", "::1:80", "host:٣"]),
    (values.duration, ["", "0", "0s", "-1s", "5x", "inf", "nan", "1e3", "1 2s"]),
    (values.rate, ["", "0", "-1/s", "25/m", "nan", "inf", "fast"]),
    (values.fraction, ["", "-0.1", "1.01", "nan", "x"]),
    (values.positive_float, ["0", "-1", "nan", "x"]),
    (values.positive_int, ["0", "-1", "1.5", "1_000", "x", "9" * 30]),
    (values.name, ["", "a b", "a/b", "+", "#", "ä", "x" * 41]),
    (values.names, ["a,,b", "a,a", "a/b", ","]),
    (values.path, ["", " ", "a\0b"]),
    (values.switch, ["", "maybe"]),
    (values.device, ["", "abacus", "jetson-nanox0"]),
]  # fmt: skip


@pytest.mark.parametrize(("parse", "text"), [(parse, text) for parse, texts in WRONG for text in texts])
def test_wrong_text_is_refused(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


def test_brokers_are_a_list_in_the_order_of_trying() -> None:
    found = values.brokers("mqtt://a, mqtts://b")
    assert found.addresses == (values.BrokerAddress("a", 1883), values.BrokerAddress("b", 8883, tls=True))
    assert str(found) == "mqtt://a:1883,mqtts://b:8883"
    assert values.brokers("auto") == values.BROKERS_AUTO


def test_a_password_in_a_broker_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        values.broker_address("mqtt://me:hush@broker")
    assert "--password-file" in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("2s", 2), ("1m", 60), ("1.5h", 5400), ("3", 3), (".5", 0.5), (" 2 s ", 2)]
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert values.duration(text) == pytest.approx(seconds)


def test_rates_names_and_listening_addresses() -> None:
    assert values.rate("25/s") == values.rate("25") == 25
    assert values.rate("max") is None
    assert values.names("") == ()
    assert values.names("a, b") == ("a", "b")
    assert values.host_port("10.0.0.1:0") == values.HostPort("10.0.0.1", 0)
    assert str(values.host_port("[::1]:80")) == "[::1]:80"


def test_an_address_may_be_off() -> None:
    assert values.host_port_or_off("off") is None
    assert values.show_off(None) == "off"
    assert values.show_off(values.host_port_or_off("[::1]:80")) == "[::1]:80"
    with pytest.raises(UsageError, match=r"HOST:PORT such as .*, or off"):
        values.host_port_or_off("of")
