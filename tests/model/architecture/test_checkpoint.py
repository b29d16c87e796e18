from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from model import manifest
from model.architecture import adapters, checkpoint
from model.architecture.assembly import Assistant, build
from model.config import Lora
from model.errors import BiovlmError, ConfigError, DataError, MissingInputError, RefusedError
from tests.model.tiny_bases import IMAGE_SIZE, IMAGE_TOKENS, make_language, model_settings

LORA = Lora(rank=4, alpha=8)
ADAPTER = "adapters/1-instruct"


def logits_of(assistant: Assistant) -> torch.Tensor:
    torch.manual_seed(5)
    pixels = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    ids = torch.tensor([[assistant.image_token_id] * IMAGE_TOKENS + list(range(40, 60))])
    with torch.no_grad():
        return assistant.model(input_ids=ids, pixel_values=pixels).logits


def trained(assistant: Assistant, seed: int) -> Assistant:
    """With an adapter that does something, as if trained."""
    assistant = adapters.attach(assistant, LORA, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in adapters.parameters(assistant).values():
            weight.normal_(std=0.2)
    return assistant


@pytest.fixture
def saved(bases: dict[str, Path], tmp_path: Path) -> tuple[Path, Assistant]:
    assistant = trained(build(model_settings(), bases, seed=4), 1)
    checkpoint.save(tmp_path / "instruct", assistant, "instruct", {"data:phantom": "0" * 64}, {"step": 3})
    return tmp_path / "instruct", assistant


def test_a_saved_assistant_comes_back_merged_or_not(bases: dict[str, Path], saved: tuple[Path, Assistant]) -> None:
    folder, assistant = saved
    before = logits_of(assistant)
    attached, merged = checkpoint.load(folder, bases), checkpoint.load(folder, bases, merge=True)
    assert torch.equal(logits_of(attached), before)
    # Measured 5e-6: the sum of weights is rounded once. Without the adapter the difference is above 0.1.
    torch.testing.assert_close(logits_of(merged), before, atol=3e-5, rtol=0)
    assert (logits_of(build(model_settings(), bases, seed=4)) - before).abs().max() > 0.1
    assert attached.adapter is not None
    assert (merged.adapter, [path.name for path in merged.merged]) == (None, ["1-instruct"])


def test_two_adapters_travel_in_order(bases: dict[str, Path], saved: tuple[Path, Assistant], tmp_path: Path) -> None:
    second = trained(checkpoint.load(saved[0], bases, merge=True), 2)
    record = checkpoint.save(tmp_path / "task", second, "task", {"parent": "1" * 64}, {})
    assert record.facts["adapters"] == ["1-instruct", "2-task"]
    shutil.rmtree(saved[0])  # the checkpoint is whole without its parent
    torch.testing.assert_close(logits_of(checkpoint.load(tmp_path / "task", bases)), logits_of(second))
    torch.testing.assert_close(
        logits_of(checkpoint.load(tmp_path / "task", bases, merge=True)), logits_of(second), atol=3e-5, rtol=0
    )


def test_equal_weights_have_equal_names(saved: tuple[Path, Assistant], tmp_path: Path) -> None:
    again = checkpoint.save(tmp_path / "again", saved[1], "instruct", {"data:phantom": "0" * 64}, {"step": 3})
    assert again.digest == manifest.read(saved[0]).digest


def test_peft_alone_reads_the_adapter(bases: dict[str, Path], saved: tuple[Path, Assistant]) -> None:
    folder, assistant = saved
    plain = build(model_settings(), bases, seed=4)
    theirs = PeftModel.from_pretrained(plain.model, str(folder / ADAPTER))
    assert torch.equal(logits_of(dataclasses.replace(plain, model=theirs)), logits_of(assistant))


def test_an_adapter_changes_the_language_model_alone(saved: tuple[Path, Assistant]) -> None:
    names = adapters.parameters(saved[1])
    assert len(names) == 2 * 7 * 2
    assert all(name.startswith("model.language_model.layers.") for name in names)


def test_a_target_that_is_no_layer_is_refused_with_those_that_are(bases: dict[str, Path]) -> None:
    assistant = build(model_settings(), bases, seed=4)
    for target in ("lm_head", "linear_1", "fc1", "self_attn"):
        with pytest.raises(ConfigError, match="down_proj, gate_proj, k_proj"):
            adapters.attach(assistant, Lora(targets=("q_proj", target)), 0)


@pytest.mark.parametrize(
    "name", ["connector.safetensors", f"{ADAPTER}/adapter_model.safetensors", f"{ADAPTER}/adapter_config.json"]
)
@pytest.mark.parametrize("act", ["change", "remove", "add"])
def test_a_tampered_checkpoint_is_refused(bases: dict[str, Path], saved: tuple[Path, Assistant], name: str, act: str) -> None:
    path = saved[0] / name
    if act == "change":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif act == "remove":
        path.unlink()
    else:
        path.with_name("extra").write_bytes(b"")
    with pytest.raises(RefusedError):
        checkpoint.load(saved[0], bases)


def test_other_base_models_are_refused(bases: dict[str, Path], saved: tuple[Path, Assistant], tmp_path: Path) -> None:
    other = make_language(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    with manifest.commit(other, "base") as folder:
        shutil.copytree(bases["language"], folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RefusedError, match="was trained on the language"):
        checkpoint.load(saved[0], bases | {"language": other})


def edit_tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        weights = load_file(folder / name)
        change(weights)
        save_file(weights, folder / name)

    return act


def edit_settings(**changes: object) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / ADAPTER / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return act


CONNECTOR, WEIGHTS = "connector.safetensors", f"{ADAPTER}/adapter_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (edit_tensors(CONNECTOR, lambda w: w["linear_1.bias"].fill_(float("inf"))), DataError),
        (edit_tensors(CONNECTOR, lambda w: w.pop("linear_1.bias")), DataError),
        (edit_tensors(CONNECTOR, lambda w: w.update({"linear_1.bias": torch.zeros(3)})), DataError),
        (edit_tensors(WEIGHTS, lambda w: w.update(extra=torch.zeros(3))), DataError),
        (edit_tensors(WEIGHTS, lambda w: next(iter(w.values())).fill_(float("nan"))), DataError),
        (lambda folder: (folder / CONNECTOR).write_bytes(b"\x80\x04pickle"), RefusedError),
        (lambda folder: (folder / WEIGHTS).unlink(), MissingInputError),
        (edit_settings(modules_to_save=["lm_head"]), RefusedError),
        (edit_settings(target_modules=".*"), RefusedError),
        (edit_settings(use_dora=True), RefusedError),
        (edit_settings(base_model_name_or_path="evil/repository"), RefusedError),
        (edit_settings(r="many"), DataError),
    ],
)
def test_content_is_checked_even_where_the_manifest_agrees(
    bases: dict[str, Path], saved: tuple[Path, Assistant], damage: Callable[[Path], None], error: type[BiovlmError]
) -> None:
    folder, _ = saved
    record = manifest.read(folder)
    with manifest.commit(folder, record.kind, record.parents, record.facts) as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True)
        (aside / "manifest.json").unlink()
        damage(aside)
    manifest.verify(folder)
    with pytest.raises(error):
        checkpoint.load(folder, bases)


def test_an_artifact_of_another_kind_is_no_checkpoint(bases: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="its kind is 'base'"):
        checkpoint.load(bases["tower"], bases)
