"""Passwords are made once, kept, and told to those only whom they concern."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker import credentials
from broker.credentials import hashed, make, matches, renew, show, users_of
from mdi_exit.errors import StartError, UsageError

ACL = Path(__file__).parents[2] / "broker" / "acl"
ROLES = (*users_of(ACL.read_text()), "grafana")


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_every_role_gets_a_password_of_its_own(tmp_path: Path) -> None:
    assert make(tmp_path, ACL) == list(ROLES)
    passwords = {role: show(tmp_path, role) for role in ROLES}
    assert len(set(passwords.values())) == len(ROLES)
    assert all(len(password) == 48 for password in passwords.values())
    assert (tmp_path / "agent" / "password").read_text().strip() == passwords["agent"]
    assert f"-P {passwords['health']}\n" in (tmp_path / "broker" / "mosquitto_sub").read_text()
    assert (tmp_path / "broker" / "acl").read_text() == ACL.read_text()


def test_a_second_time_nothing_changes(tmp_path: Path) -> None:
    make(tmp_path, ACL)
    before = contents(tmp_path)
    assert make(tmp_path, ACL) == []
    assert contents(tmp_path) == before


def test_what_is_lost_is_made_again_and_the_rest_stays(tmp_path: Path) -> None:
    make(tmp_path, ACL)
    before = contents(tmp_path)
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "master" / "client").unlink()
    assert make(tmp_path, ACL) == ["client"]
    after = contents(tmp_path)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"master/client", "master/password_file", "broker/password_file"}
    lines = zip(before["broker/password_file"].splitlines(), after["broker/password_file"].splitlines(), strict=True)
    assert [old.split(":")[0] for old, new in lines if old != new] == ["client"]


def test_a_renewed_password_replaces_the_old_one_everywhere(tmp_path: Path) -> None:
    make(tmp_path, ACL)
    old = show(tmp_path, "agent")
    renew(tmp_path, "agent", ACL)
    new = show(tmp_path, "agent")
    assert new != old
    assert not [name for name, text in contents(tmp_path).items() if old in text]
    (line,) = [row for row in contents(tmp_path)["broker/password_file"].splitlines() if row.startswith("agent:")]
    assert matches(new, line.split(":")[1])
    assert not matches(old, line.split(":")[1])


def test_files_are_readable_by_one_user_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, int] = {}

    def note(path: Any, user: int, group: int) -> None:
        assert user == group
        given[str(Path(path).relative_to(tmp_path))] = user

    monkeypatch.setattr(credentials.os, "geteuid", lambda: 0)
    monkeypatch.setattr(credentials.shutil, "chown", note)
    make(tmp_path, ACL)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o400}
    assert (tmp_path / "master").stat().st_mode & 0o777 == 0o700
    assert given == {
        **{f"broker/.{name}.new": 1883 for name in ("password_file", "acl", "mosquitto_sub")},
        "agent/.password.new": 10001, "source/.password.new": 10002, "gateway/.password.new": 10003,
        "grafana/.password.new": 472,
    }  # fmt: skip


def test_nothing_is_allowed_to_those_without_a_name() -> None:
    first = next(line for line in ACL.read_text().splitlines() if line and not line.startswith("#"))
    assert first == "user agent"


def test_a_user_of_ones_own_gets_a_password(tmp_path: Path) -> None:
    make(tmp_path / "kept", ACL)
    before = contents(tmp_path / "kept")
    acl = tmp_path / "acl"
    acl.write_text(ACL.read_text() + "\nuser camera\ntopic write cams/#\n")
    assert make(tmp_path / "kept", acl) == ["camera"]
    after = contents(tmp_path / "kept")
    assert after["broker/password_file"].startswith(before["broker/password_file"])
    line = after["broker/password_file"].splitlines()[-1]
    assert (line.split(":")[0], matches(show(tmp_path / "kept", "camera"), line.split(":")[1])) == ("camera", True)


@pytest.mark.parametrize(
    ("rules", "got"),
    [
        ("user agent\n", "got none named source, gateway, health"),
        ("user a/b\n", "got a/b"),
        ("user grafana\n", "got grafana"),
    ],
)
def test_an_access_list_that_cannot_work_is_refused(tmp_path: Path, rules: str, got: str) -> None:
    acl = tmp_path / "acl"
    acl.write_text(rules)
    with pytest.raises(UsageError, match=got):
        make(tmp_path / "kept", acl)
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("line", ["", "$7$101$", "$7$101$???$x", "x"])
def test_a_spoilt_line_matches_nothing(line: str) -> None:
    assert not matches("", line)
    assert matches("secret", hashed("secret", b"0" * 12))


def test_mosquittos_own_tool_takes_the_hash(tmp_path: Path) -> None:
    tool = shutil.which("mosquitto_passwd") or shutil.which("mosquitto_passwd", path="/usr/sbin")
    if tool is None:
        pytest.skip("needs mosquitto_passwd")
    file = tmp_path / "passwords"
    file.touch()
    subprocess.run([tool, "-b", file, "somebody", "a password"], check=True, capture_output=True)
    name, line = file.read_text().strip().split(":")
    assert name == "somebody"
    assert matches("a password", line)
    assert not matches("another", line)


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "broker.credentials", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command(tmp_path: Path) -> None:
    where = ("--folder", tmp_path / "new", "--acl", ACL)
    assert run(*where, "make").stdout.startswith("credentials: made for agent, source")
    assert run(*where, "make").stdout == "credentials: all there\n"
    assert run(*where, "show", "operator").stdout.strip() == show(tmp_path / "new", "operator")
    assert run(*where, "renew", "operator").stdout == (
        "credentials: operator has another password; start the broker and operator again\n"
    )
    wrong = run(*where, "show", "root")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_mistakes_are_one_plain_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--acl: expected a readable access list, got .*nothing: No such file"):
        make(tmp_path, tmp_path / "nothing")
    with pytest.raises(StartError, match="password of agent: No such file or directory"):
        show(tmp_path, "agent")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StartError, match=r"credentials in .*file: Not a directory"):
        make(file, ACL)
    with pytest.raises(StartError):
        renew(tmp_path, "agent", ACL)
    assert list(tmp_path.iterdir()) == [file]
