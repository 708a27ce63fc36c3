"""What docker-compose.yml and Dockerfile promise, read without an engine (tests/compose tries them on one)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.credentials import users_of
from edge_agent.config import resolve_agent
from mdi_exit import __version__
from mdi_exit.config import settings_of
from source.config import SourceSettings, resolve_source

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
FILE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
STANDING = [name for name in SERVICES if name != "init"]
AGENTS = ["agent-1", "agent-2", "agent-3"]


def default(text: str) -> str:
    """``text`` as Compose reads it in an empty environment."""
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", text)


def environment(service: str) -> dict[str, str]:
    return {name: default(value) for name, value in SERVICES[service].get("environment", {}).items()}


def test_the_services_are_there_and_only_the_demo_is_optional() -> None:
    assert set(SERVICES) == {"init", "broker", "source", "gateway", "prometheus", "grafana", *AGENTS}
    assert [name for name in SERVICES if SERVICES[name].get("profiles")] == AGENTS
    assert all(SERVICES[name]["profiles"] == ["demo"] for name in AGENTS)


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_to_a_whole_version(name: str) -> None:
    image = default(SERVICES[name]["image"])
    assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+", image), image
    if image.startswith("mdi-exit"):
        assert image == f"mdi-exit:{__version__}"
    python = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert python is not None
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-[a-z]+", python[1])


@pytest.mark.parametrize("name", STANDING)
def test_a_service_that_stays_is_watched_limited_and_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"interval", "timeout", "retries"} <= set(service["healthcheck"])
    assert int(service["user"].split(":")[0] if "user" in service else 10001) > 0, "not root"
    assert service.get("cap_add", []) == []


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_limits_and_no_rights(name: str) -> None:
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}
    assert float(limits["cpus"]) <= 1.0, "an engine refuses more than the machine has"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]  # noqa: S108 - in the container
    assert service["logging"]["options"]["max-size"]
    assert not service.get("privileged")
    assert service.get("network_mode") in (None, "none")


def test_init_runs_first_makes_the_credentials_and_ends() -> None:
    init = SERVICES["init"]
    assert init["restart"] == "no"
    assert init["network_mode"] == "none"
    assert init["cap_add"] == ["CHOWN"]
    for name in ("broker", "source", "gateway", "grafana", *AGENTS):
        assert SERVICES[name]["depends_on"]["init"] == {"condition": "service_completed_successfully"}
    for name in ("source", "gateway", *AGENTS):
        assert SERVICES[name]["depends_on"]["broker"] == {"condition": "service_healthy"}


def test_ports_are_on_loopback_unless_asked() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", default(port)) for port in ports)
    (prometheus,) = SERVICES["prometheus"]["ports"]
    assert "BIND" not in prometheus, "it asks nobody for a password"


def test_nothing_secret_is_written_down() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN", variable):
                role = Path(value).parent.name
                assert (variable[-5:], value) == ("_FILE", f"/credentials/{role}/password"), (name, variable)
                assert role in {*users_of((ROOT / "broker" / "acl").read_text()), "grafana"}
    assert not re.search(r"password:", TEXT, re.IGNORECASE)


def test_every_file_that_is_mounted_is_in_the_repository_and_cannot_be_written() -> None:
    mounted = set()
    for name, service in SERVICES.items():
        for mount in service.get("volumes", []):
            where, target, *mode = default(mount).split(":")
            if where.startswith("."):
                assert mode == ["ro"], (name, mount)
                assert (ROOT / where).exists(), (name, mount)
                mounted.add(where)
            else:
                assert where in FILE["volumes"], (name, mount)
                assert mode == ["ro"] or (name, target) in {
                    ("init", "/credentials"),
                    ("broker", "/mosquitto/data"),
                    ("prometheus", "/prometheus"),
                    ("grafana", "/var/lib/grafana"),
                }
    assert {"./broker/acl", "./broker/mosquitto.compose.conf", "./dashboards/prometheus.yml"} <= mounted


def test_every_variable_is_a_setting_of_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "password"
    secret.write_text("x")
    known = {one.variable for one in settings_of(SourceSettings)}
    source = {name: value for name, value in environment("source").items() if name in known}
    settings = resolve_source([], source | {"MDI_EXIT_PASSWORD_FILE": str(secret)}).settings
    assert (settings.repeat, str(settings.metrics), settings.username) == (True, "0.0.0.0:9464", "source")
    for name in AGENTS:
        agent = resolve_agent([], environment(name) | {"MDI_EXIT_PASSWORD_FILE": str(secret)})
        assert not agent.warnings
        assert (agent.settings.name, agent.settings.username) == (name, "agent")
        assert agent.settings.profile, "the demo's boards are emulated, and say so"


def test_any_two_of_the_agents_hold_all_layers() -> None:
    spans = {}
    for name in AGENTS:
        first, last = map(int, environment(name)["MDI_EXIT_LAYERS"].split("-"))
        spans[name] = set(range(first, last + 1))
    for dead in AGENTS:
        assert set().union(*(span for name, span in spans.items() if name != dead)) == set(range(9))


def test_the_brokers_settings_are_those_of_the_standing_broker_with_users() -> None:
    def settings(name: str) -> set[str]:
        lines = (ROOT / "broker" / name).read_text().splitlines()
        return {line for line in lines if line and not line.startswith("#")}

    plain, compose = settings("mosquitto.conf"), settings("mosquitto.compose.conf")
    assert plain - compose == {
        "listener 1883 127.0.0.1", "allow_anonymous true", "persistence_location /var/lib/mosquitto/",
    }  # fmt: skip
    assert compose - plain == {
        "listener 1883 0.0.0.0", "allow_anonymous false", "connection_messages false",
        "password_file /credentials/broker/password_file", "acl_file /credentials/broker/acl",
        "persistence_location /mosquitto/data/",
    }  # fmt: skip


def test_the_build_gets_what_the_wheel_is_made_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
        "pyproject.toml",
        "README.md",
        "LICENSE",
    }
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        for word in line.split()
    }
    assert let_in == copied == wanted
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_the_image_has_no_root_no_torch_and_a_health_check() -> None:
    final = (ROOT / "Dockerfile").read_text().split("\nFROM ")[-1]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert "HEALTHCHECK" in final
    assert "RUN" not in final
    assert not re.search(r"\btorch\b", (ROOT / "Dockerfile").read_text())


def test_compose_accepts_the_file() -> None:
    if shutil.which("docker") is None:
        pytest.skip("needs docker")
    if not re.search(r"v?2\.", subprocess.run(["docker", "compose", "version"], capture_output=True, text=True).stdout):
        pytest.skip("needs Compose v2")
    done = subprocess.run(
        ["docker", "compose", "--project-directory", ROOT, "--profile", "demo", "config", "-q"],
        capture_output=True, text=True, timeout=60,
        env={name: value for name, value in os.environ.items() if not name.startswith("MDI_EXIT_")},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
