"""Pools: read strictly, chosen by name, and cut into pods that waste no GPU."""

from __future__ import annotations

import pytest

from components.platform import pools
from model.errors import ConfigError
from tests.standins.work import work

POOLS = pools.load()


def changed(tmp_path, text):
    path = tmp_path / "pools.yaml"
    path.write_text(text)
    return path


def test_the_pools_of_the_issue_are_there():
    assert {"a100-80g", "h100", "l4", "spot"} <= set(POOLS)
    assert [name for name, pool in POOLS.items() if pool.mig] == ["mig-3g-40gb"]
    assert POOLS["spot"].spot
    assert not POOLS["cpu"].gpus_per_node


def test_a_pool_that_does_not_exist_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no pool 'h10'; did you mean `h100`\?") as error:
        pools.choose(POOLS, "h10")
    assert "a100-80g" in error.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("l4: {gpus_per_node: 0, queue: q, priority: p, usd_per_gpu_hour: 0, tolerationss: []}", "did you mean `tolerations`"),
        ("l4: {gpus_per_node: 0, queue: q, priority: p, usd_per_gpu_hour: 0, topology: {levle: a}}", "did you mean `level`"),
        ("l4: {gpus_per_node: 1, queue: q, priority: p, usd_per_gpu_hour: 0}", "both `accelerator` and `gpus_per_node`"),
        (
            "l4: {gpus_per_node: 1, accelerator: nvidia.com/gpu, mig: true, queue: q, priority: p, usd_per_gpu_hour: 0}",
            "names a slice",
        ),
        ("l4: {gpus_per_node: 1, queue: q", "not YAML"),
        ("[]", "the file"),
    ],
)
def test_a_wrong_pools_file_is_a_letter(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        pools.load(changed(tmp_path, text))


@pytest.mark.parametrize(
    ("pool", "workers", "pods", "each"),
    [("h100", 16, 2, 8), ("h100", 12, 2, 6), ("h100", 7, 1, 7), ("h100", 11, 11, 1), ("l4", 3, 3, 1)],
)
def test_workers_are_cut_into_equal_pods_without_idle_gpus(pool, workers, pods, each):
    found = pools.layout(pool, POOLS[pool], work(pool=pool, workers=workers).resources)
    assert (found.pods, found.workers_per_pod, found.gpus_per_pod) == (pods, each, each)


def test_slices_do_not_train_together_but_evaluate_side_by_side():
    mig = POOLS["mig-3g-40gb"]
    with pytest.raises(ConfigError, match=r"slices \(MIG\), resources.workers is 2"):
        pools.layout("mig-3g-40gb", mig, work(workers=2).resources)
    assert pools.layout("mig-3g-40gb", mig, work(workers=1).resources).pods == 1
    assert pools.layout("mig-3g-40gb", mig, work(workers=4).resources, evaluates=True).pods == 4


@pytest.mark.parametrize(("pool", "gpus"), [("cpu", 1), ("l4", 0)])
def test_a_pool_takes_only_what_suits_it(pool, gpus):
    with pytest.raises(ConfigError, match="gpus_per_worker"):
        pools.layout(pool, POOLS[pool], work(pool=pool, gpus_per_worker=gpus).resources)


def test_more_gpus_than_a_pool_has_are_refused_before_anything_waits():
    most = POOLS["l4"].max_gpus
    pools.check("l4", POOLS["l4"], work(workers=most).resources)
    with pytest.raises(ConfigError, match=f"{most + 1} GPUs are asked for, l4 has {most}"):
        pools.check("l4", POOLS["l4"], work(workers=most + 1).resources)


def test_cost_is_gpus_times_hours():
    assert pools.cost_usd(POOLS["h100"], 4, 2.5) == pytest.approx(82.0)
