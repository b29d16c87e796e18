from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from model import manifest
from model.architecture import checkpoint, tensors
from model.config import Kind
from model.data.loading import open_dataset
from model.errors import ConfigError, DataError, MissingInputError, PreemptedError
from model.training import resume
from model.training.objective import AnswerObjective
from model.training.optimizer import Optimizer
from model.training.reporter import ListReporter
from model.training.sharing import Replicated
from model.training.stage import StageInputs, run_stage
from tests.model.tiny_stages import piece, stop_after


def test_three_stages_follow_each_other(inputs: StageInputs, tmp_path: Path) -> None:
    parent = None
    for stage in ("align", "instruct", "task"):
        reporter = ListReporter()
        given = dataclasses.replace(inputs, parent=parent)
        record = run_stage(piece(stage, epochs=0.2), given, tmp_path / "work", tmp_path / stage, reporter)
        assert (record.facts["stage"], record.facts["step"]) == (stage, len(reporter.rows))
        assert record.parents.get("parent") == (manifest.read(parent).digest if parent else None)
        assert {"tower", "language", "data:phantom"} <= set(record.parents)
        assert not (tmp_path / "work").exists()
        parent = tmp_path / stage
    assistant = checkpoint.load(tmp_path / "task", inputs.bases)
    assert [path.name for path in assistant.merged] == ["1-instruct"]
    before, after = (tensors.read(tmp_path / stage / "connector.safetensors") for stage in ("instruct", "task"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_assistant_learns(inputs: StageInputs, tmp_path: Path) -> None:
    reporter = ListReporter()
    changes: dict[str, Any] = {"learning_rates": {"connector": 1e-2, "language_lora": 2e-2}, "epochs": 2}
    run_stage(piece("instruct", **changes), inputs, tmp_path / "work", tmp_path / "final", reporter)
    first, last = reporter.rows[0], reporter.rows[-1]
    losses = [row["loss"] for row in reporter.rows]
    # The untrained head, frozen, allows no more in so few steps; ten of them, since one holds as little as a single example.
    assert sum(losses[-10:]) / 10 < first["loss"] - 0.1
    assert last["tokens_per_second"] > 0
    assert 0 <= last["padding_share"] < 0.3
    assert 0 < last["target_share"] < 1
    assert set(last) >= {"gradient_norm", "learning_rate/connector", "learning_rate/language_lora"}


def run(stage: str, inputs: StageInputs, root: Path, stops: tuple[int, ...] = (), **changes: Any) -> manifest.Manifest:
    """Run a stage with interruptions after the given numbers of further steps."""
    for steps in stops:
        with pytest.raises(PreemptedError):
            run_stage(piece(stage, **changes), inputs, root / "work", root / "final", ListReporter(), stop_after(steps))
    return run_stage(piece(stage, **changes), inputs, root / "work", root / "final", ListReporter())


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, torch.Tensor]]:
    """The optimizer's state and the random state at the end of each run, by the run's folder."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    used: list[Optimizer] = []
    apply, cleared = Optimizer.apply, resume.Store.clear

    def remember(optimizer: Optimizer, share: float) -> None:
        used.append(optimizer)
        apply(optimizer, share)

    def clear(store: resume.Store) -> None:
        found[store.place.root.parent.name] = {**used[-1].state(), "random": torch.get_rng_state()}
        cleared(store)

    monkeypatch.setattr(resume.Store, "clear", clear)
    monkeypatch.setattr(Optimizer, "apply", remember)
    return found


@pytest.mark.parametrize(
    ("stage", "stops", "epochs"),
    [("instruct", (1,), 0.4), ("instruct", (3, 1, 2), 0.6), ("align", (2, 5), 2)],
    ids=["in warm-up", "at and between checkpoints, in the decay", "in both epochs"],
)
def test_a_resumed_run_ends_with_the_same_bytes(
    inputs: StageInputs,
    tmp_path: Path,
    ends: dict[str, dict[str, torch.Tensor]],
    stage: str,
    stops: tuple[int, ...],
    epochs: float,
) -> None:
    whole = run(stage, inputs, tmp_path / "whole", epochs=epochs)
    resumed = run(stage, inputs, tmp_path / "resumed", stops, epochs=epochs)
    assert resumed.digest == whole.digest  # the name covers every byte of every file
    assert whole.facts["step"] > sum(stops) + 1
    assert ends["whole"].keys() == ends["resumed"].keys()
    for name, tensor in ends["whole"].items():
        assert torch.equal(tensor, ends["resumed"][name]), name


@pytest.fixture(scope="module")
def whole(phantom: Path, bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> manifest.Manifest:
    """What an uninterrupted short run gives."""
    torch.set_num_threads(1)
    return run("instruct", StageInputs({"phantom": phantom}, bases), tmp_path_factory.mktemp("whole"), epochs=0.2)


@pytest.mark.parametrize("forgotten", ["nothing", "moments", "random numbers", "position", "weights"])
def test_forgetting_any_part_of_the_state_would_be_seen(
    inputs: StageInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: manifest.Manifest, forgotten: str
) -> None:
    load, resumed_at = Replicated.load, resume.Store.resume

    def all_but_weights(sharing: Replicated, weights: Any, moments: Any, where: str) -> None:
        load(sharing, {name: weight.detach().clone() for name, weight in sharing.weights.items()}, moments, where)

    def one_step_early(store: resume.Store, sharing: Replicated) -> resume.Resumed:
        resumed = resumed_at(store, sharing)
        return dataclasses.replace(resumed, step=max(0, resumed.step - 1))

    if forgotten == "moments":
        monkeypatch.setattr(Optimizer, "load_state", lambda *_: None)
    elif forgotten == "random numbers":
        monkeypatch.setattr(resume, "_set_random_state", lambda _: None)
    elif forgotten == "position":  # of the data and of the schedule: both follow from it
        monkeypatch.setattr(resume.Store, "resume", one_step_early)
    elif forgotten == "weights":
        monkeypatch.setattr(Replicated, "load", all_but_weights)
    resumed = run("instruct", inputs, tmp_path, (2,), epochs=0.2)
    assert (resumed.digest == whole.digest) is (forgotten == "nothing")


def test_a_stage_that_left_out_a_step_says_so_in_its_checkpoint(
    inputs: StageInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss_sum, passes = AnswerObjective.loss_sum, iter(range(10**6))
    monkeypatch.setattr(
        AnswerObjective, "loss_sum", lambda self, micro: loss_sum(self, micro) * (math.nan if next(passes) == 1 else 1)
    )
    reporter = ListReporter()
    record = run_stage(piece("instruct", epochs=0.2), inputs, tmp_path / "work", tmp_path / "final", reporter)
    assert (record.facts["skipped_steps"], record.facts["left_out_steps"], record.facts["world_sizes"]) == (1, [], [[0, 1]])
    assert "records train-" in reporter.notes[-1]


def test_a_changed_configuration_does_not_go_on(inputs: StageInputs, tmp_path: Path) -> None:
    with pytest.raises(PreemptedError):
        run_stage(piece(), inputs, tmp_path / "work", tmp_path / "final", ListReporter(), stop_after(2))
    changed = piece(learning_rates={"connector": 1e-3}, betas=(0.9, 0.95))
    with pytest.raises(ConfigError) as caught:
        run_stage(changed, inputs, tmp_path / "work", tmp_path / "final", ListReporter())
    assert "piece.stage.learning_rates.connector: 0.002 -> 0.001" in caught.value.message
    assert "piece.stage.betas: [0.9, 0.999] -> [0.9, 0.95]" in caught.value.message
    assert "2 fields differ" in caught.value.message


def test_a_finished_run_is_not_repeated_and_not_mistaken(inputs: StageInputs, tmp_path: Path) -> None:
    first = run("align", inputs, tmp_path, epochs=0.2)
    reporter = ListReporter()
    again = run_stage(piece(epochs=0.2), inputs, tmp_path / "work", tmp_path / "final", reporter)
    assert (again, reporter.rows) == (first, [])
    with pytest.raises(ConfigError, match=r"piece\.stage\.epochs: 0\.2 -> 0\.3"):
        run_stage(piece(epochs=0.3), inputs, tmp_path / "work", tmp_path / "final", reporter)


def test_a_parent_of_another_model_is_refused(inputs: StageInputs, tmp_path: Path) -> None:
    run("align", inputs, tmp_path, epochs=0.1)
    given = dataclasses.replace(inputs, parent=tmp_path / "final")
    other = piece("instruct", model={"feature_layer": -1})
    with pytest.raises(ConfigError, match="feature_layer: -2 -> -1"):
        run_stage(other, given, tmp_path / "work", tmp_path / "next", ListReporter())


def test_a_data_set_that_is_not_given_is_missed(inputs: StageInputs, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="phantom"):
        run_stage(piece(), dataclasses.replace(inputs, sets={}), tmp_path / "work", tmp_path / "final", ListReporter())


def test_left_out_records_are_not_learned_from(inputs: StageInputs, tmp_path: Path) -> None:
    captions = open_dataset(inputs.sets["phantom"]).records("train", [Kind.CAPTION])
    without = dataclasses.replace(inputs, exclude={"phantom": [record.id for record in captions[:5]]}, max_quarantined=0.1)
    record = run_stage(piece(epochs=0.1), without, tmp_path / "work", tmp_path / "final", ListReporter())
    assert record.facts["records"] == len(captions) - 5


def test_records_longer_than_the_context_are_counted(inputs: StageInputs, tmp_path: Path) -> None:
    # One byte a token: every dialogue is longer than this, a place that is asked for is not.
    reporter = ListReporter()
    short = piece("instruct", model={"context_tokens": 200}, epochs=0.1)
    record = run_stage(short, inputs, tmp_path / "work", tmp_path / "final", reporter)
    aside = record.facts["set_aside"]["phantom/train"]
    assert aside >= len(open_dataset(inputs.sets["phantom"]).records("train", [Kind.DIALOGUE]))
    assert f"{aside:,} records are longer than 200 tokens" in reporter.notes[0]
    with pytest.raises(DataError, match="longer than the context"):
        run_stage(piece(model={"context_tokens": 16}), inputs, tmp_path / "work", tmp_path / "other", reporter)


def test_bfloat16_trains_with_float32_weights(inputs: StageInputs, tmp_path: Path) -> None:
    reporter = ListReporter()
    record = run_stage(
        piece("instruct", precision="bfloat16", epochs=0.1), inputs, tmp_path / "work", tmp_path / "final", reporter
    )
    assert record.facts["dtype"] == "bfloat16"
    for name in ("connector.safetensors", "adapters/1-instruct/adapter_model.safetensors"):
        assert {weight.dtype for weight in tensors.read(tmp_path / "final" / name).values()} == {torch.float32}
    assert checkpoint.load(tmp_path / "final", inputs.bases).model.lm_head.weight.dtype == torch.bfloat16
    assert all(row["loss"] < 10 for row in reporter.rows)
