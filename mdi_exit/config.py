"""Settings: one declaration each, and where every resolved value came from.

A dataclass field made by ``setting`` gives the flag (``--exit-threshold``), the environment variable
(``MDI_EXIT_EXIT_THRESHOLD``), the TOML key (``exit_threshold``), the default and the help. A flag wins over the
environment, that over the file of ``--config``, that over the default. Every mistake is a ``UsageError``.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import select
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from mdi_exit import __version__, values
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.limits import MAX_CONFIG_BYTES, MAX_KEY_PARTS

__all__ = [
    "REQUIRED",
    "SECTIONS",
    "Derived",
    "Resolved",
    "Setting",
    "nearest",
    "parse_toml",
    "read_toml",
    "resolve",
    "run_program",
    "setting",
    "settings_of",
]

PREFIX = "MDI_EXIT_"
SECTIONS = (
    "agent",
    "announce",
    "calibrate",
    "chaos",
    "codecs",
    "control",
    "demo",
    "hierarchical",
    "partition",
    "plan",
    "plot",
    "profile",
    "secure",
    "serve",
    "simulate",
    "source",
    "testbed",
    "top",
    "train",
)
REQUIRED: Any = object()
_METADATA_KEY = "mdi_exit.setting"
_MAX_SECRET_BYTES = 64 * 1024
_KEY_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-]){_KEY_PART}(?:\.[ \t]*+{_KEY_PART}){{{MAX_KEY_PARTS}}}")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setting:
    """One declared setting; see ``setting``."""

    key: str
    default: Any
    help: str
    flag: str
    parse: Callable[[str], Any]
    metavar: str
    choices: tuple[str, ...]
    secret: bool
    derive: Callable[[Mapping[str, Any]], Any] | None
    show: Callable[[Any], str]
    bare: str | None
    also: tuple[str, ...]
    repeats: bool

    @property
    def variable(self) -> str:
        return PREFIX + self.key.upper()

    @property
    def is_switch(self) -> bool:
        return self.parse is values.switch


@dataclass(frozen=True, slots=True)
class Derived:
    """A default that comes from somewhere: ``origin`` is what ``--check`` says of it."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Resolved(Generic[T]):
    """``settings``, and by setting where its value came from; ``warnings`` are plain lines for the user.

    ``words``: what stood on the command line beside the flags.
    """

    settings: T
    origins: Mapping[str, str]
    warnings: tuple[str, ...]
    words: tuple[str, ...] = ()

    def only_word(self, prog: str, what: str) -> str:
        """The one word beside the flags. Raises ``UsageError``."""
        if len(self.words) != 1:
            raise UsageError(prog, f"one {what}", " ".join(self.words) or "none (see --help)")
        return self.words[0]


@dataclass(frozen=True, slots=True)
class _Found:
    """Text given for a setting. ``place`` is what an error line names, ``origin`` what ``--check`` prints."""

    text: str
    place: str
    origin: str


def setting(
    default: Any,
    *,
    help: str,  # noqa: A002 - the word that argparse uses
    flag: str | None = None,
    parse: Callable[[str], Any] = values.text,
    metavar: str | None = None,
    choices: Iterable[str] = (),
    secret: bool = False,
    derive: Callable[[Mapping[str, Any]], Any] | None = None,
    show: Callable[[Any], str] | None = None,
    bare: str | None = None,
    also: tuple[str, ...] = (),
    repeats: bool = False,
) -> Any:
    """Declare a field of a settings dataclass (``kw_only=True``).

    ``default`` may be ``REQUIRED``; ``derive`` computes a default from the values of those without one and of
    those declared before (a ``Derived`` says where it comes from). ``parse`` being
    ``values.switch`` makes ``--flag`` and ``--no-flag``; ``bare`` is what a flag means that no value follows;
    ``also``: other names of the flag, not listed in the help; ``repeats``: it may be given several times, and be a list in
    the file: as if with commas between. A ``secret``
    is never a flag nor in the TOML file: it comes from its variable or from the file named by ``--KEY-file``, and is never
    printed.
    """
    declared = {
        "default": default, "help": help, "flag": flag, "parse": parse, "metavar": metavar, "choices": tuple(choices),
        "secret": secret, "derive": derive, "show": show or _show, "bare": bare, "also": also, "repeats": repeats,
    }  # fmt: skip
    plain: dict[str, Any] = {} if default is REQUIRED else {"default": default}
    return dataclasses.field(metadata={_METADATA_KEY: declared}, repr=not secret, **plain)


def settings_of(cls: type[Any]) -> tuple[Setting, ...]:
    """The declared settings of a dataclass, in order; those that it inherits come last, as what is less its own."""
    inherited = {
        field.name for base in cls.__bases__ if dataclasses.is_dataclass(base) for field in dataclasses.fields(base)
    }
    found = []
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.name in inherited):
        declared = dict(field.metadata[_METADATA_KEY])
        declared["flag"] = declared["flag"] or "--" + field.name.replace("_", "-")
        declared["metavar"] = declared["metavar"] or (
            "{" + ",".join(declared["choices"]) + "}" if declared["choices"] else field.name.upper()
        )
        found.append(Setting(key=field.name, **declared))
    return tuple(found)


def resolve(
    cls: type[T],
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    prog: str,
    description: str,
    section: str,
    words: str | None = None,
    epilog: str = "",
) -> Resolved[T]:
    """The settings of ``cls`` and where each came from. ``argv`` is without the program's name.

    ``section`` is the table of the TOML file; ``words`` is what ``--help`` calls those beside the flags (None: there may be
    none) and ``epilog`` what it says at the end. Writes warnings to stderr. ``--help``, ``--version`` and ``--check``
    write to stdout and raise ``SystemExit(0)``. Raises ``UsageError``.
    """
    declared = settings_of(cls)
    parser = _Parser(
        prog=prog, description=description, epilog=epilog, allow_abbrev=False, formatter_class=_help_format
    )
    given, beside = _read_flags(parser, declared, argv, words)
    config = given.pop("config", None)
    if config is None and env.get(PREFIX + "CONFIG"):
        config = _Found(env[PREFIX + "CONFIG"], PREFIX + "CONFIG", "")
    table = _read_table(config, section, declared) if config else {}
    check = given.pop("check", None) is not None

    resolved: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for one in sorted(declared, key=lambda one: one.derive is not None):
        layers = (_from_flag(one, given), _from_environment(one, env), table.get(one.key))
        found = next((layer for layer in layers if layer is not None), None)
        resolved[one.key], origins[one.key] = _value(one, found, resolved)
    result = Resolved(cls(**resolved), origins, tuple(_unknown_variables(declared, env, prog)), beside)
    for line in result.warnings:
        sys.stderr.write(f"{prog}: warning: {line}\n")
    if check:
        sys.stdout.write(_table(declared, result, prog))
        raise SystemExit(0)
    return result


def run_program(prog: str, program: Callable[[], int | None], *, interrupted: int = 130) -> int:
    """Run ``program`` and give the exit status; an expected error becomes one plain line on stderr.

    ``interrupted``: the status when SIGINT comes before the program handles it itself.
    """
    try:
        status = program() or 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except MdiExitError as error:
        status = _complain(prog, str(error), error.exit_status)
    except KeyboardInterrupt:
        status = interrupted
    except OSError as error:
        # Whoever read our output may have gone, as with `| head`: no reason to complain.
        status = 1 if _output_lost() else _complain(prog, _reason(error) + _of_file(error), 1)
    return status or int(_output_lost())


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` for the known word most like ``word``, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _complain(prog: str, text: str, status: int) -> int:
    sys.stderr.write(f"{prog}: error: {text}\n")
    return status


def _output_lost() -> bool:
    """Whether stdout cannot be written; if so it is closed off, or Python would complain again at exit."""
    try:
        sys.stdout.flush()
        if not _reader_gone():
            return False
    except OSError:
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _reader_gone() -> bool:
    """Whether stdout is a pipe that nobody reads: an unbuffered stdout has nothing left that a flush could tell."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # captured in memory
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _of_file(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


def _show(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "(nobody)"
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- flags


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        match = re.fullmatch(r"argument ([^:]+): (?:expected )?(.*)", message)
        if match and match[2] == "one argument":
            raise UsageError(match[1], "a value", "none")
        if match and "explicit argument" in match[2]:
            raise UsageError(match[1], "no value", match[2].removeprefix("ignored explicit argument "))
        raise UsageError("command line", f"flags of {self.prog} (see --help)", message)


class _Join(argparse.Action):
    """What is given several times, with commas between."""

    def __call__(self, parser: object, namespace: argparse.Namespace, text: Any, flag: str | None = None) -> None:
        del parser, flag
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, text if before is None else f"{before},{text}")


def _read_flags(
    parser: argparse.ArgumentParser, declared: Sequence[Setting], argv: Sequence[str], words: str | None
) -> tuple[dict[str, _Found], tuple[str, ...]]:
    """By key (``KEY_file`` for a secret's file, ``config``, ``check``) what the command line gave, and the words beside."""
    prog = parser.prog
    parser.add_argument("--version", action="version", version=f"{prog} {__version__}")
    parser.add_argument("--check", action="store_const", const="yes", help="print each setting and its origin, exit")
    parser.add_argument("--config", metavar="FILE.toml", help=f"settings from a file [{PREFIX}CONFIG]")
    flags = ["--help", "--version", "--check", "--config"]
    for one in declared:
        flags.append(_add_flag(parser, one))
    if words is not None:
        flags_usage = parser.format_usage().removeprefix("usage: ").rstrip()
        parser.usage = f"{flags_usage} {words}".replace("%", "%%")
        parser.add_argument("words", nargs="*", metavar=words, help=argparse.SUPPRESS)
    spaces, unknown = parser.parse_known_intermixed_args(list(argv))
    beside = tuple(vars(spaces).pop("words", None) or ())
    if unknown:
        word = unknown[0].partition("=")[0]
        raise UsageError("command line", f"flags of {prog} (see --help)", word + nearest(word, flags))
    by_key = {key: text for key, text in vars(spaces).items() if text is not None}
    of_key = {one.key: one.flag for one in declared}
    found = {
        key: _Found(text, flag := of_key.get(key, "--" + key.replace("_", "-")), f"flag {flag}")
        for key, text in by_key.items()
    }
    return found, beside


def _help_format(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=110)


def _add_flag(parser: argparse.ArgumentParser, one: Setting) -> str:
    if one.default is REQUIRED:
        default = "required"
    elif one.derive or one.secret or (one.default is None and one.show(None) == "-"):
        default = ""
    else:
        default = f"default {one.show(one.default)}"
    notes = ", ".join(part for part in (default, one.variable) if part)
    line = f"{one.help} [{notes}]".replace("%", "%%")
    if one.secret:
        flag = f"{one.flag}-file"
        parser.add_argument(flag, dest=f"{one.key}_file", metavar="FILE", help=line)
        return flag
    if one.is_switch:
        parser.add_argument(one.flag, dest=one.key, action="store_const", const="yes", help=line)
        parser.add_argument("--no-" + one.flag[2:], dest=one.key, action="store_const", const="no",
                            help=argparse.SUPPRESS)  # fmt: skip
    else:
        optional: dict[str, Any] = {} if one.bare is None else {"nargs": "?", "const": one.bare}
        optional |= {"action": _Join} if one.repeats else {}
        parser.add_argument(one.flag, dest=one.key, metavar=one.metavar, help=line, **optional)
        for other in one.also:
            parser.add_argument(other, dest=one.key, help=argparse.SUPPRESS, **optional)
    return one.flag


def _from_flag(one: Setting, given: Mapping[str, _Found]) -> _Found | None:
    if not one.secret:
        return given.get(one.key)
    file = given.get(f"{one.key}_file")
    return file and _read_secret(file)


# --- environment


def _from_environment(one: Setting, env: Mapping[str, str]) -> _Found | None:
    """A variable that is set but empty counts as not set, as in compose files."""
    found = _Found(env[one.variable], one.variable, f"environment {one.variable}") if env.get(one.variable) else None
    file_variable = f"{one.variable}_FILE"
    if not one.secret or not env.get(file_variable):
        return found
    if found:
        raise UsageError(one.variable, f"either it or {file_variable}", "both")
    return _read_secret(_Found(env[file_variable], file_variable, f"environment {file_variable}"))


def _read_secret(file: _Found) -> _Found:
    try:
        with Path(file.text).expanduser().open("rb") as stream:
            content = stream.read(_MAX_SECRET_BYTES).decode().rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise UsageError(file.place, "a readable text file", f"{file.text}: {_reason(error)}") from None
    if not content:
        raise UsageError(file.place, "a file with the secret in it", f"{file.text}, which is empty")
    return _Found(content, file.place, file.origin)


def _unknown_variables(declared: Sequence[Setting], env: Mapping[str, str], prog: str) -> list[str]:
    known = {one.variable for one in declared} | {PREFIX + "CONFIG"}
    known |= {f"{one.variable}_FILE" for one in declared if one.secret}
    strange = sorted(name for name in env if name.startswith(PREFIX) and name not in known)
    return [f"{name}: not a setting of {prog}{nearest(name, known)}; ignored" for name in strange]


# --- the TOML file


def _read_table(file: _Found, section: str, declared: Sequence[Setting]) -> dict[str, _Found]:
    document = read_toml(Path(file.text).expanduser(), file.place)
    for key, content in document.items():
        if key not in SECTIONS or not isinstance(content, dict):
            expected = "the tables " + ", ".join(f"[{name}]" for name in SECTIONS)
            raise UsageError(file.text, expected, f"{key}{nearest(key, SECTIONS)}")
    known = {f"{one.key}_file" if one.secret else one.key: one for one in declared}
    found = {}
    for key, content in document.get(section, {}).items():
        place = f"{file.text} [{section}] {key}"
        if key not in known:
            raise UsageError(f"{file.text} [{section}]", "known settings", key + nearest(key, known))
        one = known[key]
        read = _Found(_toml_text(content, place, one), place, f"file {file.text} [{section}]")
        found[one.key] = _read_secret(read) if one.secret else read
    return found


def read_toml(file: Path, place: str) -> dict[str, Any]:
    """A TOML document. Raises ``UsageError`` naming ``place``."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise UsageError(place, "a readable TOML file", f"{file}: {_reason(error)}") from None
    return parse_toml(raw, f"{file}: ", place)


def parse_toml(raw: bytes, prefix: str, place: str) -> dict[str, Any]:
    """The document in ``raw``. Raises ``UsageError`` naming ``place``; what it says begins with ``prefix``.

    Tables nested too deep for the reader are refused, and long dotted keys before it sees them: its time for one grows with
    the square of its length.
    """
    if len(raw) > MAX_CONFIG_BYTES:
        raise UsageError(place, f"at most {MAX_CONFIG_BYTES:,} bytes of TOML", f"{prefix}more")
    try:
        text = raw.decode()
        if _LONG_KEY.search(text):
            raise UsageError(place, f"keys of at most {MAX_KEY_PARTS} parts", f"{prefix}a longer one")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(place, "valid TOML", prefix + _reason(error)) from None


def _toml_text(content: Any, place: str, one: Setting) -> str:
    if isinstance(content, bool):
        if not one.is_switch:
            raise UsageError(place, f"{one.metavar}", f"{str(content).lower()}")
        return "yes" if content else "no"
    if isinstance(content, int | float | str):
        return str(content)
    takes_list = one.parse is values.names or one.repeats
    if isinstance(content, list) and all(isinstance(part, str) for part in content) and takes_list:
        return ",".join(content)
    raise UsageError(place, f"one value ({one.metavar})", f"a TOML {type(content).__name__}")


# --- values


def _value(one: Setting, found: _Found | None, resolved: Mapping[str, Any]) -> tuple[Any, str]:
    if found is not None:
        if one.choices and found.text not in one.choices:
            near = nearest(found.text, one.choices)
            raise UsageError(found.place, "one of " + ", ".join(one.choices), repr(found.text) + near)
        try:
            return one.parse(found.text), found.origin
        except UsageError as error:
            raise UsageError(found.place, error.expected, error.got) from None
    if one.default is REQUIRED:
        raise UsageError(one.flag, f"a value ({one.metavar})", "none")
    if one.derive:
        derived = one.derive(resolved)
        return (derived.value, derived.origin) if isinstance(derived, Derived) else (derived, "default")
    return one.default, "default"


def _table(declared: Sequence[Setting], result: Resolved[Any], prog: str) -> str:
    rows = [("setting", "value", "from")]
    for one in declared:
        value = getattr(result.settings, one.key)
        shown = "(set)" if one.secret and value is not None else one.show(value)
        rows.append((one.key, shown, result.origins[one.key]))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}".rstrip() for key, value, origin in rows]
    return "\n".join((f"{prog} {__version__}", *lines)) + "\n"


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
