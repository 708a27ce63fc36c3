from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit import topics as kinds
from mdi_exit.errors import UsageError, WireError
from mdi_exit.span import LayerSpan
from mdi_exit.topics import Route, Topics, checked_name

TOPICS = Topics("lab")
NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)


@given(node=NAMES, sender=NAMES, first=st.integers(0, 99), size=st.integers(1, 99), chunk=st.integers(0, 999_999))
def test_every_topic_that_is_made_is_parsed_back(node: str, sender: str, first: int, size: int, chunk: int) -> None:
    span = LayerSpan(first, first + size)
    digest = "ab" * 32
    assert TOPICS.parse(TOPICS.layers(span, node)) == Route(kinds.LAYERS, node, span=str(span))
    assert TOPICS.parse(TOPICS.results(node)) == Route(kinds.RESULTS, node)
    assert TOPICS.parse(TOPICS.telemetry(node)) == Route(kinds.TELEMETRY, node)
    assert TOPICS.parse(TOPICS.frames(node)) == Route(kinds.FRAMES, node)
    assert TOPICS.parse(TOPICS.agents(node)) == Route(kinds.AGENTS, node)
    assert TOPICS.parse(TOPICS.links(node, sender)) == Route(kinds.LINKS, node, sender)
    assert TOPICS.parse(TOPICS.requests(node)) == Route(kinds.REQUESTS, node)
    assert TOPICS.parse(TOPICS.replies(node)) == Route(kinds.REPLIES, node)
    assert TOPICS.parse(TOPICS.control) == Route(kinds.CONTROL)
    assert TOPICS.parse(TOPICS.manifest) == Route(kinds.MANIFEST)
    route = TOPICS.parse(TOPICS.chunk(digest, "segment-4-5-head", chunk))
    assert route == Route(kinds.CHUNK, digest=digest, file="segment-4-5-head", chunk=chunk)


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "results",
        "results/",
        "results//",
        "results/a/b",
        "results/a\n",
        "results/a b",
        "results/../control",
        "results/" + "a" * 41,
        "results/näme",
        "results/+",
        "results/#",
        "results/a\x00",
        "layers/4-8",
        "layers/4/a",
        "layers/4-8-9/a",
        "layers/-1-8/a",
        "layers/٤-٨/a",
        "layers/4-" + "8" * 5000 + "/a",
        "links/a",
        "control/x",
        "control\n",
        "model/manifest/x",
        "model/" + "g" * 32 + "/file/0",
        "model/" + "ab" * 16 + "/file/-1",
        "model/" + "ab" * 16 + "/file/²",
        "model/" + "ab" * 16 + "/file/٤",
        "model/" + "ab" * 16 + "/file/1234567",
        "model/" + "ab" * 16 + "/a/b/0",
    ],
)
def test_hostile_topics_are_refused(rest: str) -> None:
    with pytest.raises(WireError) as error:
        TOPICS.parse(f"mdi/lab/{rest}")
    assert error.value.reason == "topic"


@pytest.mark.parametrize(
    "topic", ["", "mdi", "mdi/lab", "mdi/labo/control", "mdi/other/control", "x/mdi/lab/control", "$SYS/x"]
)
def test_topics_of_others_are_not_ours(topic: str) -> None:
    with pytest.raises(WireError) as error:
        TOPICS.parse(topic)
    assert error.value.reason == "deployment"


@given(st.one_of(st.text(max_size=80), st.text(alphabet="layersresultsmodelcontrol/0123-4_٤²\n", max_size=80)))
def test_any_topic_is_parsed_into_safe_fields_or_refused(rest: str) -> None:
    try:
        route = TOPICS.parse(f"mdi/lab/{rest}")
    except WireError:
        return
    for field in (route.node, route.sender, route.span, route.digest, route.file):
        assert re.fullmatch(r"[A-Za-z0-9_.-]{0,80}", field)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "+", "#", "ä", "a\n", "a" * 41])
def test_a_name_that_cannot_stand_in_a_topic_is_a_users_mistake(name: str) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        checked_name(name)
    with pytest.raises(UsageError, match="deployment"):
        Topics(name)


def test_qos_and_retain_are_as_the_table_says() -> None:
    lossy = {kind.message for kind in vars(kinds).values() if isinstance(kind, kinds.TopicKind) and kind.qos == 0}
    kept = {kind.message for kind in vars(kinds).values() if isinstance(kind, kinds.TopicKind) and kind.retain}
    assert lossy == {"Features", "Telemetry", "Link", "JSON", "Frame", "Lesson"}
    assert kept == {"Status", "Control", "Manifest", "Chunk", "on|offline"}
