"""A Docker engine for one test: in a network namespace and folders of its own, with images made on this machine.

Nothing is fetched from a registry of images. Compose and buildx come out of a newer Debian suite, unpacked beside the engine;
the base images are stand-ins made of Debian's packages. All of it goes away at the end, however that comes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from broker.embedded import dies_with_parent

__all__ = ["ROOT", "Engine", "engine", "until", "why_not"]

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"
NAME = "mdi-exit-engine"  # of folder, network namespace and control group, with the number of the test's process
SUITE = "bookworm"
NEWER = "forky"  # the first suite whose Compose is the one of today
PACKAGES = (
    *("base-files", "base-passwd", "bash", "busybox", "ca-certificates", "coreutils", "dash", "findutils", "grep"),
    *("libc-bin", "libstdc++6", "mosquitto", "mosquitto-clients", "python3", "python3-venv", "sed"),
)
PYTHON = "3.11"  # of that suite
TOOLS = ("apt-get", "containerd", "dockerd", "dpkg", "ip", "iptables", "mmdebstrap", "nsenter", "runc")
USERS = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"


def why_not() -> str:
    """Why no engine can be started here; empty when one can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: docker.io iptables iproute2 mmdebstrap)"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "needs overlayfs"
    name = f"mdi-exit-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return f"needs network namespaces: {made.stderr.strip()}" if made.returncode else ""


def run(*argv: str | Path, timeout: float = 300.0, check: bool = True, **more: object) -> str:
    """What a command printed; an ``AssertionError`` with both of its outputs when it fails."""
    done = subprocess.run([str(part) for part in argv], capture_output=True, text=True, timeout=timeout, **more)  # type: ignore[call-overload]
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, argv))}: {done.returncode}\n{done.stdout}\n{done.stderr}"[-6000:])
    return str(done.stdout)


def until(condition: Callable[[], bool], what: Callable[[], str], deadline_s: float = 60.0) -> None:
    """Wait for ``condition``; ``what`` says in the error what was seen last."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)


@dataclass
class Engine:
    """A running engine: ``docker`` and ``compose`` talk to it, ``inside`` runs a command in its network."""

    folder: Path
    project: Path
    namespace: str
    timings_s: dict[str, float] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MDI_EXIT_", "DOCKER_", "COMPOSE_"))
        }
        return own | {"DOCKER_HOST": f"unix://{self.folder}/docker.sock", "DOCKER_CONFIG": str(self.folder / "config")}

    def docker(self, *argv: str | Path, timeout: float = 300.0, check: bool = True, **environment: str) -> str:
        return run("docker", *argv, timeout=timeout, check=check, env=self.environment | environment)

    def compose(self, *argv: str, timeout: float = 300.0, check: bool = True, **environment: str) -> str:
        """Compose's, with the profile ``demo``, on a copy of the project."""
        where = ("--project-directory", self.project, "--profile", "demo", "--ansi", "never")
        return self.docker("compose", *where, *argv, timeout=timeout, check=check, **environment)

    def shell(self, line: str) -> str:
        """A line of the documentation, as somebody would type it in the project's folder on the engine's machine."""
        own = f"nsenter --net=/run/netns/{self.namespace} sh -euc"
        return run(*own.split(), line, cwd=self.project, env=self.environment)

    @contextlib.contextmanager
    def program(self, module: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
        """One of the project's programs outside the containers, in the engine's network."""
        argv = ["nsenter", f"--net=/run/netns/{self.namespace}", sys.executable, "-m", module, *flags]
        process = subprocess.Popen(argv, env=self.environment, preexec_fn=dies_with_parent())
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)

    def inside(self, *argv: str, check: bool = True) -> str:
        return run("nsenter", f"--net=/run/netns/{self.namespace}", *argv, timeout=30.0, check=check)

    def fetch(self, url: str, body: Path | None = None) -> str:
        """A page, as a program on the engine's machine gets it; ``body``: a file to post."""
        data = f"open({str(body)!r}, 'rb').read()" if body else "None"
        code = f"import urllib.request as u; print(u.urlopen({url!r}, data={data}, timeout=15).read().decode())"
        return self.inside(sys.executable, "-c", code)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.timings_s[name] = round(time.monotonic() - started, 1)


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """An engine that has the base images of ``docker-compose.yml`` and ``Dockerfile``, and a copy of the project."""
    _sweep()
    name = f"{NAME}-{os.getpid()}"
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))  # a short path, for sockets lie in it
    one = Engine(folder, folder / "project", name)
    for part in ("project", "config/cli-plugins", "data", "exec", "stand-ins/bin"):
        (folder / part).mkdir(parents=True)
    with contextlib.ExitStack() as cleaning:
        cleaning.callback(shutil.rmtree, folder, ignore_errors=True)
        with one.timed("downloads"), ThreadPoolExecutor() as pool:
            fetched = [pool.submit(_unpack_newer, folder), pool.submit(_wheelhouse, folder / "stand-ins" / "wheels")]
            base = _base(folder)
            for each in fetched:
                each.result()
        _copy_project(one.project)
        run("ip", "netns", "add", one.namespace)
        cleaning.callback(run, "ip", "netns", "del", one.namespace, check=False)
        run("ip", "-n", one.namespace, "link", "set", "lo", "up")
        cleaning.enter_context(_daemon(one))
        with one.timed("base images"):
            _stand_ins(one, base)
        yield one


@contextlib.contextmanager
def _daemon(one: Engine) -> Iterator[None]:
    """``dockerd`` for as long as the context lasts. Not by ``ip netns exec``, which would hide the cgroups."""
    folder, parent = one.folder, f"/{one.namespace}"
    (folder / "daemon.json").write_text("{}\n")
    argv = [
        *("nsenter", f"--net=/run/netns/{one.namespace}", "dockerd", "--config-file", f"{folder}/daemon.json"),
        *("--host", f"unix://{folder}/docker.sock", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"),
        *("--pidfile", f"{folder}/docker.pid", "--storage-driver", "overlay2", "--cgroup-parent", parent),
    ]
    log = folder / "dockerd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output, preexec_fn=dies_with_parent())
    try:
        until(
            lambda: (
                _answers(process, log) and bool(one.docker("version", "-f", "{{.Server.Version}}", check=False).strip())
            ),
            lambda: f"dockerd does not answer:\n{log.read_text(errors='replace')[-3000:]}",
        )
        yield
    finally:
        with one.timed("engine's end"):
            _remove_all(one)
            _end(process)
            _forget(folder, parent)


def _answers(process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, f"dockerd ended:\n{log.read_text(errors='replace')[-3000:]}"
    return True


def _remove_all(one: Engine) -> None:
    with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
        if containers := one.docker("ps", "-aq", timeout=30, check=False).split():
            one.docker("rm", "-f", "-v", *containers, timeout=90, check=False)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def _sweep() -> None:
    """Take away what earlier tests have left that were killed."""
    left = {
        path.name for path in (*Path(tempfile.gettempdir()).glob(f"{NAME}-*"), *Path("/run/netns").glob(f"{NAME}-*"))
    }
    for name in left:
        number = name.removeprefix(f"{NAME}-").split("-")[0]
        if Path(f"/proc/{number}").exists():
            continue
        folder = Path(tempfile.gettempdir()) / name
        if folder.is_dir():
            _forget(folder, f"/{NAME}-{number}")
            shutil.rmtree(folder, ignore_errors=True)
        run("ip", "netns", "del", f"{NAME}-{number}", check=False)


def _forget(folder: Path, cgroup: str) -> None:
    """End what an engine that did not end well may have left: processes of its folder, mounts, control groups."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder / "exec").encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
    mounts = re.findall(rf"^\S+ ({re.escape(str(folder))}\S*) ", Path("/proc/mounts").read_text(), re.MULTILINE)
    for mount in reversed(mounts):
        run("umount", "--lazy", mount, check=False)
    deadline = time.monotonic() + 10.0
    while _groups_left(cgroup) and time.monotonic() < deadline:
        time.sleep(0.1)


def _groups_left(cgroup: str) -> bool:
    """End what runs in the engine's control groups, which outlives the engine, and remove those that are empty."""
    found = [path for root in Path("/sys/fs/cgroup").iterdir() if (path := root / cgroup.strip("/")).is_dir()]
    for top in found:
        for path in (*sorted(top.rglob("*/"), reverse=True), top):
            with contextlib.suppress(OSError):
                for number in (path / "cgroup.procs").read_text().split():
                    os.kill(int(number), signal.SIGKILL)
                path.rmdir()
    return any(top.is_dir() for top in found)


# --- what the engine needs


def _archive() -> str:
    """Where this machine has Debian's packages from. Lists that were never fetched are not named, so fetch them then."""
    for _ in range(2):
        sources = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages")
        if found := re.search(r"^(\S+/debian/?) main$", sources, re.MULTILINE):
            return found[1]
        run("apt-get", "update", "-qq")
    raise AssertionError(f"expected Debian's archive among the sources of apt, got: {sources}")


def _unpack_newer(folder: Path) -> None:
    """Compose, buildx and Prometheus 3, out of a newer suite of the archive that this machine uses. Nothing is installed."""
    uri = _archive()
    apt = folder / "apt"
    (apt / "lists" / "partial").mkdir(parents=True)
    (apt / "sources").write_text(f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri} {NEWER} main\n")
    options = [f"-oDir::Etc::sourcelist={apt}/sources", "-oDir::Etc::sourceparts=-", f"-oDir::State::lists={apt}/lists"]
    options += [f"-oDir::Cache={apt}", "-oAPT::Sandbox::User=root", "-qq"]
    run("apt-get", *options, "update")
    run("apt-get", *options, "download", "docker-compose", "docker-buildx", "prometheus", "promtool", cwd=apt)
    for package in apt.glob("*.deb"):
        run("dpkg", "-x", package, apt / "unpacked")
    for plugin in (apt / "unpacked/usr/libexec/docker/cli-plugins").iterdir():
        plugin.rename(folder / "config" / "cli-plugins" / plugin.name)
    for program in ("prometheus", "promtool"):
        (apt / "unpacked/usr/bin" / program).rename(folder / "stand-ins" / "bin" / program)
    shutil.rmtree(apt)


def _wheelhouse(folder: Path) -> None:
    """All that ``pip install .`` would fetch, for the Python of the base image: the build needs no network then."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = _extras()
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    wanted += [one for extra in extras for one in project["project"]["optional-dependencies"][extra]]
    only = ("--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON)
    run(sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder, *only, *wanted, timeout=600)


def _extras() -> Sequence[str]:
    """The extras that the image is built with."""
    found = re.search(r'^ARG EXTRAS="([^"]*)"', (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found, "Dockerfile: expected ARG EXTRAS"
    return [extra for extra in found[1].split(",") if extra]


def _base(folder: Path) -> Path:
    """A file system of Debian's packages, unpacked and not configured, which is enough to run them."""
    tar = folder / "base.tar"
    names = ",".join(PACKAGES)
    run("mmdebstrap", "--quiet", "--variant=extract", f"--include={names}", SUITE, tar, timeout=600)
    return tar


def _stand_ins(one: Engine, base: Path) -> None:
    """Tag a stand-in with each name that the project's files give to an image that is not its own."""
    users = one.folder / "etc" / "passwd"
    users.parent.mkdir()
    users.write_text(USERS)
    where = ("-C", one.folder, "--transform=s,^etc,./etc,", "etc/passwd")
    run("tar", "--append", "--file", base, "--owner=0", "--group=0", *where)
    one.docker("import", base, "mdi-exit-test/base")
    base.unlink()
    context = one.folder / "stand-ins"
    for file in STAND_INS.iterdir():
        if file.is_file():
            shutil.copy(file, context)
    compose = (ROOT / "docker-compose.yml").read_text()
    of_others = r"^\s+image: ((?:eclipse-|prom/|grafana/)(mosquitto|prometheus|grafana):\S+)$"
    images = dict(re.findall(of_others, compose, re.MULTILINE))
    python = re.search(r"^ARG PYTHON_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert (len(images), bool(python)) == (3, True), images
    for image, target in {**images, python[1]: "python"}.items():
        one.docker("build", "--quiet", "--target", target, "--tag", image, context)


def _copy_project(project: Path) -> None:
    """The files that Compose and the build may see, as a fresh checkout has them."""
    files = run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/")):
            target = project / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
