"""An evaluation whose questions are shared among workers, and the report that does not tell."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed

from components.evaluate.asking import ask
from components.evaluate.exchange import exchange
from components.platform.inputs import LEARNED
from model import manifest, recipe
from model.config import TrainSlice
from model.errors import PreemptedError
from model.evaluation.results import read_report
from model.evaluation.sharing import Shard, owners
from model.training.ranks import Ranks, ending_together
from model.training.reporter import SilentReporter
from model.training.stage import StageInputs, run_stage
from tests.forks import forked
from tests.model.tiny_bases import make_language, make_tower
from tests.pipelines import micro

CHANGES = {"benchmarks": [{"benchmark": "vqa", "set": "mini", "split": "test"}], "batch_size": 3}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The local job of an evaluation, without the places that differ."""
    folder = tmp_path_factory.mktemp("evaluated")
    slices = recipe.slices(micro.recipe(evaluation=CHANGES))
    sets = {"mini": micro.write_set(folder / "mini", (("train", 9), ("test", 7)))}
    bases = {"mini-tower": folder / "tower", "mini-language": folder / "language"}
    make_tower(bases["mini-tower"]), make_language(bases["mini-language"])
    given = StageInputs(sets, bases)
    made = run_stage(TrainSlice.model_validate(slices["align"]), given, folder / "work", folder / "align", SilentReporter())
    return {
        "piece": slices["evaluate"],
        "audit": {"exclude": {}},
        "who": "evaluate",
        "digest": made.digest,
        "sets": {name: str(path) for name, path in sets.items()},
        "bases": {name: str(path) for name, path in bases.items()},
        "subjects": {"checkpoint": str(folder / "align"), "data": str(folder / "data")},
        "attempt": 1,
        "export": False,
        "home": str(folder),
        "shared_store": "",
    }


def at(job, folder):
    cache = {"folder": str(folder / "cache"), "limit_bytes": 2**20}
    return {**job, "final": str(folder / "report"), "events": str(folder / "events"), "feature_cache": cache}


@ending_together
def one_of(job, folder, asked=None):
    ranks = Ranks.current(torch.device("cpu"), 30.0)
    ask(at(job, folder), Shard(ranks.rank, ranks.world_size, partial(exchange, ranks)), asked)


def worker(job, folder, rank, of, act=one_of):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=of)
    act(job, folder)
    return 0


@pytest.mark.parametrize("workers", [2, 3])
def test_the_report_of_several_workers_is_that_of_one_to_the_byte(job, tmp_path, workers):
    (tmp_path / "one").mkdir()
    ask(at(job, tmp_path / "one"))
    assert forked([partial(worker, job, tmp_path, rank, workers) for rank in range(workers)]) == [0] * workers
    alone, shared = (manifest.verify(tmp_path / name) for name in ("one/report", "report"))
    assert shared.digest == alone.digest
    for name in ("report.json", "predictions.jsonl"):
        assert (tmp_path / "report" / name).read_bytes() == (tmp_path / "one" / "report" / name).read_bytes()


def test_an_image_that_any_set_taught_counts_as_seen_not_those_of_the_asked_set_alone(job, tmp_path):
    ask(at(job, tmp_path))
    assert not read_report(tmp_path / "report").benchmarks[0].seen_items, "nothing asked stands in the train split of its own set"
    images = {entry.sha256 for entry in manifest.read(Path(job["sets"]["mini"])).files if entry.path.startswith("images/")}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / LEARNED).write_text("\n".join(images), encoding="utf-8")
    other = {**job, "subjects": {**job["subjects"], "data": str(tmp_path / "data")}}
    ask({**at(other, tmp_path), "final": str(tmp_path / "again")})
    seen = read_report(tmp_path / "again").benchmarks[0]
    assert seen.seen_items == seen.items > 0


def stopped(job, folder):
    """Rank 1 alone is asked to stop."""
    with pytest.raises(PreemptedError):
        one_of(job, folder, lambda: distributed.get_rank() == 1)


def test_a_worker_that_is_asked_to_stop_ends_those_that_wait_for_it(job, tmp_path):
    assert forked([partial(worker, job, tmp_path, rank, 2, stopped) for rank in range(2)]) == [0, 0]
    assert not (tmp_path / "report").exists()


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 5))
def test_questions_about_one_image_stay_together_and_the_work_is_even(keys, of):
    ranks = owners(keys, of)
    assert len(ranks) == len(keys)
    assert set(ranks) <= set(range(of))
    assert all(len({rank for key, rank in zip(keys, ranks, strict=True) if key == wanted}) == 1 for wanted in set(keys))
    loads = [ranks.count(rank) for rank in range(of)]
    largest = max((keys.count(key) for key in set(keys)), default=0)
    assert max(loads) - min(loads) <= largest
