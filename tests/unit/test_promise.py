"""What a model promises: the source keeps to it by default, and says so when it is told otherwise."""

from __future__ import annotations

from pathlib import Path
from random import Random

import msgspec
import pytest

from mdi_exit.errors import UsageError
from mdi_exit.events import (
    DrawInput,
    InputOffered,
    ModelKnown,
    Notice,
    OrderReceived,
    SegmentsReady,
    SetAdmission,
    StatusReceived,
    TelemetryReceived,
    Tick,
    TransportUp,
)
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact, calibration_of, rewritten
from mdi_exit.model.manifest import Calibration, Promise
from mdi_exit.orders import order_of
from mdi_exit.segments import ModelPlan
from mdi_exit.source_config import Promised, SourceConfig
from mdi_exit.source_state import SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Status, Telemetry
from mdi_exit.worker_config import WorkerConfig
from source.app import _promised
from source.config import resolve_source

PLAN = ModelPlan("ab" * 16, 9, (1, 3, 5, 6, 8), (100,) * 9)
PROMISE = Promise(max_accuracy_loss=0.01, confidence=0.95, samples=3750, observed_loss=0.007)
WORDS = "at most 1 % of items wrong by leaving early, with confidence 95 % (3,750 samples, features as float32)"
PROMISED = Promised(0.75, WORDS)


def told(state: SourceState, now: float, event: object, kind: str) -> list[str]:
    return [c.text for c in state.handle(now, event) if isinstance(c, Notice) and c.kind == kind]  # type: ignore[arg-type]


def source(*, span: str | None = None, **config: object) -> SourceState:
    state = SourceState(
        SourceConfig(run=7, promised=PROMISED, **config),  # type: ignore[arg-type]
        WorkerConfig("source", 1, LayerSpan.parse(span) if span else None),
        Random(0),
    )
    state.handle(0.0, TransportUp())
    return state


@pytest.mark.parametrize(
    ("threshold", "floor", "says"),
    [
        (0.75, 0.75, "promised from threshold 0.75 up: at most 1 % of items wrong by leaving early"),
        (0.9, 0.75, "promised from threshold 0.75 up"),
        (0.9, 0.4, "promised only down to threshold 0.75, though the floor is 0.4"),
        (0.7, 0.4, "not promised at threshold 0.7, below 0.75"),
    ],
)
def test_at_the_start_one_line_says_what_holds(threshold: float, floor: float, says: str) -> None:
    (line,) = told(source(threshold=threshold, floor=floor), 0.1, ModelKnown(PLAN), "promise")
    assert line.startswith(says)
    assert WORDS in line


def test_adaptation_stops_at_the_promise_and_names_it() -> None:
    state = source(threshold=0.8, floor=0.75, adapt="threshold", rate_per_s=50.0)
    state.handle(0.0, ModelKnown(PLAN))
    lines = told(state, 1.0, SetAdmission(threshold=0.75), "floor")
    assert lines == [f"the threshold is at its floor 0.75: further load is refused, to keep what is promised ({WORDS})"]


def test_adaptation_that_begins_at_the_promise_under_load_says_so_once() -> None:
    state = source(span="0-3", threshold=0.75, floor=0.75, rate_per_s=100.0, period_s=0.5)
    state.handle(0.0, ModelKnown(PLAN))
    span = LayerSpan.parse("0-3")
    keys = {PLAN.segment(layer, span, early_exits=early): 0.01 for layer in span for early in (True, False)}
    state.handle(0.0, SegmentsReady(keys))
    state.handle(0.0, StatusReceived(Status("a", 50, True, "agent", "ready", (4, 9), tuple(range(4, 9)), 100)))
    lines: list[str] = []
    for step in range(1, 200):  # nothing is ever run, so the queue is full
        now = step / 20
        commands = state.handle(now, TelemetryReceived(Telemetry(7, 50, "a", 0, 0, 0.0)))
        commands += state.handle(now, Tick())
        if step == 40:
            commands += state.handle(now, OrderReceived(order_of("desk", 1, ["adapt", "threshold"])))
        for command in commands:  # which grow
            if isinstance(command, DrawInput):
                commands += state.handle(now, InputOffered(f"{now} {len(commands)}", None, 100))
            elif isinstance(command, Notice) and command.kind == "floor":
                lines.append(command.text)
        assert state.threshold == 0.75
    assert state.threshold == 0.75
    assert len(lines) == 1
    assert "at its floor 0.75: further load is refused, to keep what is promised" in lines[0]


def test_a_floor_below_the_promise_is_not_said_to_keep_it() -> None:
    state = source(threshold=0.8, floor=0.4, adapt="threshold", rate_per_s=50.0)
    state.handle(0.0, ModelKnown(PLAN))
    assert told(state, 1.0, SetAdmission(threshold=0.4), "floor") == [
        "the threshold is at its floor 0.4: further load is refused"
    ]


def test_going_below_takes_force_and_is_said_and_coming_back_too() -> None:
    state = source(threshold=0.8, floor=0.75)
    state.handle(0.0, ModelKnown(PLAN))
    state.handle(0.0, StatusReceived(Status("a", 50, True, "agent", "ready", (0, 9), tuple(range(9)), 100)))
    state.handle(0.1, Tick())

    def order(number: int, words: str, kind: str) -> list[str]:
        return told(state, 1.0 + number, OrderReceived(order_of("desk", number, words.split())), kind)

    (refused,) = order(1, "threshold 0.6", "order")
    assert "expected at least the floor 0.75, or force" in refused
    (below,) = order(2, "threshold 0.6 force", "promise")
    assert below == f"the threshold goes below 0.75: no longer promised: {WORDS}"
    assert order(3, "threshold 0.5 force", "promise") == []
    (again,) = order(4, "threshold 0.75", "promise")
    assert again == f"the threshold is 0.75 or more: promised again: {WORDS}"
    assert state.floor == 0.75


# --- defaults


def with_calibration(folder: Path, calibration: Calibration) -> str:
    shipped = Artifact.open(DEFAULT_MODEL)
    own = 0.7 if calibration.threshold is not None else None
    exits = tuple(
        msgspec.structs.replace(spec, threshold=own if spec is not shipped.manifest.exits[-1] else None)
        for spec in shipped.manifest.exits
    )
    manifest = msgspec.structs.replace(shipped.manifest, exits=exits, calibration=calibration)
    return str(rewritten(shipped, manifest, folder / "model").folder)


def resolved(model: str, *flags: str) -> tuple[tuple[float, float], tuple[str, str]]:
    found = resolve_source(["--input", "shipped", "--model", model, *flags], {})
    settings, origins = found.settings, found.origins
    values = (settings.exit_threshold, settings.min_threshold)
    return values, (origins["exit_threshold"], origins["min_threshold"])


def test_thresholds_come_from_the_promise_and_say_so(tmp_path: Path) -> None:
    model = with_calibration(tmp_path, Calibration(threshold=0.75, promise=PROMISE))
    assert resolved(model) == ((0.75, 0.75), (f"model {model}: promised",) * 2)
    assert resolved(model, "--adapt", "threshold")[0] == (0.75, 0.75)
    values, origins = resolved(model, "--exit-threshold", "0.9", "--min-threshold", "0.3")
    assert values == (0.9, 0.3)
    assert origins == ("flag --exit-threshold", "flag --min-threshold")


def test_to_adapt_below_the_promise_takes_a_word_of_its_own(tmp_path: Path) -> None:
    model = with_calibration(tmp_path, Calibration(threshold=0.75, promise=PROMISE))
    with pytest.raises(UsageError, match=r"--min-threshold: expected at most --exit-threshold 0.6, got 0.75"):
        resolved(model, "--adapt", "threshold", "--exit-threshold", "0.6")
    assert resolved(model, "--exit-threshold", "0.6")[0] == (0.6, 0.75)


@pytest.mark.parametrize(("at", "least"), [(0.9, 0.5), (0.3, 0.3)])
def test_a_threshold_for_a_cost_is_a_start_and_no_floor(tmp_path: Path, at: float, least: float) -> None:
    model = with_calibration(tmp_path, Calibration(threshold=at, target_macs=2e6, mean_macs=1.9e6))
    assert resolved(model) == ((at, least), (f"model {model}: calibrated", "default"))


def test_without_a_calibration_all_is_as_before(tmp_path: Path) -> None:
    assert resolved(DEFAULT_MODEL) == ((0.8, 0.5), ("default", "default"))
    assert resolved(str(tmp_path)) == ((0.8, 0.5), ("default", "default"))  # which is said when it is opened
    assert calibration_of(tmp_path) is None


def test_check_shows_where_the_threshold_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = with_calibration(tmp_path, Calibration(threshold=0.75, promise=PROMISE))
    with pytest.raises(SystemExit):
        resolve_source(["--input", "shipped", "--model", model, "--check"], {})
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert ["exit_threshold", "0.75", f"model {model}: promised"] in rows


def test_another_codec_than_the_promise_was_found_with_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    calibration = Calibration(threshold=0.75, promise=PROMISE)
    assert _promised(calibration, "float32") == PROMISED
    assert not caplog.messages
    assert _promised(calibration, "int8") == PROMISED
    assert "--codec int8: what the model promises was found with float32" in caplog.messages
    assert _promised(Calibration(threshold=0.75, mean_macs=1.0), "int8") is None
