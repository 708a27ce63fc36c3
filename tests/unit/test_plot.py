"""The files of a run are told apart and drawn; what is none is told so."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.plot.command import draw_run, main
from mdi_exit.plot.files import Run, read_run
from mdi_exit.plot.items import subtitle
from mdi_exit.snapshot import Snapshot

SUMMARY = {"admitted": 40, "completed": 38, "errors": 2, "bytes_sent": {"source": 9}, "elapsed_s": 4.0, "threshold": 0.8,
           "emulated": "jetson-nano"}  # fmt: skip


def row(number: int, **changes: object) -> dict[str, object]:
    exit_number = number % 3
    made = {
        "id": f"s{number}", "label": number % 10, "label_name": "shirt", "confidence": 0.5 + number / 100,
        "exit": exit_number, "path": ["source", "a"][: 1 + exit_number % 2], "latency_s": 0.01 * (1 + number), "truth": 3,
    }  # fmt: skip
    return made | changes


def error(number: int) -> dict[str, object]:
    return {"id": f"e{number}", "error": "no answer in 6 attempts", "confidence": None, "exit": None, "path": [],
            "latency_s": 30.0}  # fmt: skip


def snapshot(number: int) -> Snapshot:
    return Snapshot(
        elapsed_s=number / 2, phase="calm", offered_per_s=20.0, admitted_per_s=19.0, completed_per_s=18.0, admitted=1,
        completed=1, errors=0, refused=0, pending=0, accuracy=0.9, threshold=0.9, source_queue=3, latency_p50_s=0.1,
        exits={1: 3},
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [row(number) for number in range(38)] + [error(1), error(2)]
    (folder / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows) + '{"id": "cut')
    (folder / "timeline.jsonl").write_text("".join(snapshot(number).to_line() for number in range(8)))
    (folder / "summary.json").write_text(json.dumps(SUMMARY, indent=1))
    (folder / "source.log").write_text("12:00:00 info    source\n")
    return folder


def size(png: Path) -> tuple[int, int]:
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG")
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


def test_a_folder_is_read_whole_and_each_file_alone(run: Path) -> None:
    found = read_run(run)
    assert (found.name, len(found.items), len(found.timeline)) == ("run", 40, 8)
    assert found.summary == SUMMARY
    assert [item.right for item in found.items[:4]] == [False, False, False, True]
    assert found.items[-1].right is None
    for name, field in (("results.jsonl", "items"), ("timeline.jsonl", "timeline"), ("summary.json", "summary")):
        alone = read_run(run / name)
        assert getattr(alone, field) == getattr(found, field)
        assert [bool(alone.items), bool(alone.timeline), bool(alone.summary)].count(True) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "at least one result or two moments"),
        ("12:00:00 info", "begins with '12:00:00 info'"),
        ("[1, 2]\n", "begins with '[1, 2]'"),
        ('{"a": 1}\n', "an object with a"),
        (b"\xff\xfe\x00", "which is not text"),
        (json.dumps(row(1)) + "\n" + '{"id": 7}\n' + json.dumps(row(2)) + "\n", "line 2: expected a result"),
        (json.dumps(SUMMARY), "a summary only"),
    ],
)
def test_files_that_are_none_are_told_so(tmp_path: Path, content: str | bytes, expected: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as told:
        main([str(file)])
    assert expected in str(told.value)
    assert not (tmp_path / "x.png").exists()


def test_places_that_are_none_are_told_so(tmp_path: Path, run: Path) -> None:
    for words, expected in (
        ([str(tmp_path / "none")], "no such file or folder"),
        ([str(tmp_path)], "a folder without results.jsonl"),
        ([], "one RUN, got none"),
        (["a", "b"], "one RUN, got a b"),
        ([str(run), "--out", "x.pdf"], "ends in .png or .svg"),
    ):
        with pytest.raises(UsageError) as told:
            main(words)
        assert expected in str(told.value)
    with pytest.raises(MdiExitError, match="could not write"):
        main([str(run), "--out", str(tmp_path / "no" / "x.png")])


def test_a_run_is_one_picture_with_its_items_above_its_course(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'plot.png'}\n"
    width, whole = size(run / "plot.png")
    assert main([str(run / "results.jsonl")]) == 0
    items_only = size(run / "results.png")
    assert main([str(run / "timeline.jsonl"), "--out", str(run / "t.png")]) == 0
    assert size(run / "t.png")[0] == items_only[0] == width >= 1000
    assert whole > max(items_only[1], size(run / "t.png")[1]) > 900


def test_a_vector_picture_has_the_texts_of_all_panels(run: Path) -> None:
    assert main([str(run), "--out", str(run / "x.svg")]) == 0
    comments = (run / "x.svg").read_text()
    for text in ("Latency by exit", "Confidence by exit", "Where items stopped", "source → a", "items/s", "exit threshold",
                 "compute emulated: jetson-nano", "2 errors, most often (2): no answer in 6 attempts"):  # fmt: skip
        assert text in comments


def test_the_bound_is_drawn_where_the_summary_has_it(run: Path) -> None:
    out = run / "plot.svg"
    draw_run(read_run(run), out)
    assert "bound" not in _texts(out)
    summary = SUMMARY | {"bound_per_s": 42.25, "efficiency": 0.9}
    draw_run(replace(read_run(run), summary=summary), out)
    texts = _texts(out)
    assert "90.0% of the bound 42.2/s" in texts
    assert "42.2/s at" in texts, "the line's name"
    draw_run(replace(read_run(run), summary=summary | {"bound_per_s": None, "efficiency": None}), out)
    assert "bound" not in _texts(out)


def test_the_frontier_and_the_run_are_drawn_where_the_summary_has_them(run: Path) -> None:
    out = run / "plot.svg"
    draw_run(read_run(run), out)
    assert "what no policy can pass" not in _texts(out)
    told = {"frontier": [[50.0, 0.8], [45.0, 0.9], [20.0, 0.95]], "rate_per_s": 42.0, "accuracy": 0.9}
    draw_run(replace(read_run(run), summary=SUMMARY | told), out)
    texts = _texts(out)
    for text in ("what no policy can pass", "this run", "42.0/s,", "accuracy, %"):
        assert text in texts
    draw_run(replace(read_run(run), summary=SUMMARY | told | {"accuracy": None}), out)
    assert "42.0/s," not in _texts(out), "nobody knows where it stands"


def _texts(svg: Path) -> str:
    """matplotlib writes every text beside its outlines, as a comment."""
    return svg.read_text()


def test_runs_without_truth_results_or_right_answers_are_drawn_too(tmp_path: Path, run: Path) -> None:
    whole = read_run(run)
    for number, items in enumerate(([error(1)], [row(1)], [{**row(2), "truth": None}], [row(1, latency_s=0.0)])):
        file = tmp_path / f"{number}.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in items))
        draw_run(read_run(file), tmp_path / f"{number}.png")
        assert size(tmp_path / f"{number}.png")[1] > 900
    assert subtitle(whole.items).startswith("40 items   ·   10.5% of 38 right")


def test_without_matplotlib_the_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"mdi-exit\[plot\]"):
        draw_run(Run("x", read_run(run).items), run / "x.png")
