"""``mdi-exit benchmark``: what it lists, and that each benchmark has flags of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mdi_exit.benchmark.command import main
from mdi_exit.errors import UsageError


def test_lists_its_own_and_those_of_upper_floors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"], {"above": ("what is above", lambda argv: 7)}) == 0
    said = capsys.readouterr().out
    assert "  hop " in said
    assert "  above      what is above" in said


def test_benchmarks_of_upper_floors_read_their_own_flags() -> None:
    seen: list[list[str]] = []

    def above(argv: Sequence[str]) -> int:
        seen.append(list(argv))
        return 7

    assert main(["above", "--anything", "1"], {"above": ("", above)}) == 7
    assert seen == [["--anything", "1"]]


@pytest.mark.parametrize(("argv", "got"), [([], "none"), (["hopp"], "'hopp'")])
def test_what_is_unknown_is_one_plain_line(argv: list[str], got: str) -> None:
    with pytest.raises(UsageError, match=f"expected one of hop, .*got {got}"):
        main(argv, {})


@pytest.mark.parametrize(
    ("what", "its_own", "of_others"), [("hop", "--window", "--clients"), ("clients", "--clients", "--window")]
)
def test_each_has_flags_of_its_own(what: str, its_own: str, of_others: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([what, "--help"], {})
    said = capsys.readouterr().out
    assert left.value.code == 0
    assert its_own in said
    assert "--out" in said
    assert of_others not in said


@pytest.mark.parametrize(
    "argv", [["hop", "--rounds", "0"], ["clients", "--load", "0"], ["placement", "--scale", "nan"]]
)
def test_numbers_out_of_range_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv, {})
    assert left.value.code == 2
    assert f"argument {argv[1]}: expected a number" in capsys.readouterr().err


def test_rows_are_written_with_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["placement", "--scale", "0.01", "--out", str(tmp_path)], {}) == 0
    (file,) = tmp_path.glob("placement-*.json")
    assert '"command": "mdi-exit benchmark placement --scale 0.01' in file.read_text()
    assert f"raw rows: {file}" in capsys.readouterr().out
