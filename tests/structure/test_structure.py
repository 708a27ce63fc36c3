"""The house rules that a reader would otherwise have to check by eye."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("broker", "dashboards", "edge_agent", "mdi_exit", "source")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "manager"}


def test_there_are_files() -> None:
    assert len(FILES) > 50


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short_well_named_and_does_not_assert(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 700
    assert path.stem not in FORBIDDEN_NAMES
    tree = ast.parse(source)
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)], "no assert in package code"
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not names & {"marshal", "shelve", "dill"}
    assert "pickle.load" not in source, "nothing is ever unpickled"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_is_public_and_each_name_is_there(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if all(isinstance(node, ast.Expr) for node in tree.body):
        return  # nothing but a docstring
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == ["__all__"]
    ]
    assert len(set(names)) == len(names)
    defined = {
        name
        for node in ast.walk(tree)
        for name in (
            [node.name]
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            else [alias.asname or alias.name for alias in node.names]
            if isinstance(node, ast.Import | ast.ImportFrom)
            else [node.id]
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            else []
        )
    }
    dynamic = "__getattr__" in defined
    assert dynamic or set(names) <= defined
    assert ast.get_docstring(tree), "a module says what it is for"


def _pure_core() -> list[str]:
    """The modules that the import contract of the core names."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (modules,) = [contract["source_modules"] for contract in contracts if contract["name"] == "the core is pure"]
    assert {"mdi_exit.worker_state", "mdi_exit.source_state", "mdi_exit.wire"} <= set(modules)
    return list(modules)


def test_the_core_loads_no_event_loop_no_arrays_and_no_transport() -> None:
    modules = ", ".join(_pure_core())
    code = f"import sys; before = set(sys.modules); import {modules}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"asyncio", "numpy", "torch", "onnx", "onnxruntime", "aiomqtt", "paho", "logging", "psutil"}


def test_the_import_contracts_hold() -> None:
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert linter, "import-linter is part of the dev extra"
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout


def test_programs_import_no_torch() -> None:
    code = "import sys, edge_agent.app, source.app, mdi_exit.cli, mdi_exit.demo.run; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_an_agent_imports_no_onnx() -> None:
    code = "import sys, edge_agent.app; print('onnx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
