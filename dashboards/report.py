"""``python -m dashboards.report``: asks a Prometheus every query of the dashboards and rules, and lists what it answers.

Grafana's variables and macros are filled in as Grafana would. Nothing is drawn; that a query parses and has data is all that
this says.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dashboards.expressions import Expression, expressions, filled_in, label_values

__all__ = ["Answer", "Prometheus", "ask", "either", "main", "markdown"]

_TIMEOUT_S: Final = 30.0
_SHOWN: Final = 3
_POINTS: Final = 1000
_NOT_LIKED: Final = (400, 422)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the last number of each series, with its labels; or the values of a label; or an error."""

    expression: Expression
    query: str
    series: tuple[tuple[str, float], ...] = ()
    words: tuple[str, ...] = ()
    error: str = ""

    @property
    def has_data(self) -> bool:
        return bool(self.series or self.words)

    def shown(self) -> str:
        """In one cell of a table."""
        if self.error:
            return f"**error**: {self.error}"
        if not self.has_data:
            return "(none)"
        cells = list(self.words[:_SHOWN]) or [
            f"{value:.4g}{f' {labels}' if labels else ''}" for labels, value in self.series[:_SHOWN]
        ]
        more = len(self.words or self.series) - len(cells)
        return "; ".join(cells) + (f"; {more} more" if more else "")


class Prometheus:
    """The HTTP interface of a server. Every call raises ``OSError`` if it does not answer, and ``ValueError`` with its words
    if it does not like the question.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of ``/api/v1``."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - http, to where the user says
                raw = answer.read()
        except urllib.error.HTTPError as error:
            if error.code not in _NOT_LIKED:
                raise OSError(f"{error.code} {error.reason}") from None
            raw = error.read()
        try:
            said = json.loads(raw)
        except json.JSONDecodeError:
            raise OSError("expected Prometheus, got an answer that is not JSON") from None
        if said.get("status") != "success":
            raise ValueError(str(said.get("error")))
        return said["data"]

    def now(self, query: str) -> list[tuple[str, float]]:
        """The value of each series now."""
        return _numbers((row["metric"], [row["value"]]) for row in self.get("query", query=query)["result"])

    def course(self, query: str, start_s: float, end_s: float, step_s: float) -> list[tuple[str, float]]:
        """The last number of each series within a time."""
        step = max(step_s, (end_s - start_s) / _POINTS)
        found = self.get("query_range", query=query, start=f"{start_s:.3f}", end=f"{end_s:.3f}", step=f"{step:.3f}")
        return _numbers((row["metric"], row["values"]) for row in found["result"])

    def values_of(self, selector: str, label: str) -> list[str]:
        """The values that a label has in the series of a selector."""
        found: list[str] = self.get(f"label/{label}/values", **{"match[]": selector})
        return found


def _numbers(rows: Iterable[tuple[dict[str, str], list[tuple[float, str]]]]) -> list[tuple[str, float]]:
    """The last value that is a number, of each series that has one."""
    found = []
    for metric, values in rows:
        numbers = [number for _, value in values if not math.isnan(number := float(value))]
        if numbers:
            labels = " ".join(
                f"{name}={value}" for name, value in sorted(metric.items()) if name not in _DULL and value
            )
            found.append((labels, numbers[-1]))
    return sorted(found)


_DULL: Final = frozenset(
    {"__name__", "deployment", "job", "instance", "id", "title", "subtitle", "source", "target", "version"}
)


def ask(
    server: Prometheus, deployment: str, node: str, *, since_s: float, interval_s: float, scrape_s: float
) -> list[Answer]:
    """Every query of every dashboard and rule, over the time since ``since_s`` (unix) or of now, as its panel would ask.

    ``interval_s``: the distance of points, Grafana's ``$__interval``.
    """
    rate_s = max(interval_s + scrape_s, 4 * scrape_s)
    values = {
        "deployment": deployment,
        "datasource": "prometheus",
        "__interval": f"{interval_s * 1000:.0f}ms",
        "__rate_interval": f"{rate_s * 1000:.0f}ms",
    }
    answers = []
    for expression in expressions():
        one_node = expression.place == "node"
        query = filled_in(expression.expr, {**values, "node": node if one_node else ".*"})
        answers.append(_answer(server, expression, query, since_s, interval_s))
    return answers


def _answer(server: Prometheus, expression: Expression, query: str, since_s: float, interval_s: float) -> Answer:
    try:
        if expression.kind == "variable":
            return Answer(expression, query, words=tuple(server.values_of(*label_values(query))))
        if expression.instant:
            return Answer(expression, query, tuple(server.now(query)))
        return Answer(expression, query, tuple(server.course(query, since_s, time.time(), interval_s)))
    except ValueError as error:
        return Answer(expression, query, error=str(error))


def either(first: Sequence[Answer], second: Sequence[Answer]) -> list[Answer]:
    """Of the same questions asked twice the first answers, and the second where the first have no data or these an error."""
    return [one if one.has_data and not other.error else other for one, other in zip(first, second, strict=True)]


def markdown(answers: Sequence[Answer], title: str, about: str = "", why_empty: dict[str, str] | None = None) -> str:
    """A table for each dashboard and each group of rules, ``about`` before them.

    ``why_empty``: reasons for having no data, by the name of an expression.
    """
    reasons = why_empty or {}
    with_data = sum(answer.has_data for answer in answers)
    errors = sum(bool(answer.error) for answer in answers)
    lines = [
        f"# {title}",
        "",
        *([about, ""] if about else []),
        f"{len(answers)} queries, {with_data} with data, {errors} with an error.",
        "",
    ]
    place = ""
    for answer in answers:
        expression = answer.expression
        if expression.place != place:
            place = expression.place
            lines += ["", f"## {place}", "", "| kind | panel or rule | query | unit | value |", "|---|---|---|---|---|"]
        shown = answer.shown()
        if not answer.has_data and (reason := reasons.get(expression.name)):
            shown += f": {reason}"
        unit = expression.unit.removeprefix("suffix:")
        cells = (expression.kind, expression.title, expression.legend, unit, shown)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the list; 1 if a query has an error, 3 if the server does not answer."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.report", description=__doc__)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--deployment", default="default", metavar="NAME")
    parser.add_argument("--node", default="source", metavar="NAME", help="the node whose page is asked")
    parser.add_argument("--minutes", type=float, default=30.0, help="how far back")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="default: standard output")
    given = parser.parse_args(argv)
    since_s = time.time() - 60 * given.minutes
    try:
        answers = ask(
            Prometheus(given.prometheus), given.deployment, given.node, since_s=since_s, interval_s=15.0, scrape_s=5.0
        )
    except OSError as error:
        print(f"--prometheus: expected an answer of {given.prometheus}, got: {error}", file=sys.stderr)  # noqa: T201
        return 3
    text = markdown(answers, f"What {given.prometheus} answers for deployment {given.deployment}")
    if given.out is not None:
        given.out.write_text(text)
    else:
        print(text)  # noqa: T201 - what the command is for
    return int(any(answer.error for answer in answers))


if __name__ == "__main__":
    sys.exit(main())
