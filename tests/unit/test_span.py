from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.errors import UsageError
from mdi_exit.span import LayerSpan, missing_layers

SPANS = st.tuples(st.integers(0, 200), st.integers(1, 40)).map(lambda pair: LayerSpan(pair[0], sum(pair)))


@given(SPANS)
def test_what_is_written_is_read_back(span: LayerSpan) -> None:
    assert LayerSpan.parse(str(span)) == span
    assert LayerSpan.parse(f" {span} ") == span
    assert list(span) == list(range(span.first, span.last + 1))
    assert len(span) == len(list(span))
    assert span.stop not in span


def test_one_layer_may_stand_alone() -> None:
    assert LayerSpan.parse("4") == LayerSpan.parse("4-4") == LayerSpan(4, 5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "4-",
        "-4",
        "5-4",
        "a-b",
        "4-8-9",
        "4:8",
        "1.5",
        "0x1",
        "+1-2",
        "4 - 8",
        "٤-٨",
        "²-3",
        "9" * 5000,
        "0-" + "9" * 9,
    ],
)
def test_anything_else_is_a_users_mistake_told_in_a_line(text: str) -> None:
    with pytest.raises(UsageError, match="layer span: expected FIRST-LAST"):
        LayerSpan.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_a_span_or_a_usage_error(text: str) -> None:
    try:
        span = LayerSpan.parse(text)
    except UsageError:
        return
    assert 0 <= span.first < span.stop


@pytest.mark.parametrize(("first", "stop"), [(0, 0), (3, 3), (4, 3), (-1, 2)])
def test_an_empty_or_negative_span_cannot_be_made(first: int, stop: int) -> None:
    with pytest.raises(UsageError):
        LayerSpan(first, stop)


@given(st.integers(1, 30), st.lists(SPANS, max_size=5))
def test_missing_layers_are_those_in_no_span(layer_count: int, spans: list[LayerSpan]) -> None:
    missing = missing_layers(layer_count, spans)
    assert missing == [layer for layer in range(layer_count) if all(layer not in span for span in spans)]
