"""``mdi-exit benchmark fuzz``: rows, findings, and a run that goes on where it was."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from mdi_exit.errors import UsageError
from mdi_exit.fuzzing import command
from mdi_exit.fuzzing.command import main
from mdi_exit.fuzzing.targets import TARGETS
from mdi_exit.fuzzing.worker import BATCH

CORPUS = str(Path(__file__).parent / "corpus")
SMALL = ("--targets", "topics", "--scale", "0.001", "--jobs", "1", "--corpus", CORPUS)


def rows_in(folder: Path) -> list[dict[str, object]]:
    (file,) = folder.glob("fuzz-*.json")
    rows: list[dict[str, object]] = json.loads(file.read_text())["rows"]
    return rows


@pytest.mark.slow
def test_a_small_run_counts_both_phases_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--out", str(tmp_path)]) == 0
    guided, fast = rows_in(tmp_path)
    assert (guided["phase"], fast["phase"]) == ("guided", "fast")
    assert fast["executions"] == BATCH
    assert fast["crashes"] == fast["hangs"] == fast["over_memory"] == guided["crashes"] == 0
    assert fast["traced"] == 1000
    if importlib.util.find_spec("atheris") is not None:
        assert int(str(guided["executions"])) >= 200
    assert not list(tmp_path.glob("*.partial"))
    assert "topics" in capsys.readouterr().out


@pytest.mark.slow
def test_batches_of_an_earlier_run_count_and_those_with_findings_are_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "fuzz-1.partial"
    folder.mkdir()
    nothing = {
        "accepted": 1,
        "refused": 0,
        "traced": 0,
        "seconds": 1.0,
        "slowest_s": 0,
        "most_bytes": 0,
        "resident_bytes": 0,
    }
    done = {"batch": 0, "executions": BATCH, **nothing, "found": []}
    bad = {"batch": 1, "executions": BATCH, **nothing, "found": [{"what": "crash", "why": "mended", "input": "00"}]}
    (folder / "topics.jsonl").write_text(f"{json.dumps(done)}\n{json.dumps(bad)}\n")
    guided = {**done, "executions": 10**6}
    (folder / "topics-guided.jsonl").write_text(f"{json.dumps(guided)}\n")
    assert main([*SMALL, "--executions", str(2 * BATCH), "--out", str(tmp_path)]) == 0
    rows = rows_in(tmp_path)
    assert rows[1]["executions"] == 2 * BATCH
    assert rows[1]["accepted"] == BATCH + 1
    assert rows[1]["traced"] == 1000


def test_what_is_found_is_kept_and_the_status_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"what": "hang", "why": "more than 2 s", "input": b"slow".hex()}
    row = {"batch": 0, "executions": 9, "accepted": 9, "refused": 0, "traced": 0, "seconds": 1.0, "slowest_s": 2.0}
    row |= {"most_bytes": 0, "resident_bytes": 0, "found": [found]}
    monkeypatch.setattr(command, "_worked", lambda *_: [row])
    monkeypatch.setattr(command, "_guided", lambda target, *_: command._summed(target, "guided", []))
    assert main([*SMALL, "--out", str(tmp_path)]) == 1
    assert (tmp_path / "fuzz-1.partial" / "found" / "topics-hang-0").read_bytes() == b"slow"
    assert [row["hangs"] for row in rows_in(tmp_path)] == [0, 1]
    assert "topics: hang: more than 2 s" in capsys.readouterr().out


def test_a_process_that_dies_is_a_finding_and_its_batches_are_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\ncase "$*" in *"--batches 4"*) kill -SEGV $$;; esac\necho "{\\"batch\\": 7}"\n')
    fake.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(fake))
    rows = command._worked(TARGETS["topics"], tmp_path, tmp_path, 1, [4, 7])
    assert [row["batch"] for row in rows] == [4, 7]
    assert "ended with -11 in batch 4" in rows[0]["found"][0]["why"]


@pytest.mark.parametrize("flags", [("--targets", "wires"), ("--jobs", "0"), ("--scale", "-1")])
def test_wrong_flags_are_one_plain_line(tmp_path: Path, flags: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        main([*flags, "--out", str(tmp_path)])
