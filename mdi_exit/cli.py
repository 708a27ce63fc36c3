"""``mdi-exit``: the tools."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Final

from mdi_exit import __version__
from mdi_exit.config import nearest, run_program
from mdi_exit.errors import UsageError

__all__ = ["main"]


def _demo(argv: Sequence[str]) -> int:
    from mdi_exit.demo.run import main as demo

    return demo(argv)


def _train(argv: Sequence[str]) -> int:
    if importlib.util.find_spec("torch") is None:
        raise UsageError("mdi-exit train", "the extra 'torch' (pip install 'mdi-exit[torch]')", "none")
    from mdi_exit.training.command import main as train

    return train(argv)


def _train_hierarchical(argv: Sequence[str]) -> int:
    if importlib.util.find_spec("torch") is None:
        raise UsageError("mdi-exit train-hierarchical", "the extra 'torch' (pip install 'mdi-exit[torch]')", "none")
    from mdi_exit.hierarchical.command import main as train_hierarchical

    return train_hierarchical(argv)


def _train_speech(argv: Sequence[str]) -> int:
    if importlib.util.find_spec("torch") is None:
        raise UsageError("mdi-exit train-speech", "the extra 'torch' (pip install 'mdi-exit[torch]')", "none")
    from mdi_exit.training.daisy.command import main as train_speech

    return train_speech(argv)


def _speak(argv: Sequence[str]) -> int:
    from mdi_exit.workbench.speak import main as speak

    return speak(argv)


def _simulate(argv: Sequence[str]) -> int:
    from mdi_exit.trial.simulate import main as simulate

    return simulate(argv)


def _plan(argv: Sequence[str]) -> int:
    from mdi_exit.trial.plan import main as plan

    return plan(argv)


def _testbed(argv: Sequence[str]) -> int:
    from mdi_exit.trial.testbed import main as testbed

    return testbed(argv)


def _benchmark(argv: Sequence[str]) -> int:
    from mdi_exit.benchmark.command import main as benchmark

    others = {
        "simulator": ("events a second of simulated time, up to 10,000 nodes", _simulator),
        "policies": ("scenarios under each policy: accuracy, rate, and the bound", _policies),
        "fuzz": ("broken inputs for everything that reads from outside", _fuzz),
        "faults": ("each fault with many seeds: items lost, repeated, wrong; time to recover", _faults),
        "soak": ("a long run in trouble: memory, descriptors and coroutines of each program", _soak),
        "hierarchical": (
            "training over a slow link: hierarchical, in the cloud, split (needs the extra torch)",
            _hierarchical,
        ),
        "kills": ("the source dies at random moments: each item has its one line of results", _kills),
    }
    return benchmark(argv, others)


def _fuzz(argv: Sequence[str]) -> int:
    from mdi_exit.fuzzing.command import main as fuzz

    return fuzz(argv)


def _simulator(argv: Sequence[str]) -> int:
    from mdi_exit.trial.speed import main as simulator

    return simulator(argv)


def _policies(argv: Sequence[str]) -> int:
    from mdi_exit.trial.policies import main as policies

    return policies(argv)


def _faults(argv: Sequence[str]) -> int:
    from mdi_exit.chaos.table import main as faults

    return faults(argv)


def _soak(argv: Sequence[str]) -> int:
    from mdi_exit.chaos.soak import main as soak

    return soak(argv)


def _kills(argv: Sequence[str]) -> int:
    from mdi_exit.chaos.kills import main as kills

    return kills(argv)


def _hierarchical(argv: Sequence[str]) -> int:
    if importlib.util.find_spec("torch") is None:
        raise UsageError("benchmark hierarchical", "the extra 'torch' (pip install 'mdi-exit[torch]')", "none")
    from mdi_exit.hierarchical.comparison import main as hierarchical

    return hierarchical(argv)


def _chaos(argv: Sequence[str]) -> int:
    from mdi_exit.chaos.command import main as chaos

    return chaos(argv)


def _serve(argv: Sequence[str]) -> int:
    from mdi_exit.gateway.command import main as serve

    return serve(argv)


def _control(argv: Sequence[str]) -> int:
    from mdi_exit.desk.control import main as control

    return control(argv)


def _top(argv: Sequence[str]) -> int:
    from mdi_exit.desk.top import main as top

    return top(argv)


def _plot(argv: Sequence[str]) -> int:
    from mdi_exit.plot.command import main as plot

    return plot(argv)


def _announce(argv: Sequence[str]) -> int:
    from mdi_exit.announce import main as announce

    return announce(argv)


def _secure(argv: Sequence[str]) -> int:
    if importlib.util.find_spec("cryptography") is None:
        raise UsageError("mdi-exit secure", "the extra 'secure' (pip install 'mdi-exit[secure]')", "none")
    from mdi_exit.secure.command import main as secure

    return secure(argv)


def _partition(argv: Sequence[str]) -> int:
    from mdi_exit.workbench.partition import main as partition

    return partition(argv)


def _calibrate(argv: Sequence[str]) -> int:
    from mdi_exit.workbench.calibrate import main as calibrate

    return calibrate(argv)


def _profile(argv: Sequence[str]) -> int:
    from mdi_exit.workbench.profile import main as profile

    return profile(argv)


def _codecs(argv: Sequence[str]) -> int:
    from mdi_exit.workbench.codecs import main as codecs

    return codecs(argv)


_TOOLS: Final[dict[str, tuple[str, Callable[[Sequence[str]], int]]]] = {
    "demo": ("the whole system on this machine, with a live view", _demo),
    "train": ("a multi-exit model from a data set to an artifact (needs the extra torch)", _train),
    "train-hierarchical": (
        "edges learn the first layers, a cloud the rest, over MQTT (needs the extra torch)",
        _train_hierarchical,
    ),
    "train-speech": (
        "a speech encoder with DAISY's branches, for keyword and voice (needs torch, offline)",
        _train_speech,
    ),
    "speak": ("spoken words by eSpeak NG, to train speech on", _speak),
    "partition": ("any torch model cut into layers, as an artifact (needs the extra torch)", _partition),
    "calibrate": ("temperatures, and thresholds that keep a promise (needs the extra offline)", _calibrate),
    "profile": ("what every exit says of every sample, for calibration and simulation", _profile),
    "codecs": ("how small the features of a model can be, and what that costs", _codecs),
    "serve": ("labels over HTTP and a live page (needs the extra web)", _serve),
    "simulate": ("a scenario in virtual time: nodes, links, load, what changes", _simulate),
    "testbed": ("the same scenario live, one process for each node, emulated devices and links", _testbed),
    "chaos": ("faults on purpose, to see that nothing is lost: in your deployment or a self-contained one", _chaos),
    "plan": ("which node should hold which layers, and what that would give", _plan),
    "top": ("a running deployment in the terminal", _top),
    "control": ("orders to a running deployment: pause, threshold, drain, ...", _control),
    "plot": ("pictures of a run, from the files that the source wrote", _plot),
    "secure": ("certificates, passwords, access list; signed models (needs the extra secure)", _secure),
    "announce": ("let agents find a broker by mDNS", _announce),
    "benchmark": ("measure this machine or a method (mdi-exit benchmark --help lists them)", _benchmark),
}


def _usage() -> str:
    lines = [f"  {name:<18} {text}" for name, (text, _) in _TOOLS.items()]
    return "\n".join(("usage: mdi-exit TOOL [options]   (mdi-exit TOOL --help)", "", *lines)) + "\n"


def _run() -> int:
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        sys.stdout.write(f"mdi-exit {__version__}\n")
        return 0
    if argv[0] not in _TOOLS:
        raise UsageError("tool", f"one of {', '.join(_TOOLS)}{nearest(argv[0], _TOOLS)}", repr(argv[0]))
    return _TOOLS[argv[0]][1](argv[1:])


def main() -> int:
    """The program; returns its exit status."""
    prog = f"mdi-exit {sys.argv[1]}" if len(sys.argv) > 1 and sys.argv[1] in _TOOLS else "mdi-exit"
    return run_program(prog, _run)


if __name__ == "__main__":
    sys.exit(main())
