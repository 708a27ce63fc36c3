from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.config import AgentSettings, default_name, resolve_agent
from mdi_exit import __version__, values
from mdi_exit.config import REQUIRED, SECTIONS, Resolved, resolve, run_program, setting, settings_of
from mdi_exit.errors import MdiExitError, StartError, UsageError
from mdi_exit.span import LayerSpan
from source.config import SourceSettings, resolve_source

SECRET, OTHER = "hush", "other"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    exit_threshold: float = setting(0.9, help="100 % sure", parse=values.fraction)
    many: tuple[str, ...] = setting((), help="names", parse=values.names)
    loud: bool = setting(False, help="say more", parse=values.switch)
    size: int = setting(3, help="how many", parse=values.integer(1, 9))
    kind: str = setting("red", help="which", choices=("red", "green"))
    double: int = setting(None, help="twice the size", parse=values.integer(0), derive=lambda known: 2 * known["size"])
    password: str | None = setting(None, help="secret", parse=values.text, secret=True)


def sample(*argv: str, env: dict[str, str] | None = None) -> Resolved[Sample]:
    return resolve(Sample, argv, env or {}, prog="prog", description="A program.", section="agent")


def toml(folder: Path, content: str) -> str:
    file = folder / "settings.toml"
    file.write_text(content)
    return str(file)


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = toml(tmp_path, "[agent]\nexit_threshold = 0.1\nsize = 4\nkind = 'green'\n[source]\nrate = 3\n")
    env = {"MDI_EXIT_EXIT_THRESHOLD": "0.2", "MDI_EXIT_SIZE": "5"}
    resolved = sample("--config", file, "--exit-threshold", "0.3", env=env)
    assert resolved.settings == Sample(exit_threshold=0.3, size=5, kind="green", double=10)
    assert resolved.origins == {
        "exit_threshold": "flag --exit-threshold",
        "many": "default",
        "loud": "default",
        "size": "environment MDI_EXIT_SIZE",
        "kind": f"file {file} [agent]",
        "double": "default",
        "password": "default",
    }


def test_the_file_may_come_from_the_environment(tmp_path: Path) -> None:
    env = {"MDI_EXIT_CONFIG": toml(tmp_path, "[agent]\nmany = ['a', 'b']\nloud = true\n")}
    settings = sample(env=env).settings
    assert settings.many == ("a", "b")
    assert settings.loud


def test_an_empty_variable_counts_as_not_set() -> None:
    assert sample(env={"MDI_EXIT_SIZE": ""}).settings.size == 3


def test_a_switch_can_be_turned_off_again() -> None:
    assert sample("--loud").settings.loud
    assert not sample("--no-loud", env={"MDI_EXIT_LOUD": "yes"}).settings.loud


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--exit-treshold", "1"], "got --exit-treshold; did you mean --exit-threshold?"),
        (["--exit-thres", "1"], "got --exit-thres; did you mean --exit-threshold?"),
        (["stray"], "command line: expected flags of prog (see --help), got stray"),
        (["--size"], "--size: expected a value, got none"),
        (["--loud=yes"], "--loud: expected no value, got 'yes'"),
        (["--size", "10"], "--size: expected a whole number from 1 to 9, got '10'"),
        (["--size", "-5"], "--size: expected a whole number from 1 to 9, got '-5'"),
        (["--exit-threshold", "nan"], "--exit-threshold: expected a number from 0 to 1, got 'nan'"),
        (["--kind", "gren"], "--kind: expected one of red, green, got 'gren'; did you mean green?"),
        (["--many", "a,b c"], "--many: expected 1 to 40 letters, digits, - or _, got 'b c'"),
        (["--config", "/no/such.toml"], "--config: expected a readable TOML file, got /no/such.toml: No such file"),
        (["--password-file", "/no/such"], "--password-file: expected a readable text file, got /no/such: No such"),
    ],
)
def test_a_wrong_flag_ends_in_one_plain_line(argv: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("prog", lambda: bool(sample(*argv)) and 0) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("prog: error: ")
    assert line in written.err
    assert written.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("[agent]\nsizes = 3", "[agent]: expected known settings, got sizes; did you mean size?"),
        ("[agnt]\nsize = 3", "got agnt; did you mean agent?"),
        ("size = 3", f"the tables {', '.join(f'[{name}]' for name in SECTIONS)}, got size"),
        ("[agent]\nsize = true", "[agent] size: expected SIZE, got true"),
        ("[agent]\nsize = [3]", "[agent] size: expected one value (SIZE), got a TOML list"),
        ("[agent]\nsize = 3.5", "[agent] size: expected a whole number from 1 to 9, got '3.5'"),
        ("[agent]\npassword = 'x'", "got password; did you mean password_file?"),
        ("[agent\n", "expected valid TOML"),
        ("[agent]\nmany = [1]", "expected one value (MANY), got a TOML list"),
    ],
)
def test_a_wrong_file_is_told_by_place(tmp_path: Path, content: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        sample("--config", toml(tmp_path, content))
    assert line in str(caught.value)
    assert "settings.toml" in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="expected valid TOML"):
        sample("--config", str(tmp_path / "raw.toml"))


def test_an_unknown_variable_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    sample(env={"MDI_EXIT_SICE": "3", "OTHER": "x"})
    expected = "prog: warning: MDI_EXIT_SICE: not a setting of prog; did you mean MDI_EXIT_SIZE?; ignored\n"
    assert capsys.readouterr().err == expected


def test_a_secret_comes_from_a_file_or_a_variable_and_is_never_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    assert sample("--password-file", str(file), env={"MDI_EXIT_PASSWORD": OTHER}).settings.password == SECRET
    assert sample(env={"MDI_EXIT_PASSWORD": OTHER}).settings.password == OTHER
    assert sample(env={"MDI_EXIT_PASSWORD_FILE": str(file)}).settings.password == SECRET
    from_toml = sample("--config", toml(tmp_path, f"[agent]\npassword_file = '{file}'"))
    assert from_toml.settings.password == SECRET
    assert SECRET not in repr(from_toml.settings)
    with pytest.raises(SystemExit):
        sample("--check", "--password-file", str(file))
    shown = capsys.readouterr().out
    assert "(set)" in shown
    assert SECRET not in shown
    with pytest.raises(UsageError, match="either it or MDI_EXIT_PASSWORD_FILE, got both"):
        sample(env={"MDI_EXIT_PASSWORD": "a", "MDI_EXIT_PASSWORD_FILE": str(file)})
    with pytest.raises(UsageError, match="command line"):
        sample("--password", SECRET)


def test_check_prints_every_setting_and_its_origin(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("prog", lambda: bool(sample("--check", "--many", "a,b", env={"MDI_EXIT_SIZE": "4"})) and 0) == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["prog", __version__]
    assert rows[2:] == [
        ["exit_threshold", "0.9", "default"],
        ["many", "a,b", "flag --many"],
        ["loud", "no", "default"],
        ["size", "4", "environment MDI_EXIT_SIZE"],
        ["kind", "red", "default"],
        ["double", "8", "default"],
        ["password", "-", "default"],
    ]


def test_help_names_flag_default_and_variable_and_version_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("prog", lambda: bool(sample("--help")) and 0) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--exit-threshold EXIT_THRESHOLD 100 % sure [default 0.9, MDI_EXIT_EXIT_THRESHOLD]" in shown
    assert run_program("prog", lambda: bool(sample("--version")) and 0) == 0
    assert capsys.readouterr().out == f"prog {__version__}\n"


def raising(error: BaseException) -> int:
    def program() -> int:
        raise error

    return run_program("prog", program)


def test_every_expected_error_has_its_status_and_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(UsageError("--x", "a", "b")) == 2
    assert raising(StartError("port 1 is taken")) == 3
    assert raising(MdiExitError("lost")) == 1
    assert raising(OSError(28, "No space left on device", "file")) == 1
    assert raising(KeyboardInterrupt()) == 130
    assert run_program("prog", lambda: None) == 0
    assert capsys.readouterr().err.splitlines() == [
        "prog: error: --x: expected a, got b",
        "prog: error: port 1 is taken",
        "prog: error: lost",
        "prog: error: No space left on device: file",
    ]


def test_a_defect_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())


@pytest.mark.parametrize("words", [1, 100_000])
def test_a_closed_pipe_ends_without_a_traceback(words: int) -> None:
    """As with ``| head``, whether the output is lost while it is written or only when it is flushed."""
    program = (
        "import sys; from mdi_exit.config import run_program\n"
        "def talk():\n"
        "    sys.stdin.read()\n"
        f"    for _ in range({words}): sys.stdout.write('word ' * 20 + chr(10))\n"
        "sys.exit(run_program('prog', talk))\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1


def test_the_agent_needs_layers_and_has_the_documented_defaults() -> None:
    with pytest.raises(UsageError, match=r"--layers: expected a value \(SPAN\), got none"):
        resolve_agent([], {})
    settings = resolve_agent(["--layers", "4-8"], {}).settings
    assert settings.layers == LayerSpan(4, 9)
    assert str(settings.broker) == "auto"
    assert settings.name.endswith("-4-8")
    assert settings.neighbours is None
    assert (settings.threads, settings.window, settings.telemetry_period, settings.keepalive) == (1, 16, 0.5, 5.0)


def test_several_brokers_come_by_a_list_a_repeated_flag_the_environment_or_the_file(tmp_path: Path) -> None:
    expected = values.brokers("mqtt://a,mqtt://b")
    file = toml(tmp_path, "[agent]\nbroker = ['mqtt://a', 'mqtt://b']\n")
    for argv, env in (
        (["--broker", "mqtt://a,mqtt://b"], {}),
        (["--broker", "mqtt://a", "--broker", "mqtt://b"], {}),
        ([], {"MDI_EXIT_BROKER": "mqtt://a,mqtt://b"}),
        (["--config", file], {}),
    ):
        assert resolve_agent(["--layers", "4-8", *argv], env).settings.broker == expected


def test_silence_and_damping_are_settings() -> None:
    config = resolve_agent(["--layers", "4-8", "--telemetry-period", "1s"], {}).settings.node("", "")
    assert config.dead_after_s == 5.0, "five load reports"
    flags = ["--dead-after", "1s", "--hold-down", "3s", "--hold-down-most", "9s", "--hold-down-half-life", "1m"]
    config = resolve_agent(["--layers", "4-8", *flags], {}).settings.node("", "")
    assert config.dead_after_s == 1.0
    assert [config.damping.hold_s(penalty) for penalty in (1.0, 2.0, 3.0, 9.0)] == [0.0, 3.0, 6.0, 9.0]


def test_layers_auto_take_memory_and_have_a_name() -> None:
    settings = resolve_agent(["--layers", "auto", "--memory", "512MB"], {}).settings
    assert (settings.layers, settings.span, settings.memory) == ("auto", None, 512_000_000)
    assert settings.name.endswith("-auto")
    config = settings.node("", "")
    assert (config.auto, config.span, config.memory_bytes) == (True, None, 512_000_000)
    assert resolve_agent(["--layers", "auto"], {}).settings.node("", "").memory_bytes > 0
    assert not resolve_agent(["--layers", "4-8"], {}).settings.node("", "").auto
    for wrong in (["auto", "--memory", "much"], ["4-8", "--memory", "1GB"]):
        with pytest.raises(UsageError, match="--memory"):
            resolve_agent(["--layers", *wrong], {})


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("pi", "pi-4-8"),
        ("jet son.local", "jet-son-4-8"),
        ("", "agent-4-8"),
        ("ä", "agent-4-8"),
        ("h" * 60, "h" * 36 + "-4-8"),
    ],
)
def test_a_default_name_fits_a_topic(host: str, name: str) -> None:
    assert default_name(host, LayerSpan(4, 9)) == name
    assert values.name(name) == name


def test_settings_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--username"):
        resolve_agent(["--layers", "1"], {"MDI_EXIT_PASSWORD": "x"})
    with pytest.raises(UsageError, match="--model"):
        resolve_agent(["--layers", "1", "--engine", "torch"], {})
    with pytest.raises(UsageError, match="--min-threshold"):
        resolve_source(["--input", "x", "--adapt", "threshold", "--exit-threshold", "0.3"], {})
    with pytest.raises(UsageError, match="different files"):
        resolve_source(["--input", "x", "--results", "a", "--summary", "a"], {})


def test_the_source_reads_its_flags() -> None:
    argv = "--input shipped --rate 25/s --layers 0-3 --adapt threshold --results - --neighbours a,b --profile jetson-nanox0.5"
    settings = resolve_source([*argv.split(), "--duration", "500ms"], {}).settings
    assert settings.rate == 25
    assert settings.layers == LayerSpan(0, 4)
    assert settings.results == Path("-")
    assert settings.neighbours == ("a", "b")
    assert settings.profile == "jetson-nanox0.5"
    assert settings.duration == 0.5
    assert resolve_source(["--input", "x"], {}).settings.rate is None


@pytest.mark.parametrize("cls", [AgentSettings, SourceSettings])
def test_each_declared_default_is_a_value_that_its_parser_takes(cls: type[object]) -> None:
    """What ``--check`` prints can be given back as a flag."""
    for one in settings_of(cls):
        if one.default is not REQUIRED and one.default is not None and not one.secret:
            assert one.parse(one.show(one.default)) == one.default, one.key
            assert not one.choices or one.default in one.choices


@pytest.mark.parametrize(
    "flags", [("--rate", "5/s"), ("--schedule", "a=5/s@0s"), ("--limit", "3"), ("--shuffle",), ("--adapt", "rate")]
)
def test_a_source_that_only_answers_requests_has_no_pace_of_its_own(flags: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=f"{flags[0]}: expected .* with --input requests"):
        resolve_source(["--input", "requests", *flags], {})
    accepted = resolve_source(["--input", "requests", "--adapt", "threshold", "--duration", "9s"], {}).settings
    assert (accepted.max_requests, accepted.duration) == (32, 9.0)
