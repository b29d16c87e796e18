from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from model import manifest
from model.architecture import adapters, checkpoint
from model.architecture.assembly import Assistant, build
from model.architecture.export import export
from model.config import Lora
from model.data.records import Role, Turn
from model.data.templates import Prompter, chat_template
from tests.model.tiny_bases import WIDTH, model_settings

SYSTEM = "You are careful."
QUESTION = "Which organ is shown?"
NEW_TOKENS = 24
ALONE = """
import sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model, processor = AutoModelForImageTextToText.from_pretrained(sys.argv[1]), AutoProcessor.from_pretrained(sys.argv[1])
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sys.argv[3]}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
given = processor(images=Image.open(sys.argv[2]), text=text, return_tensors="pt", add_special_tokens=False)
print(given["input_ids"][0].tolist())
print(model.generate(**given, max_new_tokens=int(sys.argv[4]))[0, given["input_ids"].shape[1] :].tolist())
assert not any(name.split(".")[0] in ("model", "peft") for name in sys.modules if name in ("model", "peft")), "more than transformers"
"""


def exported(bases: dict[str, Path], tmp_path: Path, connector: str) -> tuple[Assistant, Prompter, Path]:
    """An assistant with an adapter that does something, and its export."""
    assistant = build(model_settings(system=SYSTEM, connector={"kind": connector}), bases, seed=4)
    assistant = adapters.attach(assistant, Lora(rank=4, alpha=8), 1)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in adapters.parameters(assistant).values():
            weight.normal_(std=0.3)
    checkpoint.save(tmp_path / "checkpoint", assistant, "instruct", {}, {})
    prompter = Prompter(assistant.tokenizer, assistant.template, SYSTEM, assistant.image_tokens)
    template = chat_template(assistant.template, SYSTEM)
    export(tmp_path / "checkpoint", bases, tmp_path / "export", template, prompter.end_token_id)
    return assistant, prompter, tmp_path / "export"


def test_transformers_alone_gives_the_same_greedy_answer(bases: dict[str, Path], tmp_path: Path) -> None:
    assistant, prompter, folder = exported(bases, tmp_path, "mlp2x_gelu")
    assert manifest.verify(folder).parents["checkpoint"] == manifest.read(tmp_path / "checkpoint").digest
    Image.effect_noise((40, 30), 80).convert("RGB").save(tmp_path / "image.png")
    ids = prompter.prompt([Turn(role=Role.USER, text=QUESTION)], 1)
    given = torch.tensor([ids])
    ours = assistant.model.generate(
        input_ids=given,
        attention_mask=torch.ones_like(given),
        pixel_values=assistant.image_processor(images=Image.open(tmp_path / "image.png"), return_tensors="pt")["pixel_values"],
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=prompter.end_token_id,
        pad_token_id=prompter.pad_token_id,
    )[0, len(ids) :].tolist()
    command = [sys.executable, "-c", ALONE, str(folder), str(tmp_path / "image.png"), QUESTION, str(NEW_TOKENS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(ids), str(ours)]


def test_a_linear_connector_is_exported_as_plain_llava(bases: dict[str, Path], tmp_path: Path) -> None:
    assistant, _, folder = exported(bases, tmp_path, "linear")
    theirs = AutoModelForImageTextToText.from_pretrained(str(folder))
    features = torch.randn(2, WIDTH)
    assert torch.equal(theirs.model.multi_modal_projector(features), assistant.connector(features))
