from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest

from mdi_exit.logs import OURS, Throttle, configure


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    ours = {name: logging.getLogger(name).level for name in OURS}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, its_level in ours.items():
        logging.getLogger(name).setLevel(its_level)


def test_plain_lines_have_time_level_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "plain")
    logging.getLogger("mdi_exit.test").info("agent %s joined", "pi")
    logging.getLogger("mdi_exit.test").debug("not this")
    logging.getLogger("library").info("nor this")
    logging.getLogger("library").warning("but this")
    written = capsys.readouterr()
    assert written.out == ""
    first, second = written.err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d info    agent pi joined", first)
    assert second.endswith("warning but this")


def test_text_from_a_peer_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "plain")
    logging.getLogger("source").info("sender %s", "x\n12:00:00 error   forged\x1b[2J")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_traceback_is_for_debugging_only(capsys: pytest.CaptureFixture[str]) -> None:
    for level in ("info", "debug"):
        configure(level, "plain")
        try:
            raise ValueError("odd")
        except ValueError:
            logging.getLogger("mdi_exit").exception("failed")
        shown = capsys.readouterr().err
        assert "ValueError: odd" in shown
        assert ("Traceback" in shown) == (level == "debug")


def test_json_lines_carry_extra_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure("warning", "json")
    logging.getLogger("edge_agent").info("not this")
    logging.getLogger("edge_agent").warning("bad\nmessage", extra={"sender": "pi", "count": 3})
    row = json.loads(capsys.readouterr().err)
    assert row.pop("time").endswith("+00:00")
    assert row == {"level": "warning", "logger": "edge_agent", "text": "bad\nmessage", "sender": "pi", "count": 3}


def test_throttle_lets_one_line_through_for_each_key_and_period() -> None:
    throttle = Throttle(60)
    assert throttle.allow("pi", 0) == 0
    assert throttle.allow("pi", 1) is None
    assert throttle.allow("other", 1) == 0
    assert throttle.allow("pi", 59.9) is None
    assert throttle.allow("pi", 60) == 2
    assert throttle.allow("pi", 130) == 0


def test_throttle_remembers_a_bounded_number_of_keys() -> None:
    throttle = Throttle(60)
    for number in range(5000):
        assert throttle.allow(f"sender{number}", 0) == 0
    assert throttle.allow("sender4999", 1) is None
    assert throttle.allow("sender0", 1) == 0
