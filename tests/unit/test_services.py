"""The units of systemd are valid, and take from the services all that they do not need."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_agent.config import AgentSettings
from mdi_exit.config import settings_of
from source.config import SourceSettings

ROOT = Path(__file__).parents[2]
UNITS = {"edge_agent/edge-agent.service": AgentSettings, "source/edge-source.service": SourceSettings}
MOST_EXPOSED = 20  # tenths of systemd's points; 100 is a service without any of it


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_takes_it_and_finds_it_closed(unit: str, tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("needs systemd-analyze")
    file = tmp_path / Path(unit).name
    text = (ROOT / unit).read_text()
    file.write_text(re.sub(r"^ExecStart=.*$", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    checked = subprocess.run([tool, "verify", "--man=no", file], capture_output=True, text=True, timeout=60)
    assert (checked.returncode, checked.stderr) == (0, "")
    flags = ("security", "--offline=yes", f"--threshold={MOST_EXPOSED}", "--no-pager")
    rated = subprocess.run([tool, *flags, file], capture_output=True, text=True, timeout=60)
    if "unrecognized option" in rated.stderr:
        pytest.skip("needs systemd 250")
    assert rated.returncode == 0, rated.stdout


@pytest.mark.parametrize(("unit", "settings"), UNITS.items())
def test_it_sets_what_is_a_setting_and_gives_what_a_bundle_has(unit: str, settings: type) -> None:
    text = (ROOT / unit).read_text()
    known = {one.variable for one in settings_of(settings)} | {"MDI_EXIT_CONFIG"}
    assert set(re.findall(r"\b(MDI_EXIT_\w+)=", "".join(re.findall(r"^Environment=.*$", text, re.MULTILINE)))) <= known
    given = set(re.findall(r"^LoadCredential=(\S+):/etc/mdi-exit/\1$", text, re.MULTILINE))
    assert given == {"mdi-exit.toml", "ca.crt", "node.crt", "node.key", "model.pub"}
    assert set(re.findall(r"%d/(\S+)", text)) == given
    for line in ("DynamicUser=yes", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet="):
        assert f"\n{line}\n" in text


def test_the_container_runs_as_nobody_in_particular() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    last = max(index for index, line in enumerate(lines) if line.startswith(("FROM", "RUN")))
    assert lines.index("USER 10001:10001") > last
