"""Faults of workers under Ray Train: one Ray for all of this module, two workers, the toy run."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time

import pytest
import torch
from torch import distributed

from components.platform import launch, letter
from components.platform.settings import Settings
from model.config import Resources
from model.errors import ExitCode, PreemptedError
from model.training.places import Folder
from model.training.ranks import Ranks
from tests.fault_plan import Fault, FaultPlan
from tests.forks import forked
from tests.toy_run import STEPS, finish, toy_training

pytestmark = [pytest.mark.slow, pytest.mark.lane]
RESOURCES = Resources(workers=2, cpus_per_worker=0.5, max_failures=1)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A home whose Ray runs, and looks out for nodes that will be taken away."""
    home = tmp_path_factory.mktemp("home")
    before = {name: os.environ.get(name) for name in (launch.NOTICE, "BIOVLM_RAY", "RAY_AUTH_TOKEN_PATH", "OMP_NUM_THREADS")}
    os.environ[launch.NOTICE] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    head = launch.start(Settings.from_environment({"BIOVLM_HOME": str(home)}), 3)
    yield Settings.from_environment({"BIOVLM_HOME": str(home), "BIOVLM_RAY": str(head.address_file)})
    head.stop()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


class Step:
    """A training step of two workers, in `folder`."""

    def __init__(self, folder, settings):
        self.folder, self.settings, self.starts = folder, settings, 0

    def run(self, faults=(), pause=0.0):
        """Train; raises what a step would."""
        self.starts += 1
        self.plan = FaultPlan(self.folder / f"plan-{self.starts}", faults).write()
        (self.folder / letter.NAME).unlink(missing_ok=True)
        job = {
            "scratch": str(self.folder),
            "attempts": str(self.folder / "attempts"),
            "run_id": "run-1",
            "stop": str(self.folder / "stop"),
            "plan": str(self.plan.folder),
            "marks": str(self.folder / "marks"),
            "digest": str(self.folder / "digest"),
            "pause": pause,
        }
        name = f"{self.folder.name}-{self.starts}"
        launch.run_workers("tests.components.ray_worker.train", job, name, self.folder / "ray", RESOURCES, self.settings)
        letter.raise_letter(self.folder)

    def marks(self):
        with contextlib.suppress(FileNotFoundError):
            return [int(line.split()[0]) for line in (self.folder / "marks").read_text().splitlines()]
        return []

    def attempts(self):
        return [json.loads(line)["what"] for line in (self.folder / "attempts").read_text().splitlines()]


@pytest.fixture
def step(tmp_path, settings):
    return Step(tmp_path, settings)


def one_of_two(folder, rank):
    """The toy run on two ranks without Ray."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    training, _ = toy_training(folder / "work", ranks=Ranks.current(torch.device("cpu")))
    digest = finish(training)
    if rank == 0:
        (folder / "digest").write_text(digest)
    return 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert forked([lambda: one_of_two(folder, 0), lambda: one_of_two(folder, 1)]) == [0, 0]
    return (folder / "digest").read_text()


@pytest.mark.timeout(240)
def test_a_killed_rank_costs_one_restart_and_changes_nothing(undisturbed, step):
    step.run([Fault("kill", rank=1, step=10)])
    step.plan.assert_all_fired()
    assert (step.folder / "digest").read_text() == undisturbed
    assert step.attempts() == ["begun", "begun"]
    assert step.marks().count(STEPS) == 1


def test_a_sigterm_to_one_worker_stops_all_at_the_same_step_with_75(step):
    """The signal waits until the worker's main thread looks up from Ray's own code: a second at most."""
    with pytest.raises(PreemptedError, match="saved after step") as caught:
        step.run([Fault("sigterm twice", rank=1, step=7)], pause=0.3)
    assert caught.value.exit_code == ExitCode.PREEMPTED
    step.plan.assert_all_fired()
    assert 7 <= Folder(step.folder / "work").entries()[0].step == step.marks()[-1] < STEPS
    assert step.attempts() == ["begun", "stopped"]  # not started again by Ray, and not counted


def test_the_notice_that_a_node_will_be_taken_away_stops_all_workers_with_75(step, settings):
    """Ray's own notice, as its autoscaler would give it for the node on which all of this runs."""
    # Ray wants signals, which only a main thread may have: so the notice comes from another one.
    noticed = threading.Thread(target=notice, args=(step, settings))
    noticed.start()
    with pytest.raises(PreemptedError, match="saved after step"):
        step.run(pause=2.0)
    noticed.join(60)
    assert Folder(step.folder / "work").entries()[0].step == step.marks()[-1] < STEPS


def notice(step, settings):
    """Once some steps are done and Ray looks out for it, tell it that its one node will go in a minute."""
    import ray

    def looks_out():
        # A node that will go gets no new actor: told too early, Ray would never start the one that is to see it.
        known = ray._private.state.actors().values()
        return any(actor["ActorClassName"] == "PreemptionWatcher" and actor["State"] == "ALIVE" for actor in known)

    deadline = time.monotonic() + 120
    while not (len(step.marks()) >= 3 and looks_out()) and time.monotonic() < deadline:
        time.sleep(0.1)
    from ray.core.generated import autoscaler_pb2

    client = ray._raylet.GcsClient(address=settings.ray_address_file.read_text())
    node = ray._raylet.NodeID.from_hex(ray.nodes()[0]["NodeID"]).hex()
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    client.drain_node(node, reason, "will be taken away", int((time.time() + 60) * 1000))
