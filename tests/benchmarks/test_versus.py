"""The side-by-side harness: equal weights, equal documents, honest slopes, an audit that sees a leak."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from benchmarks.versus import models, tables, workloads
from benchmarks.versus.adapters import job as jobs
from model.data.loading import open_dataset

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return models.make(tmp_path_factory.mktemp("models"), models.TINY, workloads.texts(), TOWER)


@pytest.fixture(scope="module")
def packed(bases):
    """A tiny LLaVA with two documents of one image each in a row: model, inputs, and a mask that keeps them apart."""
    model = LlavaForConditionalGeneration.from_pretrained(bases.llava)
    image, each = model.config.image_token_id, 10
    ids = torch.arange(20, 40)[None]
    ids[0, [1, 2, 3, 4, 11, 12, 13, 14]] = image
    labels = ids.clone()
    labels[0, [*range(7), *range(10, 17)]] = jobs.IGNORE
    apart = torch.block_diag(*[torch.ones(each, each)] * 2).tril().bool()[None, None]
    pixels = torch.randn(2, 3, 28, 28)
    inputs = {"input_ids": ids, "labels": labels, "pixel_values": pixels, "position_ids": torch.arange(each).repeat(2)[None]}
    return model, inputs, apart


def test_the_peers_read_the_very_weights_that_ours_is_built_from(bases):
    models.check_same(bases)


def test_one_changed_weight_is_told(bases, tmp_path):
    changed = models.Bases(bases.tower, bases.language, tmp_path / "llava")
    changed.llava.mkdir()
    for path in bases.llava.iterdir():
        (changed.llava / path.name).write_bytes(path.read_bytes())
    weights = load_file(changed.llava / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 1
    save_file(weights, changed.llava / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="1 of"):
        models.check_same(changed)


def test_both_sizes_of_a_workload_hold_the_same_documents_as_list_and_as_data_set(tmp_path):
    small, large = workloads.make("slake_like", tmp_path, (1, 2))
    assert (small.documents, large.documents) == (11, 22)
    listed = [json.loads(line) for line in large.listed.read_text().splitlines()]
    records = open_dataset(large.dataset).records("train")
    assert [(d["id"], d["question"], d["answer"]) for d in listed] == [
        (record.id, *(turn.text for turn in record.turns)) for record in records
    ]
    assert small.listed.read_text().splitlines() == large.listed.read_text().splitlines()[:11]


def test_vqa_rad_is_asked_for_by_name_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv(workloads.VQA_RAD, raising=False)
    with pytest.raises(workloads.MissingDataError, match=workloads.VQA_RAD):
        workloads.make("vqa_rad", tmp_path, (1,))


def test_the_audit_finds_documents_that_see_each_other(packed):
    model, inputs, _ = packed
    # A mask of ones in two dimensions: transformers then takes the row for one document, whatever the positions say.
    found = jobs.audit(model, {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])})
    assert found["documents_in_first_row"] == 2
    assert found["gradient_on_other"] > 0
    assert found["loss_on_image"] == 0


def test_the_audit_finds_nothing_behind_a_mask_that_keeps_documents_apart(packed):
    model, inputs, apart = packed
    found = jobs.audit(model, {**inputs, "attention_mask": apart})
    assert found["gradient_on_other"] == 0
    assert found["gradient_on_own"] > 0


def test_loss_on_image_placeholders_is_counted(packed):
    model, inputs, apart = packed
    found = jobs.audit(model, {**inputs, "labels": inputs["input_ids"], "attention_mask": apart})
    assert found["loss_on_image"] == 8


def finished(start: float, documents: Sequence[int], each: float) -> dict[str, Any]:
    """What a run wrote: a price of starting, a dear first step, then every document for the same."""
    stamps = [
        {"documents": done, "cpu_seconds": start + 9.0 * (done > 0) + each * done, "wall_seconds": 2 * each * done, "flops": 0.0}
        for done in documents
    ]
    return {"stamps": stamps, "peak_mib": 7.0}


def test_the_price_of_starting_and_of_the_first_step_is_in_no_slope():
    row = tables.row("ours", [finished(start, (0, 4, 8, 20), 2.5) for start in (10, 90, 50)], {})
    assert row["documents_per_cpu_second"] == pytest.approx(1 / 2.5)
    assert row["least"] == pytest.approx(row["largest"])
    assert row["documents_measured"] == 48


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="2 stamps are too few"):
        tables.slope(finished(0, (0, 4), 1.0), "cpu_seconds")


def test_documents_are_counted_in_padded_and_in_packed_batches(packed):
    _, inputs, apart = packed
    assert jobs.documents_in({"input_ids": torch.zeros(3, 5)}) == 3
    assert jobs.documents_in(inputs) == 2
    assert jobs.documents_in({"input_ids": inputs["input_ids"], "attention_mask": apart}) == 2


def test_a_contender_that_failed_keeps_its_row_and_its_reason():
    row = tables.row(tables.REFERENCE, [finished(0, (0, 1, 2, 3), 2.0)], {})
    text = tables.markdown("title", [row, {"label": "other", "failed": "not run: refused"}])
    assert "| other | | | | | | | | | not run: refused |" in text
    assert f"| {tables.REFERENCE} | 0.500 | 0.500 - 0.500 | 1.00 |" in text
