"""The tables of ``mdi-exit benchmark hierarchical``, beside its raw rows."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, Final

from mdi_exit.chaos.rows import Row

__all__ = ["page_of", "told"]

_PAPER: Final = {"small_vgg16": 29, "small_resnet18": 61, "resnet18": 61}
"""Per cent less time than in the cloud, CIFAR-10 over a slow link (arXiv 2303.02384)."""
_BEFORE: Final = {"codec": "int8", "learning_rate": 0.05}
"""Of rows that do not tell: there was no choice yet."""
_ORDER: Final = ("hierarchical", "split", "cloud", "edge")
_WITHOUT_CUT: Final = ("cloud", "edge")


def told(row: Row, name: str) -> Any:
    """What a row says under ``name``, or would have said."""
    return row.get(name, _BEFORE.get(name))


def page_of(rows: Sequence[Row]) -> str:
    """Markdown; rows of runs that failed are left out."""
    ended = [row for row in rows if "failed" not in row]
    lines = [
        "# Hierarchical training",
        "",
        *_times(ended),
        "",
        *_cuts(ended),
        "",
        *_accuracies(ended),
        "",
        *_outages(ended),
    ]
    return "\n".join(lines) + "\n"


def _times(rows: Sequence[Row]) -> Iterator[str]:
    timed = [row for row in rows if row["part"] == "time"]
    yield (
        "| model | edge | link | scheme | codec | cut | B an image | steps | s | s a step | expected | s an epoch "
        "| less than cloud | paper |"
    )
    yield "|---|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in timed:
        edge = row["edges"][0]
        cloud = next((one["step_s"] for one in timed if _is_cloud_of(one, row)), None)
        less = (
            f"{100 * (1 - row['step_s'] / cloud):.0f} %" if cloud and row["scheme"] in ("hierarchical", "split") else ""
        )
        paper = f"{_PAPER[row['model']]} %" if row["scheme"] == "hierarchical" and row["model"] in _PAPER else ""
        slow = row["emulated_slow_edge"]
        expected = (row["cloud"] or {}).get("expected_step_s") if row["scheme"] == "hierarchical" else None
        images = edge["steps"] * row["images"] / _steps_an_epoch(row)
        yield (
            f"| {row['model']} | {'as the cloud' if slow == 1 else f'{slow:g} times slower (emulated)'} "
            f"| {row['link'] or 'none'} | {row['scheme']} | {_codec(row)} "
            f"| {'' if row['scheme'] in _WITHOUT_CUT else row['cut']} "
            f"| {edge.get('bytes_sent', 0) / images:.0f} | {edge['steps']} | {row['seconds']:.1f} | {row['step_s']:.3f} "
            f"| {'' if expected is None else f'{expected:.3f}'} | {row['step_s'] * _steps_an_epoch(row):.0f} | {less} "
            f"| {paper} |"
        )


def _steps_an_epoch(row: Row) -> int:
    edge = row["edges"][0]
    return int(edge.get("steps_an_epoch", row["images"] // 50))


def _is_cloud_of(one: Row, row: Row) -> bool:
    """Training in the cloud of the same model over the same link; how slow the edge is does not matter to it."""
    return one["scheme"] == "cloud" and all(one[name] == row[name] for name in ("model", "link"))


def _cuts(rows: Sequence[Row]) -> Iterator[str]:
    """Every cut as expected by the first row's measurements, and as measured."""
    asked = [row for row in rows if row["part"] == "cuts"]
    auto = next((row for row in asked if row["asked_cut"] == "auto"), None)
    if auto is None:
        return
    yield f"{auto['model']}, {auto['link']}: the runtime model chose the cut after layer {auto['cut']}."
    yield ""
    yield "| cut | edge s | link s | cloud s | expected s a step | measured s a step | |"
    yield "|---:|---:|---:|---:|---:|---:|---|"
    measured = {row["asked_cut"]: row["step_s"] for row in asked if row["asked_cut"] != "auto"}
    for one in auto["cloud"]["expected"]:
        if (step_s := measured.get(one["cut"])) is not None:
            marks = ["chosen"] * (one["cut"] == auto["cut"]) + ["least"] * (step_s == min(measured.values()))
            expected = max(one["edge_s"], one["link_s"], one["cloud_s"])
            yield (
                f"| {one['cut']} | {one['edge_s']:.3f} | {one['link_s']:.3f} | {one['cloud_s']:.3f} | {expected:.3f} "
                f"| {step_s:.3f} | {', '.join(marks)} |"
            )


def _accuracies(rows: Sequence[Row]) -> Iterator[str]:
    """Against training in the cloud seed by seed, over the seeds that both have."""
    yield "| model | scheme | codec | peak rate | cut | seeds | exit % | last exit % (each seed) | less than cloud |"
    yield "|---|---|---|---:|---:|---:|---:|---|---:|"
    groups: dict[_Group, dict[int, Row]] = {}
    for row in rows:
        if row["part"] == "accuracy":
            groups.setdefault(_group(row), {})[row["seed"]] = row
    models = list(dict.fromkeys(group[0] for group in groups))

    def place(group: _Group) -> tuple[Any, ...]:
        model, rate, scheme, codec = group
        return models.index(model), -rate, _ORDER.index(scheme), codec != _BEFORE["codec"], codec

    for group in sorted(groups, key=place):
        model, rate, scheme, codec = group
        last = {seed: 100 * row["accuracy_by_exit"][-1] for seed, row in sorted(groups[group].items())}
        other = groups.get((model, rate, "cloud", ""), {})
        drops = [100 * other[seed]["accuracy_by_exit"][-1] - share for seed, share in last.items() if seed in other]
        less = f"{statistics.mean(drops):.2f}" if drops and scheme != "cloud" else ""
        first = statistics.mean(100 * row["accuracy_by_exit"][0] for row in groups[group].values())
        each = ", ".join(f"{share:.2f}" for share in last.values())
        yield (
            f"| {model} | {scheme} | {codec} | {rate:g} | {next(iter(groups[group].values()))['cut']} | {len(last)} "
            f"| {first:.2f} | {statistics.mean(last.values()):.2f} ({each}) | {less} |"
        )


_Group = tuple[str, float, str, str]


def _group(row: Row) -> _Group:
    """What the rows that differ by seed only have in common: model, peak rate, scheme, codec."""
    return row["model"], told(row, "learning_rate"), row["scheme"], _codec(row)


def _codec(row: Row) -> str:
    """Of the features; empty where none are sent."""
    return "" if row["scheme"] in _WITHOUT_CUT else str(told(row, "codec"))


def _outages(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "| model | seed | steps without a link, of all | made up for | checkpoints: edge at step, cloud after batches "
        "| exit % | last exit % | uncut runs % |"
    )
    yield "|---|---:|---|---:|---|---:|---:|---|"
    for row in rows:
        if row["part"] == "outage":
            edge, kept = row["edges"][0], row["checkpoints"]
            uncut = [
                100 * one["accuracy_by_exit"][-1] for one in rows
                if one["part"] == "accuracy" and _group(one) == _group(row)
            ]  # fmt: skip
            first, last = (100 * row["accuracy_by_exit"][at] for at in (0, -1))
            spread = f"{min(uncut):.2f} to {max(uncut):.2f}" if uncut else ""
            yield (
                f"| {row['model']} | {row['seed']} | {edge['first_skipped']} to {edge['last_skipped']} of {edge['steps']} "
                f"| {edge['batches_skipped'] - edge['missed']} | {kept['edge_step']}, {kept['cloud_batches']} | {first:.2f} "
                f"| {last:.2f} | {spread} |"
            )
