from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CLIPVisionModel

from model.architecture.assembly import build
from model.config import ModelSource
from model.errors import ConfigError, DataError, MissingInputError, RefusedError
from tests.model.tiny_bases import IMAGE_TOKENS, WIDTH, language_config, model_settings, tokenizer, tower_config


@pytest.fixture
def local(bases: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the language model as a plain local folder, to be damaged."""
    folder = tmp_path / "language"
    shutil.copytree(bases["language"], folder)
    (folder / "manifest.json").unlink()
    return folder


def build_from(folder: Path, bases: dict[str, Path]) -> None:
    build(model_settings(language={"source": str(folder)}), bases, seed=0)


def test_the_parts_stand_in_the_assistant_as_they_were(bases: dict[str, Path]) -> None:
    assistant = build(model_settings(), bases, seed=0)
    tower = CLIPVisionModel.from_pretrained(str(bases["tower"])).state_dict()
    language = AutoModelForCausalLM.from_pretrained(str(bases["language"])).state_dict()
    inside = assistant.model.state_dict()
    assert all(torch.equal(inside[f"model.vision_tower.{name}"], weight) for name, weight in tower.items())
    for name, weight in language.items():
        inner = name if name.startswith("lm_head") else f"model.language_model.{name.removeprefix('model.')}"
        assert torch.equal(inside[inner], weight)
    assert len(inside) == len(tower) + len(language) + 4
    assert assistant.image_tokens == IMAGE_TOKENS
    assert assistant.model.config.image_token_id == assistant.tokenizer.convert_tokens_to_ids("<image>")


def test_only_the_seed_decides_the_connector(bases: dict[str, Path]) -> None:
    first, again, other = (build(model_settings(), bases, seed).connector.linear_1.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_linear_connector_is_one_linear_layer(bases: dict[str, Path]) -> None:
    connector = build(model_settings(connector={"kind": "linear"}), bases, seed=0).connector
    features = torch.randn(3, WIDTH)
    assert torch.equal(connector(features), connector.linear_1(features))


def test_random_weights_of_inline_configs_come_from_the_seed(bases: dict[str, Path]) -> None:
    settings = model_settings(
        tower={"config": {"model_type": "clip_vision_model"} | tower_config().to_dict()},
        language={"config": language_config(len(tokenizer())).to_dict() | {"tokenizer": "registry:language"}},
    )
    first, again = (build(settings, bases, 3).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_language_model_without_placeholder_gets_one_that_is_no_likely_answer(bases: dict[str, Path], local: Path) -> None:
    text = (local / "tokenizer.json").read_text().replace('"<image>"', '"<other>"')
    (local / "tokenizer.json").write_text(text)
    assistant = build(model_settings(language={"source": str(local)}), bases, seed=0)
    old = len(tokenizer())
    assert assistant.image_token_id == old
    head = assistant.model.lm_head.weight
    assert head.shape[0] == old + 1
    torch.testing.assert_close(head[old], head[:old].mean(dim=0))


def add_auto_map(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil--modeling.Evil"}}))


def add_nested_code(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inner": [{"trust_remote_code": True}]}))


def set_unknown_type(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "evil"}))


def add_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def disguise_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(64))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def lead_out(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))


@pytest.mark.parametrize(
    "damage",
    [add_auto_map, add_nested_code, set_unknown_type, add_pickle, disguise_pickle, cut, lead_out],
    ids=lambda f: f.__name__,
)
def test_a_base_model_that_could_run_code_is_refused(bases: dict[str, Path], local: Path, damage: Callable[[Path], None]) -> None:
    build_from(local, bases)
    damage(local)
    with pytest.raises(RefusedError):
        build_from(local, bases)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop(NORM),
        lambda weights: weights.update(extra=torch.zeros(1)),
        lambda weights: weights[NORM].fill_(float("nan")),
    ],
    ids=["missing", "unknown", "not finite"],
)
def test_weights_are_all_accounted_for_and_finite(
    bases: dict[str, Path], local: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    rewrite(local, change)
    with pytest.raises(DataError):
        build_from(local, bases)


def test_a_changed_registry_model_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(bases["tower"], tmp_path / "tower")
    with open(tmp_path / "tower" / "model.safetensors", "r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    with pytest.raises(RefusedError, match="SHA-256"):
        build(model_settings(), bases | {"tower": tmp_path / "tower"}, seed=0)


def test_a_hub_name_needs_its_commit(bases: dict[str, Path]) -> None:
    for revision in (None, "main"):
        settings = model_settings().model_copy(update={"language": ModelSource(source="org/name", revision=revision)})
        with pytest.raises(ConfigError, match="revision"):
            build(settings, bases, seed=0)


def test_what_does_not_fit_is_said_with_both_numbers(bases: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="-9, the tower has 2 layers"):
        build(model_settings(feature_layer=-9), bases, seed=0)
    with pytest.raises(ConfigError, match=r"1,024, .* 512"):
        build(model_settings(context_tokens=1024), bases, seed=0)
    with pytest.raises(MissingInputError, match="'language'"):
        build(model_settings(), {"tower": bases["tower"]}, seed=0)
