"""``mdi-exit benchmark fuzz``: millions of broken inputs for everything that reads bytes from outside.

Each target is run in two phases, counted apart. *guided*: atheris looks for inputs that reach new branches of our own
modules, instrumented and therefore slower; what it keeps joins the corpus. *fast*: mutations of examples and corpus, not
instrumented. What is done is kept in a folder beside the results, so that a run that was stopped goes on where it was; where
something was found, the same inputs are run again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from mdi_exit.benchmark.command import write_rows
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.fuzzing.targets import TARGETS, Target
from mdi_exit.fuzzing.worker import BATCH, HANG_S

__all__ = ["main"]

_SILENCE_S: Final = 120.0  # a batch takes some seconds; of a compiled loop without end nothing is heard any more
_CHUNK: Final = 50_000
_CHUNK_S: Final = 900.0
_RESIDENT_MIB: Final = 1500
_AT_ONCE: Final = 25

Row = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status: 1 if anything was found. Raises ``MdiExitError``."""
    args = _arguments(argv)
    names = _names(args.targets)
    folder: Path = args.out / f"fuzz-{args.seed}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        target = TARGETS[name]
        rows.append(_guided(target, folder, args.corpus, int(args.scale * target.guided), args.seed))
        count = args.executions or int(args.scale * target.usual)
        rows.append(_fast(target, folder, args.corpus, count, args.seed, args.jobs))
    _show(rows)
    findings = [finding for row in rows for finding in row.pop("found")]
    for number, finding in enumerate(findings):
        kept = folder / "found" / f"{finding['target']}-{finding['what']}-{number}"
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(bytes.fromhex(finding["input"]))
        sys.stdout.write(f"{finding['target']}: {finding['what']}: {finding['why']}: {kept}\n")
    write_rows(args.out, "fuzz", ["fuzz", *argv], rows)
    if not findings:
        shutil.rmtree(folder)
    return int(bool(findings))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mdi-exit benchmark fuzz", description=(__doc__ or "").partition("\n")[0])
    usual = Path("benchmarks/results")
    parser.add_argument("--out", type=Path, default=usual, metavar="DIR", help="folder for the raw rows (%(default)s)")
    parser.add_argument("--targets", default="", metavar="NAMES", help=f"of {', '.join(TARGETS)} (all)")
    parser.add_argument(
        "--executions", type=int, metavar="N", help="of each target in the fast phase (its usual number)"
    )
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="times the usual numbers (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of all inputs (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s)")
    corpus = Path("tests/fuzz/corpus")
    parser.add_argument(
        "--corpus", type=Path, default=corpus, metavar="DIR", help="a folder for each target (%(default)s)"
    )
    args = parser.parse_args(argv)
    if min(args.scale, args.jobs, 1 if args.executions is None else args.executions) <= 0:
        raise UsageError("benchmark fuzz", "numbers above 0", " ".join(argv))
    return args


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")] if text else list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        raise UsageError("--targets", f"some of {', '.join(TARGETS)}", unknown[0])
    return names


# --- fast


def _fast(target: Target, folder: Path, corpus: Path, count: int, seed: int, jobs: int) -> Row:
    """At least ``count`` executions, in whole batches; those of an earlier run count."""
    kept = folder / f"{target.name}.jsonl"
    done = {row["batch"]: row for row in _clean_rows(kept)}
    wanted = [number for number in range(-(-count // BATCH)) if number not in done]
    parts = [wanted[at : at + _AT_ONCE] for at in range(0, len(wanted), _AT_ONCE)]
    with kept.open("a") as stream, ThreadPoolExecutor(jobs) as pool:
        for rows in pool.map(lambda part: _worked(target, folder, corpus, seed, part), parts):
            for row in rows:
                done[row["batch"]] = row
                stream.write(json.dumps(row) + "\n")
            stream.flush()
            _progress(target.name, len(done) * BATCH, count)
    return _summed(target, "fast", list(done.values()))


def _clean_rows(file: Path) -> list[Row]:
    """Of an earlier run, those in which nothing was found."""
    rows: list[Row] = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row for row in rows if not row["found"]]


def _worked(target: Target, folder: Path, corpus: Path, seed: int, batches: Sequence[int]) -> list[Row]:
    """The batches, by one process. One in which it dies, or is silent for too long, is a finding."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as inputs:
        for source in (corpus / target.name, folder / "corpus" / target.name):
            for file in sorted(source.glob("*")) if source.is_dir() else ():
                shutil.copy(file, inputs)
        command = [
            sys.executable,
            "-m",
            "mdi_exit.fuzzing.worker",
            target.name,
            "--seed",
            str(seed),
            "--corpus",
            inputs,
        ]
        command += ["--batches", ",".join(map(str, batches))]
        with subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                rows += map(json.loads, _lines(process))
            finally:
                process.kill()
        status = process.returncode
    if len(rows) < len(batches):
        lost = batches[len(rows)]
        why = f"the process ended with {status} in batch {lost}, or was silent for {_SILENCE_S:g} s"
        rows.append(_lost(lost, why))
        rows += _worked(target, folder, corpus, seed, batches[len(rows) :]) if batches[len(rows) :] else []
    return rows


def _lost(number: int, why: str) -> Row:
    nothing = dict.fromkeys(("executions", "accepted", "refused", "traced", "seconds", "slowest_s", "most_bytes"), 0)
    finding = {"what": "crash", "why": why, "input": ""}
    return {"batch": number, **nothing, "resident_bytes": 0, "found": [finding]}


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """What the process prints, until it ends or is silent for too long."""
    if process.stdout is None:
        raise MdiExitError("fuzz: expected a process with an output, got one without")
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(_SILENCE_S):
            line = process.stdout.readline()
            if not line:
                return
            yield line


# --- guided


def _guided(target: Target, folder: Path, corpus: Path, count: int, seed: int) -> Row:
    """``count`` executions under atheris, in pieces; what is worth keeping stays in the folder."""
    if importlib.util.find_spec("atheris") is None:
        sys.stdout.write(f"{target.name}: no guided phase: needs the extra 'dev' (atheris)\n")
        return _summed(target, "guided", [])
    kept = folder / f"{target.name}-guided.jsonl"
    done = _clean_rows(kept)
    inputs = folder / "corpus" / target.name
    _begin(target, inputs, corpus)
    with kept.open("a") as stream:
        while (so_far := sum(row["executions"] for row in done)) < count and not any(row["found"] for row in done):
            done.append(_piece(target, inputs, folder, min(_CHUNK, count - so_far), seed + len(done)))
            stream.write(json.dumps(done[-1]) + "\n")
            stream.flush()
            _progress(f"{target.name}, guided", so_far + done[-1]["executions"], count)
    return _summed(target, "guided", done)


def _begin(target: Target, inputs: Path, corpus: Path) -> None:
    if inputs.is_dir():
        return
    inputs.mkdir(parents=True)
    for number, data in enumerate(target.examples()):
        (inputs / f"example-{number}").write_bytes(data)
    for file in sorted((corpus / target.name).glob("*")) if (corpus / target.name).is_dir() else ():
        shutil.copy(file, inputs)


def _piece(target: Target, inputs: Path, folder: Path, count: int, seed: int) -> Row:
    """Some thousand executions by one process."""
    before = len(list(inputs.iterdir()))
    faults = folder / f"faults-{target.name}-"
    for file in folder.glob(f"{faults.name}*"):
        file.unlink()
    flags = [f"-runs={count}", f"-seed={seed}", f"-timeout={int(HANG_S) + 3}", f"-rss_limit_mb={_RESIDENT_MIB}"]
    flags += [f"-artifact_prefix={faults}", "-max_len=8192", "-print_final_stats=1", str(inputs)]
    begin = time.perf_counter()
    command = [sys.executable, "-m", "mdi_exit.fuzzing.guided", target.name, *flags]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", timeout=_CHUNK_S, check=False
        )
        status, said = done.returncode, done.stderr + done.stdout
    except subprocess.TimeoutExpired:
        status, said = -1, f"more than {_CHUNK_S:g} s"
    seconds = time.perf_counter() - begin
    stats = {name: int(value) for name, value in re.findall(r"stat::(\w+):\s+(\d+)", said)}
    found = [
        {"what": file.name[len(faults.name) :].partition("-")[0], "why": said[-300:], "input": file.read_bytes().hex()}
        for file in folder.glob(f"{faults.name}*")
    ]
    if status and not found:
        found = [{"what": "crash", "why": f"status {status}: {said[-300:]}", "input": ""}]
    return {
        "batch": seed,
        "executions": stats.get("number_of_executed_units", 0),
        "accepted": None,
        "refused": None,
        "traced": 0,
        "seconds": round(seconds, 3),
        "slowest_s": float(stats.get("slowest_unit_time_sec", 0)),
        "most_bytes": 0,
        "resident_bytes": stats.get("peak_rss_mb", 0) << 20,
        "kept": len(list(inputs.iterdir())) - before,
        "found": found,
    }


# --- rows


def _summed(target: Target, phase: str, rows: Sequence[Row]) -> Row:
    found = [{"target": target.name, **finding} for row in rows for finding in row["found"]]
    executions, seconds = _sum(rows, "executions"), _sum(rows, "seconds")
    return {
        "target": target.name,
        "phase": phase,
        "executions": int(executions),
        "accepted": int(_sum(rows, "accepted")) if phase == "fast" else None,
        "refused": int(_sum(rows, "refused")) if phase == "fast" else None,
        "crashes": sum(finding["what"] in ("crash", "oom") for finding in found),
        "hangs": sum(finding["what"] in ("hang", "timeout") for finding in found),
        "over_memory": sum(finding["what"] == "memory" for finding in found),
        "kept": int(_sum(rows, "kept")) if phase == "guided" else None,
        "process_seconds": round(seconds, 1),
        "per_s": round(executions / seconds) if seconds else None,
        "slowest_s": max((row["slowest_s"] for row in rows), default=0),
        "traced": int(_sum(rows, "traced")),
        "most_traced_bytes": max((row["most_bytes"] for row in rows), default=0),
        "most_resident_bytes": max((row["resident_bytes"] for row in rows), default=0),
        "found": found,
    }


def _sum(rows: Iterable[Row], key: str) -> float:
    return float(sum(row.get(key) or 0 for row in rows))


def _progress(what: str, done: int, count: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{what}: {done:,} of {count:,}\033[K")
        sys.stderr.write("\n" if done >= count else "")


def _show(rows: Sequence[Row]) -> None:
    table = Table("target", "phase", "inputs", "a second", "crashes", "hangs", "too large", "slowest", "memory")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row["target"], row["phase"], f"{row['executions']:,}", f"{row['per_s'] or 0:,}", str(row["crashes"]),
            str(row["hangs"]), str(row["over_memory"]), f"{1000 * row['slowest_s']:.0f} ms",
            f"{row['most_traced_bytes'] / 1e3:,.0f} kB" if row["traced"] else "-",
        )  # fmt: skip
    Console(width=110).print(table)
