"""Tables of a TOML file, read key by key: every mistake is one line that says where, what was expected and what was got."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from mdi_exit.config import nearest, read_toml
from mdi_exit.errors import UsageError

__all__ = ["Table", "open_table"]

T = TypeVar("T")
D = TypeVar("D")


@dataclass(slots=True)
class Table:
    """``place``: what an error line names. ``done`` refuses the keys that nothing has asked for."""

    content: Mapping[str, Any]
    place: str
    asked: set[str] = field(default_factory=set)

    @overload
    def get(self, key: str, parse: Callable[[str], T]) -> T | None: ...
    @overload
    def get(self, key: str, parse: Callable[[str], T], default: D) -> T | D: ...
    def get(self, key: str, parse: Callable[[str], Any], default: Any = None) -> Any:
        """A value read as text, as a flag's would be."""
        self.asked.add(key)
        content = self.content.get(key)
        return default if content is None else self._parsed(content, parse, f"{self.place} {key}")

    def needed(self, key: str, parse: Callable[[str], T]) -> T:
        if key not in self.content:
            raise UsageError(self.place, f"a key {key}", "none")
        return self.get(key, parse)  # type: ignore[return-value] # the key is there

    @overload
    def all(self, key: str, parse: Callable[[str], T]) -> tuple[T, ...] | None: ...
    @overload
    def all(self, key: str, parse: Callable[[str], T], default: D) -> tuple[T, ...] | D: ...
    def all(self, key: str, parse: Callable[[str], Any], default: Any = None) -> Any:
        """A list of values."""
        self.asked.add(key)
        content = self.content.get(key)
        if content is None:
            return default
        if not isinstance(content, list):
            raise UsageError(f"{self.place} {key}", "a list", repr(content))
        return tuple(self._parsed(entry, parse, f"{self.place} {key}") for entry in content)

    def table(self, key: str) -> Table:
        """A table within; empty if it is not there."""
        self.asked.add(key)
        return self._table(self.content.get(key, {}), self._below(f"[{key}]"))

    def rows(self, key: str) -> list[Table]:
        self.asked.add(key)
        rows = self.content.get(key, [])
        if not isinstance(rows, list):
            raise UsageError(self.place, f"tables [[{key}]]", f"{key} = {rows!r}")
        return [self._table(row, self._below(f"[[{key}]] number {number}")) for number, row in enumerate(rows, start=1)]

    def done(self) -> None:
        for key in self.content:
            if key not in self.asked:
                raise UsageError(
                    self.place, "the keys " + ", ".join(sorted(self.asked)), key + nearest(key, self.asked)
                )

    def wrong(self, key: str, expected: str, got: object) -> UsageError:
        return UsageError(f"{self.place} {key}", expected, got)

    def at_most_one(self, keys: Sequence[str]) -> None:
        given = [key for key in keys if key in self.content]
        if len(given) > 1:
            raise UsageError(self.place, "one of " + ", ".join(keys), " and ".join(given))

    def _below(self, name: str) -> str:
        return f"{self.place} {name}"

    @staticmethod
    def _table(content: Any, place: str) -> Table:
        if not isinstance(content, dict):
            raise UsageError(place, "a table", f"a TOML {type(content).__name__}")
        return Table(content, place)

    @staticmethod
    def _parsed(content: Any, parse: Callable[[str], Any], place: str) -> Any:
        if isinstance(content, bool):
            content = "yes" if content else "no"
        if not isinstance(content, str | int | float):
            raise UsageError(place, "text or a number", f"a TOML {type(content).__name__}")
        try:
            return parse(str(content))
        except UsageError as error:
            raise UsageError(place, error.expected, error.got) from None


def open_table(path: Path, what: str) -> Table:
    """The whole document. ``what``: the flag or key that named the file."""
    return Table(read_toml(path, what), str(path))
