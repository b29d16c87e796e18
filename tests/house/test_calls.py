"""What may not be called: what runs the data it reads, what writes where an archive says, what hands a string to a shell."""

from __future__ import annotations

import ast

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {
    "eval": "runs its text",
    "exec": "runs its text",
    "torch.load": "unpickles; safetensors does not",
    "yaml.load": "builds any object; yaml.safe_load does not",
    "yaml.unsafe_load": "builds any object; yaml.safe_load does not",
    "numpy.load": "may unpickle; give allow_pickle=False or keep safetensors",
    "os.system": "hands a string to a shell",
    "os.popen": "hands a string to a shell",
}
FORBIDDEN_METHODS = {"extractall": "writes where the archive says; extract member by member after a look at each name"}
FORBIDDEN_KEYWORDS = {
    "trust_remote_code": "runs code of a download",
    "shell": "hands a string to a shell",
    "allow_pickle": "unpickles",
}
# Place -> why it may. Written here, so that a second one is a deliberate act.
EXCUSED: dict[str, str] = {}


def aliases(tree):
    """Local name -> full name, for what a module imports."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                name.asname or name.name.split(".")[0]: name.name if name.asname else name.name.split(".")[0]
                for name in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return found


def full_name(function, known):
    """`np.load` -> `numpy.load`; empty for what is not a plain dotted name."""
    head, _, rest = ast.unparse(function).partition(".")
    return ".".join(filter(None, (known.get(head, head), rest)))


def call_faults(call, known):
    name = full_name(call.func, known)
    if name in FORBIDDEN_CALLS:
        yield f"{name}: {FORBIDDEN_CALLS[name]}"
    if isinstance(call.func, ast.Attribute) and call.func.attr in FORBIDDEN_METHODS:
        yield f"{call.func.attr}: {FORBIDDEN_METHODS[call.func.attr]}"
    for keyword in call.keywords:
        off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
        if keyword.arg in FORBIDDEN_KEYWORDS and not off:
            yield f"{keyword.arg}: {FORBIDDEN_KEYWORDS[keyword.arg]}"


def faults(source):
    """(line, what) of everything forbidden in one file."""
    known = aliases(source.tree)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield from ((node.lineno, fault) for fault in call_faults(node, known))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            wrong = FORBIDDEN_MODULES & {name.split(".")[0] for name in names}
            yield from ((node.lineno, f"{name}: runs what it reads") for name in wrong)


def test_nothing_forbidden_is_called(sources):
    checked = [source for source in sources if source.floor != "tests"]
    found = [
        f"{s.name}:{line} {what}" for s in checked for line, what in faults(s) if f"{s.name}:{what.split(':')[0]}" not in EXCUSED
    ]
    assert not found


def test_each_forbidden_thing_is_seen_when_planted(read):
    planted = [
        "import pickle",
        "from dill import loads",
        "eval('1')",
        "exec(x)",
        "import torch as t\nt.load(p)",
        "from torch import load\nload(p)",
        "import yaml\nyaml.load(f)",
        "import numpy as np\nnp.load(p)",
        "archive.extractall(p)",
        "import os\nos.system(c)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "subprocess.run(c, shell=True)",
        "subprocess.run(c, shell=flag)",
    ]
    assert [text for text in planted if not list(faults(read(text)))] == []


def test_what_resembles_it_is_let_through(read):
    innocent = "import yaml\nyaml.safe_load(f)\nmodel.eval()\nregistry.load(p)\nrun(c, shell=False, trust_remote_code=False)\n"
    assert not list(faults(read(innocent)))
