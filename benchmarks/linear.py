"""Time and memory against the number of items: preparing and planning 10,000, 100,000 and a million questions about 100 images.

Each size in a process of its own, with the calls that `run_stage` makes before its first step: open and verify the data set, tokenise,
plan; then a thousand steps of the plan with their examples. `anonymous_mib` is what the process holds beyond its start (RssAnon), which
must not grow with the items: ids, plan and paths lie in files that are mapped into memory.
BIOVLM_BENCH_ITEMS names other sizes, separated by commas.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from model import manifest
from model.architecture import heap
from model.config import Mixture, Packing, Template
from model.data.loading import Plan, Prompter, Rules, examples, open_dataset
from model.training.base_language import make_tokenizer

ITEMS = (10_000, 100_000, 1_000_000)
IMAGES, IMAGE_TOKENS, STEPS = 100, 576, 1_000
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)
"""A PNG of one grey pixel; no pixel is decoded here."""


def measure() -> dict[str, float]:
    """Seconds, processor seconds and MiB of every size."""
    asked = os.environ.get("BIOVLM_BENCH_ITEMS")
    found: dict[str, float] = {}
    for items in map(int, asked.split(",")) if asked else ITEMS:
        with tempfile.TemporaryDirectory(prefix="biovlm-linear-") as folder:
            _write(Path(folder, "set"), items)
            command = [sys.executable, "-m", "benchmarks.linear", str(Path(folder, "set"))]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        found |= {f"items_{items}_{name}": value for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
    return found


def prepare(folder: Path) -> dict[str, float]:
    """In the process that is measured."""
    words = make_tokenizer(["Is there a nodule in image number 12345?", "yes", "no"] * 20)
    prompter = Prompter(words, Template.VICUNA_V1, "", IMAGE_TOKENS)
    before, began = anonymous_mib(), time.process_time()
    dataset = open_dataset(folder)
    opened = time.process_time()
    learned = examples([Mixture(set="bench")], {"bench": dataset}, prompter, 2048)
    tokenised = time.process_time()
    plan = Plan(learned.metadata, Rules(4096, 4096, Packing.SHARED_IMAGE), 1, seed=0, epochs=2)
    heap.give_back()
    planned = time.process_time()
    shown = 0
    for number in range(min(STEPS, len(plan))):
        shown += sum(learned[index].num_tokens for rank in plan[number] for passed in rank for index in passed)
    return {
        "open_cpu_seconds": opened - began,
        "tokenise_cpu_seconds": tokenised - opened,
        "plan_two_epochs_cpu_seconds": planned - tokenised,
        "steps_cpu_seconds": time.process_time() - planned,
        "anonymous_mib": anonymous_mib() - before,
        "tokens_shown": float(shown),
    }


def anonymous_mib() -> float:
    """RssAnon of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


def _write(folder: Path, items: int) -> None:
    with manifest.commit(folder, kind="data", facts={"name": "bench", "synthetic": True}) as aside:
        (aside / "images").mkdir()
        (aside / "records").mkdir()
        for number in range(IMAGES):
            (aside / "images" / f"{number}.png").write_bytes(PIXEL)
        with (aside / "records" / "train.jsonl").open("w") as stream:
            for number in range(items):
                image = number % IMAGES
                turns = [
                    {"role": "user", "text": f"Is there a nodule in image number {number}?"},
                    {"role": "assistant", "text": "yes"},
                ]
                record = {
                    "id": str(number),
                    "group": str(image),
                    "kind": "question",
                    "images": [f"images/{image}.png"],
                    "turns": turns,
                }
                stream.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    print(json.dumps(prepare(Path(sys.argv[1]))))
