"""``mdi-exit benchmark WHAT``: measure this machine or a method, print a table, write the raw rows."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from mdi_exit import __version__
from mdi_exit.config import nearest
from mdi_exit.errors import UsageError
from mdi_exit.tensors import CODECS

__all__ = ["Tool", "main", "write_rows"]

Rows = list[dict[str, Any]]
Tool = tuple[str, Callable[[Sequence[str]], int]]


@dataclass(frozen=True, slots=True)
class _Benchmark:
    """``flags`` adds those that only this one has; ``extra``: the optional dependency, and a module that comes with it."""

    about: str
    flags: Callable[[argparse.ArgumentParser], None]
    measure: Callable[[argparse.Namespace], Rows]
    extra: tuple[str, str] | None = None

    @property
    def described(self) -> str:
        return self.about if self.extra is None else f"{self.about} (needs the extra {self.extra[0]})"


def main(argv: Sequence[str], others: Mapping[str, Tool]) -> int:
    """Run the tool; returns the exit status. ``others``: benchmarks of upper floors, which read their own flags.

    Raises ``MdiExitError``.
    """
    what = argv[0] if argv else ""
    if what in others:
        return others[what][1](argv[1:])
    names = {name: benchmark.described for name, benchmark in _BENCHMARKS.items()} | {
        n: o[0] for n, o in others.items()
    }
    if what not in _BENCHMARKS:
        if what not in ("-h", "--help"):
            raise UsageError("WHAT", f"one of {', '.join(names)}{nearest(what, names)}", repr(what) if what else "none")
        lines = [f"  {name:<10} {about}" for name, about in names.items()]
        usage = "usage: mdi-exit benchmark WHAT [options]   (mdi-exit benchmark WHAT --help)"
        sys.stdout.write("\n".join((usage, "", *lines)) + "\n")
        return 0
    benchmark = _BENCHMARKS[what]
    parser = argparse.ArgumentParser(prog=f"mdi-exit benchmark {what}", description=benchmark.described)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the raw rows (JSON)")
    benchmark.flags(parser)
    args = parser.parse_args(argv[1:])
    if benchmark.extra is not None:
        extra, module = benchmark.extra
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"benchmark {what}", f"the extra {extra!r} (pip install 'mdi-exit[{extra}]')", "none")
    rows = benchmark.measure(args)
    if args.out is not None:
        write_rows(args.out, what, argv, rows)
    return 0


def write_rows(folder: Path, what: str, argv: Sequence[str], rows: Rows) -> None:
    """The raw rows of one run, named by what and when. ``argv``: what the command was told."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    path = folder / f"{what}-{now:%Y-%m-%dT%H%M%SZ}.json"
    record = {
        "command": "mdi-exit benchmark " + " ".join(argv),
        "at": now.isoformat(timespec="seconds"),
        "version": __version__,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in ("aiomqtt", "paho-mqtt", "onnxruntime", "numpy", "msgspec")},
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    sys.stdout.write(f"raw rows: {path}\n")


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def _at_least_0(text: str) -> float:
    if not (value := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return value


def _no_flags(parser: argparse.ArgumentParser) -> None:
    """Nothing but ``--out``."""


def _scale_flag(parser: argparse.ArgumentParser, of: str) -> None:
    parser.add_argument("--scale", type=_positive, default=1.0, metavar="X", help=f"times as {of} (%(default)s)")


def _data_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where Fashion-MNIST is looked for (data)")


def _message_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--window", type=_count, default=64, metavar="N", help="items under way (%(default)s)")
    _scale_flag(parser, "many messages")
    parser.add_argument(
        "--rounds", type=_count, default=3, metavar="N", help="whole rounds, in turn; medians count (%(default)s)"
    )


def _hop(args: argparse.Namespace) -> Rows:
    from mdi_exit.benchmark.hop_run import measure_hop

    return asyncio.run(measure_hop(args.window, args.scale, args.rounds))


def _tls(args: argparse.Namespace) -> Rows:
    from mdi_exit.benchmark.tls_run import measure_tls

    return asyncio.run(measure_tls(args.window, args.scale, args.rounds))


def _agent(args: argparse.Namespace) -> Rows:
    del args
    from mdi_exit.benchmark.agents import measure_agents

    return asyncio.run(measure_agents())


def _metrics(args: argparse.Namespace) -> Rows:
    from mdi_exit.benchmark.metrics_run import measure_metrics

    return asyncio.run(measure_metrics(args.window, args.scale, args.rounds))


def _clients_flags(parser: argparse.ArgumentParser) -> None:
    from mdi_exit.benchmark.clients import ClientLoad

    usual = ClientLoad()
    parser.add_argument("--clients", type=_count, default=usual.clients, metavar="N", help="how many (%(default)s)")
    parser.add_argument(
        "--load", type=_positive, default=usual.load, metavar="X", help="times the capacity (%(default)s)"
    )
    parser.add_argument("--seconds", type=_positive, default=usual.seconds, metavar="S", help="how long (%(default)s)")
    parser.add_argument(
        "--deadline", type=_at_least_0, default=usual.deadline_s, metavar="S", help="seconds; 0: none (%(default)s)"
    )


def _clients(args: argparse.Namespace) -> Rows:
    from mdi_exit.benchmark.clients import ClientLoad
    from mdi_exit.benchmark.clients_run import measure_load

    deadline_s = args.deadline or None
    load = ClientLoad(clients=args.clients, load=args.load, seconds=args.seconds, deadline_s=deadline_s)
    return asyncio.run(measure_load(load))


def _split_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="MODEL", help="artifact, by name or path")
    parser.add_argument(
        "--thresholds", type=_thresholds, default=(0.8, 0.95, 1.0), metavar="T,T", help="of exits (0.8,0.95,1)"
    )
    parser.add_argument(
        "--nodes", type=_count, default=3, metavar="N", help="agents that share the layers (%(default)s)"
    )
    parser.add_argument("--codec", default="float32", choices=CODECS, help="of features (%(default)s)")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where data sets are looked for (data)")


def _thresholds(text: str) -> tuple[float, ...]:
    found = tuple(float(part) for part in text.split(","))
    if not all(0 <= threshold <= 1 for threshold in found):
        raise argparse.ArgumentTypeError(f"expected numbers from 0 to 1, got {text}")
    return found


def _split(args: argparse.Namespace) -> Rows:
    from mdi_exit.benchmark.split import measure_split

    return measure_split(args.model, args.thresholds, args.nodes, args.codec, args.data_dir)


def _journal_flags(parser: argparse.ArgumentParser) -> None:
    from mdi_exit.benchmark.journal import JournalLoad

    usual = JournalLoad()
    parser.add_argument(
        "--folder", type=Path, default=usual.folder, metavar="DIR", help="on the disk to measure (%(default)s)"
    )
    parser.add_argument("--rounds", type=_count, default=usual.rounds, metavar="N", help="whole rounds (%(default)s)")
    _scale_flag(parser, "many items")


def _journal(args: argparse.Namespace) -> Rows:
    from mdi_exit.benchmark.journal import JournalLoad, measure_journal, show_journal

    usual = JournalLoad()
    items, asks = (max(int(count * args.scale), 100) for count in (usual.items, usual.asks))
    load = JournalLoad(args.folder, items, asks, args.rounds)
    rows = asyncio.run(measure_journal(load))
    show_journal(rows)
    return rows


def _placement(args: argparse.Namespace) -> Rows:
    from mdi_exit.benchmark.placement import placement_rows, show_placement

    rows = placement_rows(args.scale)
    show_placement(rows)
    return rows


def _retry(args: argparse.Namespace) -> Rows:
    from mdi_exit.benchmark.retry import measure_retry, show_retry

    rows = measure_retry(args.scale)
    show_retry(rows)
    return rows


def _optimum_flags(parser: argparse.ArgumentParser) -> None:
    folder = Path("benchmarks/scenarios")
    parser.add_argument("--scenarios", type=Path, default=folder, metavar="DIR", help="folder (%(default)s)")
    parser.add_argument("--match", default="", metavar="PATTERN", help="only scenarios whose names have this (all)")
    parser.add_argument("--policies", default="", metavar="NAME,...", help="only these (all)")
    _scale_flag(parser, "long runs")
    parser.add_argument("--jobs", type=_count, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s)")


def _optimum(args: argparse.Namespace) -> Rows:
    from mdi_exit.benchmark.optimum import measure_optimum

    policies = tuple(name for name in args.policies.split(",") if name)
    return measure_optimum(args.scenarios, args.scale, args.jobs, args.match, policies)


def _risk_flags(parser: argparse.ArgumentParser) -> None:
    _data_flag(parser)
    _scale_flag(parser, "many calibration sets")


def _risk(args: argparse.Namespace) -> Rows:
    from mdi_exit.benchmark.risk import measure_risk

    return measure_risk(args.out, args.data_dir, args.scale)


def _bottleneck(args: argparse.Namespace) -> Rows:
    from mdi_exit.benchmark.bottleneck_run import measure_bottleneck

    return measure_bottleneck(args.out, args.data_dir)


def _strategies_flags(parser: argparse.ArgumentParser) -> None:
    _data_flag(parser)
    parser.add_argument("--model", metavar="bert:PLACE", help="texts instead of images, on this encoder")
    parser.add_argument("--data", metavar="SPEC", help="texts: which (spam-assassin)")
    parser.add_argument("--max-length", type=_count, metavar="N", help="texts: of each, in tokens (64)")
    parser.add_argument("--seeds", type=_count, metavar="N", help="texts: how many seeds (3)")


def _strategies(args: argparse.Namespace) -> Rows:
    from mdi_exit.benchmark.strategies import text_study
    from mdi_exit.benchmark.strategies_run import measure_strategies

    if args.model is None:
        if given := [flag for flag in ("data", "max_length", "seeds") if getattr(args, flag) is not None]:
            raise UsageError("--model", f"bert:PLACE with --{given[0].replace('_', '-')}", "none")
        return measure_strategies(args.out, args.data_dir)
    seeds = tuple(range(args.seeds or 3))
    study = text_study(args.model, args.data or "spam-assassin", max_length=args.max_length or 64, seeds=seeds)
    return measure_strategies(args.out, args.data_dir, study)


def _daisy_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=_folders, required=True, metavar="DIR,DIR",
        help="what mdi-exit train-speech wrote, a folder for each seed",
    )  # fmt: skip
    parser.add_argument(
        "--unheard", type=_folders, default=(), metavar="DIR,DIR",
        help="words by voices that training has not heard (mdi-exit speak --voices others)",
    )  # fmt: skip
    parser.add_argument(
        "--snrs", type=_numbers, default=(20.0, 15.0, 10.0, 5.0, 0.0, -5.0), metavar="DB,DB",
        help="ratios of sound to noise beside clean sound (20,15,10,5,0,-5)",
    )  # fmt: skip


def _folders(text: str) -> tuple[Path, ...]:
    if not all(parts := text.split(",")):
        raise argparse.ArgumentTypeError(f"expected folders, got {text!r}")
    return tuple(map(Path, parts))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _daisy(args: argparse.Namespace) -> Rows:
    from mdi_exit.benchmark.daisy import measure_daisy

    return measure_daisy(args.model, args.snrs, args.unheard, args.out)


_TORCH: Final = ("torch", "torch")
_BENCHMARKS: Final[dict[str, _Benchmark]] = {
    "hop": _Benchmark("what the system costs a hop, beside bare relays", _message_flags, _hop),
    "tls": _Benchmark("what encryption costs a hop", _message_flags, _tls, ("secure", "cryptography")),
    "agent": _Benchmark("memory of an agent, and seconds until it is ready", _no_flags, _agent),
    "metrics": _Benchmark("what it costs to watch: scrapes, telemetry, throughput", _message_flags, _metrics),
    "clients": _Benchmark("many clients at once, at more than the capacity", _clients_flags, _clients),
    "split": _Benchmark("a model over agents against itself in one process, on its test items", _split_flags, _split),
    "journal": _Benchmark("what the source's journal costs in throughput and latency", _journal_flags, _journal),
    "placement": _Benchmark(
        "plans against the best of all", lambda parser: _scale_flag(parser, "many cases"), _placement
    ),
    "retry": _Benchmark(
        "whether retries make an overload worse, simulated", lambda parser: _scale_flag(parser, "many seeds"), _retry
    ),
    "optimum": _Benchmark(
        "how near simulated policies come to the bound", _optimum_flags, _optimum, ("offline", "scipy")
    ),
    "risk": _Benchmark("whether calibrated thresholds keep their promise", _risk_flags, _risk, ("offline", "scipy")),
    "bottleneck": _Benchmark("ResNet-50's first cut made small", _data_flag, _bottleneck, _TORCH),
    "daisy": _Benchmark("speech: where it leaves as noise grows, and what that gives", _daisy_flags, _daisy, _TORCH),
    "strategies": _Benchmark(
        "joint, distilled, frozen and JEI-DNN exits at equal cost", _strategies_flags, _strategies, _TORCH
    ),
}
