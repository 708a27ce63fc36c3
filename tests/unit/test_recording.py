"""The recording and the picture of the terminal view that the documents show."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pyte

DOCS = Path(__file__).parents[2] / "docs"


def test_the_recording_is_an_asciinema_file_that_shows_the_view_and_its_orders() -> None:
    raw = (DOCS / "top.cast").read_bytes()
    assert len(raw) < 300_000
    head, *events = map(json.loads, raw.decode().splitlines())
    assert (head["version"], head["width"], head["height"]) == (2, 100, 30)
    assert all(before[0] <= after[0] for before, after in pairwise(events))
    assert {kind for _, kind, _ in events} == {"o"}
    screen = pyte.Screen(head["width"], head["height"])
    stream = pyte.Stream(screen)
    missing = ["waiting: no source", "emulated: jetson-nano", "esc closes", "y yes    n no", "operator: drain nano-",
               "drained", "operator: threshold", "choose a node"]  # fmt: skip
    for _, _, data in events:
        stream.feed(data)
        shown = "\n".join(screen.display)
        missing = [text for text in missing if text not in shown]
    assert not missing


def test_the_picture_is_an_svg_of_a_system_at_work() -> None:
    picture = ElementTree.parse(DOCS / "top.svg").getroot()  # noqa: S314 - our own file
    text = "".join(picture.itertext()).replace("\xa0", " ")
    assert picture.tag.endswith("svg")
    for part in ("where items stopped", "emulated:", "nano-3", "exit 4", "source → nano-"):
        assert part in text
