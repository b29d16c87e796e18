"""The documents tell the truth: links lead somewhere, the file tree is the real one, and no file says where packages come from."""

from __future__ import annotations

import re

LINK = re.compile(r"\[[^\]\n]*\]\((?!https?:|mailto:)([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
TREE_ROOM = re.compile(r"^(?:[\u2500-\u257f ]*)([\w.-]+)/(?:\s|$)", re.M)
# Put together here, so that this file is not its own first finding.
ADDRESSES = [
    ".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("download", "pytorch", "org"), ("npmjs", "org"))
]
PLACES = ["/" + "opt/", "/" + "work/", "/" + "root/"]


def anchors(text):
    """The names GitHub gives to headings."""
    titles = re.findall(r"^#+ +(.+?)\s*$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(path):
    text = path.read_text()
    for target in LINK.findall(FENCE.sub("", text)):
        name, _, anchor = target.partition("#")
        there = (path.parent / name) if name else path
        if not there.exists():
            yield f"{path.name}: {target}"
        elif anchor and there.suffix == ".md" and anchor not in anchors(there.read_text()):
            yield f"{path.name}: {target} (no such heading)"


def texts(files):
    for path in files:
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def test_links_lead_somewhere(files):
    assert not [dead for path in files if path.suffix == ".md" for dead in dead_links(path)]


def test_a_dead_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](#one-two) [b](#three) [c](gone.md) [d](page.md)\n```\n[e](code.md)\n```\n")
    assert list(dead_links(page)) == ["page.md: #three (no such heading)", "page.md: gone.md"]


def test_the_readme_draws_the_tree_that_is_there(files, root):
    """Its first code block that names `pipelines/` is the tree: each folder at the root, each with a line."""
    blocks = [block for block in FENCE.findall((root / "README.md").read_text()) if re.search(r"^\W*pipelines/", block, re.M)]
    assert blocks, "README.md has no code block with the file tree"
    drawn = set(TREE_ROOM.findall(blocks[0]))
    real = {path.relative_to(root).parts[0] for path in files if len(path.relative_to(root).parts) > 1}
    assert {room for room in real if not room.startswith(".")} <= drawn, "a folder at the root is missing in README.md's tree"
    inside = {path.parent.name for path in files} | real | {parent.name for path in files for parent in path.parents}
    assert drawn <= inside, "README.md's tree names a folder that is not there"


def test_no_file_names_a_registry_or_a_place_of_one_machine(files, root):
    found = [f"{path.relative_to(root)}: {word}" for path, text in texts(files) for word in [*ADDRESSES, *PLACES] if word in text]
    assert not found


def test_text_files_end_with_a_line_end_and_carry_no_carriage_returns(files, root):
    kinds = {".py", ".md", ".toml", ".yaml", ".yml", ".txt"}
    kept = [(path, text) for path, text in texts(files) if path.suffix in kinds]
    assert not [str(path.relative_to(root)) for path, text in kept if "\r" in text or (text and not text.endswith("\n"))]
