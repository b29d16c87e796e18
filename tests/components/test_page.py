"""The lineage's page in a real browser, as a person sees it on a screen and on a telephone."""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
import subprocess

import pytest

from components.platform.lineage.graph import Edge, Kind, Node, document
from components.platform.lineage.page import render
from model.manifest import digest_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.lane,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page's layout is not looked at"),
]
SECONDS = 120
# The frame has the width of the screen; it measures itself once it is laid out.
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0"><iframe style="border:0;width:{width}px;height:900px"
srcdoc="{page}"></iframe><script>
addEventListener("load", () => {{
  const inside = document.querySelector("iframe").contentDocument, found = {{}};
  const shown = [...inside.querySelectorAll("section > svg")].filter(one => one.getBoundingClientRect().width > 0);
  found.overflow = inside.documentElement.scrollWidth - {width};
  found.graphs = shown.map(one => one.getAttribute("class"));
  found.boxes = shown.flatMap(one => [...one.querySelectorAll("a")]).length;
  found.lines = shown.flatMap(one => [...one.querySelectorAll("path")]).length;
  found.outside = shown.flatMap(one => [...one.querySelectorAll("a")]).flatMap(box => {{
    const frame = box.querySelector("rect").getBoundingClientRect();
    const words = [...box.querySelectorAll("text")];
    return words.filter(one => one.getBoundingClientRect().right > frame.right + 0.5).map(one => one.textContent);
  }});
  found.small = shown.flatMap(one => [...one.querySelectorAll("text")])
    .filter(one => one.textContent && one.getBoundingClientRect().height < 9).length;
  found.hidden = [...inside.querySelectorAll("h1,h2,h3,dt,dd")].filter(one => one.getBoundingClientRect().right > {width} + 0.5).length;
  document.body.insertAdjacentHTML("beforeend", "<pre id=found></pre>");
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script>"""


def large(sets=9):
    """A version with long names: three stages, nine data sets, two base models, each with its licence."""
    top = Node.of(Kind.VERSION, "a-hospital-with-a-rather-long-name-radiology-assistant-of-the-night-shift/12345")
    stages = [Node.of(Kind.CHECKPOINT, name, digest_of(name), seed=7, records=123_456) for name in ("align", "instruct", "task")]
    sources = [Node.of(Kind.SET, f"set-of-many-words-number-{number}-WWWW", digest_of(number)) for number in range(sets)]
    sources += [Node.of(Kind.BASE, name, digest_of(name)) for name in ("language-model", "vision-tower")]
    terms = [Node.of(Kind.LICENCE, f"LicenseRef-of-the-holder-of-set-{number}") for number in range(len(sources))]
    edges = [Edge(source=top.id, target=stages[-1].id, role="weights of")]
    edges += [Edge(source=later.id, target=before.id, role="continues") for before, later in itertools.pairwise(stages)]
    edges += [Edge(source=stages[number % 3].id, target=one.id, role="learned from") for number, one in enumerate(sources)]
    edges += [Edge(source=one.id, target=other.id, role="under") for one, other in zip(sources, terms, strict=True)]
    return document(top, [*stages, *sources, *terms], edges)


def looked_at(folder, shown, width):
    """What the browser says of the page at a width."""
    path = folder / f"{width}.html"
    path.write_text(FRAME.format(width=width, page=html.escape(render(shown))), encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command += [f"--window-size={width + 200},1000", "--virtual-time-budget=5000", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', dom)
    return json.loads(html.unescape(found))


@pytest.mark.parametrize(("width", "graph"), [(1280, "screen"), (400, "telephone")])
def test_the_page_fits_the_screen_and_no_word_leaves_its_box(tmp_path, width, graph):
    found = looked_at(tmp_path, large(), width)
    assert found["graphs"] == [graph]
    assert found["overflow"] <= 0
    assert found["outside"] == []
    assert found["hidden"] == 0
    assert found["small"] == 0
    assert found["boxes"] >= 10
    assert found["lines"] >= found["boxes"] - 1
