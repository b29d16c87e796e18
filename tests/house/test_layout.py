"""Where things may stand: no drawer for odds and ends, empty package files, nothing that happens on import."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

DRAWERS = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "misc.py"}
QUIET = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.AnnAssign)
# Registering a command is what a typer module is for.
REGISTERS = ("add_typer", "callback", "command")


def is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def registers(node):
    call = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
    call = call.func if isinstance(call, ast.Call) else call
    return isinstance(call, ast.Attribute) and call.attr in REGISTERS


def is_guard(node):
    """`if TYPE_CHECKING:` and `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and any(name in ast.unparse(node.test) for name in ("TYPE_CHECKING", "__name__"))


def names_something(node):
    """`NAME = ...`; an assignment to `os.environ[...]` or `logging.x` changes the world instead."""
    return isinstance(node, ast.Assign) and all(isinstance(target, ast.Name | ast.Tuple) for target in node.targets)


def noise(source):
    """Statements of a module that do something when it is imported."""
    allowed = (names_something, is_docstring, registers, is_guard)
    return [node for node in source.tree.body if not isinstance(node, QUIET) and not any(rule(node) for rule in allowed)]


def reexports_from_elsewhere(source):
    """What an `__init__.py` takes from a folder other than its own."""
    own = source.name.removesuffix("/__init__.py").replace("/", ".")
    for node in source.tree.body:
        at_home = isinstance(node, ast.ImportFrom) and (node.module or "").startswith((own, "__future__"))
        if not (at_home or is_docstring(node) or names_something(node)):
            yield source.at(node)


def test_there_is_no_drawer_for_odds_and_ends(files, root):
    assert not [str(path.relative_to(root)) for path in files if path.name in DRAWERS]


def test_packages_name_only_what_their_own_folder_holds(house):
    assert not [place for s in house if s.name.endswith("__init__.py") for place in reexports_from_elsewhere(s)]


def test_tests_are_no_packages(files, root):
    """One in tests/model/ would hide the real package `model`."""
    assert not [str(path.relative_to(root)) for path in files if path.name == "__init__.py" and root / "tests" in path.parents]


def test_every_folder_of_code_is_a_package(house, root):
    folders = {(root / source.name).parent for source in house}
    assert not [str(folder.relative_to(root)) for folder in folders if not (folder / "__init__.py").exists()]


def test_nothing_happens_on_import(house):
    assert not [source.at(node) for source in house for node in noise(source)]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("model.config", {"torch", "transformers", "numpy", "PIL", "matplotlib"}),
        ("model.recipe", {"torch", "transformers", "numpy", "PIL", "matplotlib"}),
        ("pipelines.cli", {"torch", "transformers", "mlflow", "ray", "dvc", "kfp", "kubernetes"}),
    ],
)
def test_a_light_module_stays_light(module, heavy, root):
    """`biovlm --help` answers at once, because what is heavy is imported by the command that needs it."""
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_a_planted_act_on_import_is_seen(read):
    assert [node.lineno for node in noise(read('"""Doc."""\nimport os\nX = 1\nos.environ["A"] = "b"\nprint(X)\n'))] == [4, 5]
    assert not noise(read("app.command()(run)\nif __name__ == '__main__':\n    run()\n"))


def test_the_tests_mirror_the_house(files, root):
    """A folder of tests stands where the folder it tests stands, so that it is found without a search."""
    floors = [root / "tests" / floor for floor in ("pipelines", "components", "model", "infra")]
    folders = {path.parent for path in files for floor in floors if floor in path.parents and path.suffix == ".py"}
    strayed = [folder for folder in folders if not (root / folder.relative_to(root / "tests")).is_dir()]
    assert not strayed
