"""The house: imports run downwards only, without circles, the links point home, and help needs no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import personality

PACKAGE = Path(personality.__file__).parent
ROOT = PACKAGE.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def floor(module: str) -> int:
    """1 manifests, 2 vectors, 3 the rest, 4 the command line."""
    room = module.split(".")[1] if "." in module else ""
    if module == "personality.__main__":
        return 4
    return {"manifests": 1, "vectors": 2, "cli": 4}.get(room, 3)


def imports_of(module: str) -> set[str]:
    """Modules of this package that a module imports anywhere, inside functions and type-checking blocks too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            base = node.module or ""
            # `from package import module` names a module; `from module import name` does not.
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return {name for name in found if name in MODULES}


GRAPH = {module: imports_of(module) for module in MODULES}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_downwards(module: str) -> None:
    # The package's own __init__ holds the version number and imports nothing: it is the ground under every room.
    upward = {name for name in GRAPH[module] if floor(name) > floor(module) and name != "personality"}
    assert not upward, f"{module} (floor {floor(module)}) imports {sorted(upward)}"


def test_the_package_itself_imports_nothing() -> None:
    assert GRAPH["personality"] == set()


def test_no_circles() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for name in GRAPH[module]:
                visit(name, (*path, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


def test_only_the_command_prints() -> None:
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{module}:{node.lineno} prints"


@pytest.mark.parametrize("room", ["vectors", "manifests", "cli"])
def test_links_at_the_root_point_home(room: str) -> None:
    link = ROOT / room
    assert link.is_symlink()
    assert link.resolve() == PACKAGE / room
    tracked = subprocess.run(
        ["git", "ls-files", "--stage", room], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert tracked.startswith("120000"), f"{room} is not a tracked link: {tracked!r}"


@pytest.mark.parametrize("arguments", [["--help"], ["add", "--help"], ["export", "--help"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from personality.cli.main import run\n"
        f"assert run({arguments!r}) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'mergekit', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_ground_floor_imports_no_torch() -> None:
    rooms = [name for name in MODULES if floor(name) == 1]
    code = (
        f"import importlib, sys\nfor name in {rooms!r}: importlib.import_module(name)\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_room_says_what_it_is() -> None:
    for module, path in MODULES.items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert text and "TODO" not in text, f"{module} has no docstring"


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_no_dead_links_and_no_gaps(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "@" * 2 not in text
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or (page.parent / target).exists(), target
    for target in re.findall(r"\b(?:docs|examples|tests|personality)/[\w/]+\.(?:md|py)", text):
        assert (ROOT / target).exists(), target
