"""The champion's export with transformers alone, in a process that does not know biovlm: the same greedy answers as were evaluated.

Needs a home with a finished run of tiny (`make demo`; $BIOVLM_HOME says where). Asks every n-th test question, 50 in all.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from components.platform.settings import Settings
from components.platform.tracking import Tracking
from model import manifest
from model import recipe as recipes
from model.data.dataset import open_dataset
from model.evaluation.results import ITEMS, read_items, read_report

RECIPES = Path(__file__).parents[1] / "pipelines" / "recipes"
QUESTIONS = 50
ALONE = """
import json, sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model, processor = AutoModelForImageTextToText.from_pretrained(sys.argv[1]), AutoProcessor.from_pretrained(sys.argv[1])
answers = []
for image, question in json.load(open(sys.argv[2])):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    given = processor(images=Image.open(image).convert("RGB"), text=text, return_tensors="pt", add_special_tokens=False)
    out = model.generate(**given, max_new_tokens=int(sys.argv[3]))[0, given["input_ids"].shape[1] :]
    answers.append(processor.tokenizer.decode(out, skip_special_tokens=True).strip())
assert not {"model", "components", "pipelines", "peft"} & set(sys.modules), "more than transformers"
print(json.dumps(answers))
"""


def measure() -> dict[str, float]:
    """Questions asked, and answers that are equal."""
    settings, recipe = Settings.from_environment(), recipes.load("tiny", RECIPES, ())
    tags = Tracking(settings).version_tags(recipe.registered_model, "champion")
    if tags is None:
        raise SystemExit(f"no champion of {recipe.registered_model} in {settings.home}\nhint: run `make demo` first")
    items = _evaluated(settings.store, tags["biovlm.report"])
    asked = items[:: max(1, len(items) // QUESTIONS)][:QUESTIONS]
    with tempfile.TemporaryDirectory() as folder:
        questions = Path(folder) / "questions.json"
        questions.write_text(json.dumps([(image, question) for _, image, question in asked]), encoding="utf-8")
        export = settings.store / tags["biovlm.export"]
        command = [sys.executable, "-P", "-c", ALONE, str(export), str(questions), str(recipe.evaluation.max_new_tokens)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout.splitlines()[-1])
    equal = sum(answer == prediction for answer, (prediction, _, _) in zip(answers, asked, strict=True))
    return {"questions": float(len(asked)), "equal_answers": float(equal)}


def _evaluated(store: Path, report_digest: str) -> list[tuple[str, str, str]]:
    """Prediction, image file and question of every item of the report with that digest."""
    folder = next(path.parent for path in store.rglob(ITEMS) if manifest.read(path.parent).digest == report_digest)
    (benchmark,) = read_report(folder).benchmarks
    dataset = open_dataset(store / "data" / f"{benchmark.set}-{benchmark.set_digest[:16]}", verify=False)
    records = {record.id: record for record in dataset.records(benchmark.split)}
    found = [(item.prediction, records[item.id]) for item in read_items(folder)]
    return [(prediction, str(dataset.path(record.images[0])), record.question) for prediction, record in found]
