"""What steps, runs and versions cost; the machine's own counters are files here, of the form that the kernel gives them."""

from __future__ import annotations

import time

import pytest

from components.platform import cost
from components.platform.cost import Cost, Meter
from components.platform.energy import Energy, Nvml, Rapl, meters
from components.platform.store import open_store


def write_counters(root, package, core=0, dram=0):
    """A tree as /sys/class/powercap, in microjoules; that a real kernel counts like this is not proved by it."""
    for name, kind, value in (("0", "package-0", package), ("0:0", "core", core), ("0:1", "dram", dram)):
        folder = root / f"intel-rapl:{name}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{kind}\n")
        (folder / "energy_uj").write_text(f"{value}\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")


def test_processors_and_memory_are_counted_once_and_a_counter_that_begins_again_goes_on(tmp_path):
    write_counters(tmp_path, 262_143_000_000, core=5)
    meter = Rapl(tmp_path)
    assert meter.joules() == 0
    write_counters(tmp_path, 671_149, core=9_000_000, dram=2_000_000)
    assert meter.joules() == pytest.approx(1.0 + 2.0)


def test_a_machine_that_does_not_tell_has_no_energy_and_not_none_at_all(tmp_path):
    with pytest.raises(OSError, match="no counter"):
        Rapl(tmp_path)
    with Meter(lambda: (0, 0), Energy([])) as meter:
        pass
    assert meter.cost(gpus=0).energy_joules is None
    known, unknown = Cost(energy_joules=5.0, energy_from=("rapl",)), Cost()
    assert (known + unknown).energy_joules is None
    assert (known + known).energy_joules == 10.0
    assert cost.total([]).energy_joules == 0.0


def test_a_meter_that_breaks_off_is_left_out(tmp_path):
    write_counters(tmp_path, 0)
    with Energy([Rapl(tmp_path)]) as energy:
        (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert energy.joules == {}


@pytest.mark.gpu
def test_a_gpu_tells_what_it_took():
    try:
        meter = Nvml()
    except OSError as error:
        pytest.skip(f"no GPU that counts: {error}")
    before = meter.joules()
    time.sleep(0.5)
    assert meter.joules() > before > 0
    assert "nvml" in {found.name for found in meters()}


def test_waiting_is_no_work_and_gpus_are_paid_while_they_are_held():
    moved, clock = iter([(10, 1), (110, 3)]), iter([50.0, 150.0])
    with Meter(lambda: next(moved), Energy([]), lambda: next(clock)) as meter:
        pass
    found = meter.cost(gpus=4, work_seconds=25.0)
    assert (found.wall_seconds, found.queue_seconds, found.gpu_seconds, found.work_seconds) == (100.0, 75.0, 100.0, 25.0)
    assert (found.bytes_received, found.bytes_sent) == (100, 2)
    assert meter.cost(gpus=4).gpu_seconds == 400.0
    assert meter.cost(gpus=1, work_seconds=1e9).queue_seconds == 0.0, (
        "a clock that goes wrong elsewhere makes no negative waiting"
    )


def test_a_step_keeps_what_it_cost_a_reused_one_tells_what_it_saved_and_a_version_is_the_sum(step, settings, happened):
    def work(work):
        time.sleep(0.02)

    step.makes = work
    first = step({"resources": {"workers": 2, "gpus_per_worker": 1}}, name="align")
    step({"resources": {"workers": 2, "gpus_per_worker": 1}}, name="align")
    second = step({"b": 1}, kind="register", name="register", parent=str(settings.home.parent / "out" / "align.json"))
    store = open_store(settings)
    align = store.record("train", first.folder.name).cost
    assert 0.02 <= align.wall_seconds < 60
    assert align.gpu_seconds == pytest.approx(2 * align.wall_seconds)
    spent, saved = cost.of_run(happened(types_only=False))
    assert (set(spent), saved) == ({"align", "register"}, {"align": align})
    assert spent["align"] == align
    whole, unknown = cost.of_version(store, second.folder.name)
    assert unknown == 0
    assert whole.wall_seconds == pytest.approx(align.wall_seconds + spent["register"].wall_seconds)
    assert cost.of_version(store, "f" * 64) == (Cost(energy_joules=0.0), 1)
