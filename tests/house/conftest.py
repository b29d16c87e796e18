"""What the rules of the house look at: the Python files and all files that git keeps or would keep."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("pipelines", "components", "model")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One Python file: its name from the root, its text and its syntax tree."""

    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=self.name)

    @property
    def floor(self) -> str:
        return self.name.split("/", 1)[0]

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def at(self, node: ast.AST) -> str:
        return f"{self.name}:{getattr(node, 'lineno', 0)}"


def kept_files(root: Path) -> list[Path]:
    """Files in git, and new ones that git would not ignore; what stands on disk where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [root / name for name in sorted(set(listed.stdout.split("\0"))) if name and (root / name).is_file()]
    hidden = {".venv", ".git", ".biovlm", "build", "dist"}
    return [path for path in sorted(root.rglob("*")) if path.is_file() and not hidden & set(path.relative_to(root).parts)]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def files() -> list[Path]:
    return kept_files(ROOT)


@pytest.fixture(scope="session")
def sources(files: list[Path]) -> list[Source]:
    """Every Python file of the project, tests included."""
    return [Source(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in files if path.suffix == ".py"]


@pytest.fixture(scope="session")
def house(sources: list[Source]) -> list[Source]:
    """The Python files of the three floors."""
    return [source for source in sources if source.floor in FLOORS]


@pytest.fixture(scope="session")
def read() -> Callable[[str], Source]:
    """Makes a source out of a text, for the tests that plant a fault."""
    return lambda text: Source("planted.py", text)
