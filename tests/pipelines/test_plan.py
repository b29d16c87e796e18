"""What a plan says when nothing was ever run; with runs behind it, see test_run.py."""

from __future__ import annotations

import shutil

from components.data import step as data_step
from components.data.registry import Registry
from components.platform.events import EventLog, EventType
from components.platform.impact import marks, withdrawals
from components.platform.impact.answer import Answer, TouchedSet
from components.platform.impact.question import Item, Subject
from components.platform.settings import Settings
from components.platform.store import StepRecord
from model.config import Recipe
from model.errors import ExitCode, RefusedError
from model.manifest import canonical_json
from model.recipe import slices
from pipelines import local, plan_memory
from pipelines import plan as plans
from pipelines.summary import STEPS
from tests.pipelines import micro


def test_in_a_new_home_everything_runs(tmp_path):
    settings = Settings.from_environment({"BIOVLM_HOME": str(tmp_path / "home")})
    steps = plans.plan(micro.recipe(), settings)
    assert [step.name for step in steps] == [name for name in STEPS if name != "preflight"]
    assert [step.name for step in steps if step.reused] == ["champion"]  # there is none
    assert steps[0].reason == "waits for the data registry"
    assert not (tmp_path / "home").exists(), "a plan writes nothing"


def test_the_parts_of_a_key_that_changed_are_named():
    piece = {"stage": {"epochs": 1, "rates": {"connector": 0.1}}, "seed": 0}
    last = StepRecord(
        key="k", kind="train", name="task", run_id="r", piece=piece, identity={"mini": "a", "parent": "p"}, code="c", started=0.0
    )
    assert plans.why(None, piece, {}, "c") == "runs for the first time"
    assert plans.why(last, piece, {"mini": "a", "parent": "p"}, "c") == "its result is no longer in the store"
    changed = {"stage": {"epochs": 2, "rates": {"connector": 0.1}}, "seed": 0}
    assert plans.why(last, changed, {"mini": "b", "parent": "p"}, "d") == "recipe: stage.epochs; input: mini; code"


def test_the_exit_code_of_a_run_is_that_of_the_step_that_failed(tmp_path):
    settings = Settings.from_environment({"BIOVLM_HOME": str(tmp_path), "BIOVLM_RUN_ID": "r"})
    log = EventLog(settings.events, "task")
    log.write(EventType.STEP_STARTED, facts={"pid": 1})
    log.write(EventType.FAILED, exit_code=77, message="a file was changed", hint="restore it")
    letter = local._letter(settings)
    assert (type(letter), letter.exit_code) == (RefusedError, ExitCode.REFUSED)
    assert (letter.message, letter.hint) == ("task: a file was changed", "restore it")


def test_a_step_that_vanished_on_a_full_disk_is_told_as_one_that_cannot_write(tmp_path, monkeypatch):
    settings = Settings.from_environment({"BIOVLM_HOME": str(tmp_path), "BIOVLM_RUN_ID": "r"})
    EventLog(settings.events, "task").write(EventType.STEP_STARTED, facts={"pid": 1})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4096))
    letter = local._letter(settings)
    assert letter.exit_code == ExitCode.CANNOT_WRITE
    assert "No space left on device (task could not even say so)" in letter.message


def test_a_step_that_vanished_is_named(tmp_path):
    settings = Settings.from_environment({"BIOVLM_HOME": str(tmp_path), "BIOVLM_RUN_ID": "r"})
    EventLog(settings.events, "task").write(EventType.STEP_STARTED, facts={"pid": 1})
    letter = local._letter(settings)
    assert letter.exit_code == ExitCode.INTERNAL
    assert "task ended without a word" in letter.message


def sized(**resources):
    """A recipe whose base models stand in it, so that their sizes are known before anything ran."""
    language = {
        "model_type": "llama", "tokenizer": "nowhere", "vocab_size": 32_064, "hidden_size": 512, "intermediate_size": 2048,
        "num_hidden_layers": 8, "num_attention_heads": 8,
    }  # fmt: skip
    tower = {
        "model_type": "clip_vision_model", "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6,
        "num_attention_heads": 3, "image_size": 336, "patch_size": 14,
    }  # fmt: skip
    values = micro.recipe().model_dump(mode="json")
    values["model"] |= {"tower": {"config": tower}, "language": {"config": language}, "context_tokens": 1024}
    values["resources"] |= resources
    for stage in values["stages"].values():
        stage |= {"batch_tokens": 8192, "micro_batch_tokens": 4096}
    return Recipe.model_validate(values)


def memory_of(home, pools=None, **resources):
    settings = Settings.from_environment({"BIOVLM_HOME": str(home)} | ({"BIOVLM_POOLS": str(pools)} if pools else {}))
    return {step.name: step.memory for step in plans.plan(sized(**resources), settings) if step.memory is not None}


def test_a_plan_says_what_each_stage_keeps_and_what_it_takes(tmp_path):
    roomy, tight = memory_of(tmp_path, memory_gib=16), memory_of(tmp_path, memory_gib=3)
    assert list(roomy) == ["align", "instruct", "task"]
    assert (roomy["task"].recomputed, roomy["task"].blocks, roomy["task"].budget_bytes) == (0, 8, 16 * 2**30)
    assert roomy["task"].text.startswith("keeps everything: about ")
    assert 0 < tight["task"].recomputed <= 8
    assert tight["task"].needed_bytes <= 3 * 2**30 < tight["task"].kept_bytes == roomy["task"].needed_bytes
    assert "blocks again" in tight["task"].text


def test_a_plan_says_what_would_be_refused_and_what_a_gpu_decides(tmp_path):
    refused = memory_of(tmp_path, memory_gib=0.5)["task"]
    assert refused.text.startswith("would be refused: ")
    assert refused.needed_bytes is None
    gpu = memory_of(tmp_path, gpus_per_worker=1)["task"]
    assert "the GPU's free memory decides" in gpu.text
    assert gpu.recomputed is None


def test_on_a_pool_that_names_its_gpus_memory_a_plan_says_what_fits_before_any_is_asked_for(tmp_path):
    roomy = memory_of(tmp_path, gpus_per_worker=1, pool="l4")["task"]
    assert (roomy.recomputed, roomy.budget_bytes) == (0, 24 * 2**30)
    pools = tmp_path / "pools.yaml"
    tiny = "{accelerator: nvidia.com/gpu, gpus_per_node: 1, gpu_memory_gib: 0.5, queue: q, priority: p, usd_per_gpu_hour: 1}"
    pools.write_text(f"small: {tiny}\n")
    refused = memory_of(tmp_path, pools, gpus_per_worker=1, pool="small")["task"]
    assert refused.text.startswith("would be refused: ")


def test_without_the_base_models_the_stage_decides_when_it_starts(tmp_path):
    settings = Settings.from_environment({"BIOVLM_HOME": str(tmp_path / "home")})
    said = [step.memory.text for step in plans.plan(micro.recipe(), settings) if step.memory is not None]
    assert said == [plan_memory.LATER] * 3


def test_a_withdrawn_data_set_is_refused_also_where_its_result_is_stored(home, tmp_path, monkeypatch, capsys):
    shutil.copytree(home, tmp_path / "home", symlinks=True)
    for name, value in (("BIOVLM_HOME", str(tmp_path / "home")), ("BIOVLM_RUN_ID", "r"), ("BIOVLM_MIRRORED", "1")):
        monkeypatch.setenv(name, value)
    mine, piece = Settings.from_environment(), canonical_json(slices(micro.recipe())["data"])

    def code():
        try:
            data_step.run(piece, str(tmp_path / "data.json"))
        except SystemExit as end:
            return end.code
        return 0

    assert code() == 0
    notice = marks.Notice("a" * 64, "officer", "consent withdrawn")
    withdrawals.withdraw(mine, [Item(Subject.PATIENT, "train-3")], Answer(), notice)
    assert code() == 77
    assert "holds 3 records that were withdrawn" in capsys.readouterr().err

    shutil.rmtree(mine.store / "withdrawn-lists")
    assert code() == 0
    held = TouchedSet("mini", Registry(mine.home).version("mini").digest, "", 1)
    withdrawals.withdraw(mine, [], Answer(sets=(held,)), notice)
    assert code() == 77
    assert "set mini" in capsys.readouterr().err
