"""The pipeline in real containers beside the same pipeline in processes; and what decides how a container is started.

The lane (`make test-docker`, .ci/docker) builds the images first. It is a lane of its own because it needs a container daemon,
PostgreSQL and both images. It runs the micro recipe: what is shown is that keys, records and lineage are the same, not what is learned.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.platform import events, keys
from components.platform.events import EventType
from components.platform.lineage import version
from components.platform.lineage.graph import Kind
from components.platform.settings import Settings
from components.platform.store import Store
from model.errors import MissingInputError, RefusedError
from pipelines import containers, engine, grounds, local, ray_head
from tests.pipelines import micro

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("preflight", "data", "train", "evaluate", "register", "promote")
IMAGES = {"launcher": containers.LAUNCHER, "train": ray_head.TRAIN}
OF_ITS_SERVERS = {"tracking", "receipt"}
"""What of an identity a new MLflow server decides: its own mark, and through the receipt its ids."""
OF_ITS_OWN = {Kind.RUN, Kind.MACHINE, Kind.LOCK, Kind.LIBRARIES, Kind.SIGNATURE, Kind.EXPORT}
lane = [
    pytest.mark.docker,
    pytest.mark.lane,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.environ.get("BIOVLM_DOCKER") != "1", reason="the docker lane runs this: make test-docker"),
]


def settings(home="/home/someone/.biovlm"):
    return Settings.from_environment({"BIOVLM_HOME": home, "BIOVLM_RUN_ID": "run-1"})


# ------------------------------------------------------------------------------------------------------- without a daemon


def test_a_container_is_never_root():
    assert ray_head.user(0, 0) == "10001:0"
    assert ray_head.user(1000, 100) == "1000:100"


def test_a_step_gets_a_read_only_root_no_capability_and_a_home_of_its_own():
    found = containers.step_arguments(settings(), ["BIOVLM_HOME"], 0, 0)
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert "no-new-privileges" in found["security_opt"]
    assert found["user"].split(":")[0] not in ("", "0", "root")
    assert "/home/someone/.biovlm" in found["tmpfs"]
    written = [mount["Target"] for mount in found["mounts"] if not mount["ReadOnly"]]
    assert written == ["/home/someone/.biovlm/runs/run-1"]


def test_no_value_of_a_variable_stands_in_what_is_written_for_the_engine():
    text = json.dumps(containers.step_arguments(settings(), ["AWS_SECRET_ACCESS_KEY"], 0, 0))
    assert "AWS_SECRET_ACCESS_KEY" in text
    command = ray_head.head_command("run-1", "10001:0", ["AWS_SECRET_ACCESS_KEY"], Path("/run/token"))
    assert not [part for part in command if part.startswith("AWS_SECRET_ACCESS_KEY=")]


def test_the_machines_key_is_lent_to_a_run_readable_by_its_user_alone_and_taken_back(tmp_path):
    mine = settings(str(tmp_path))
    mine.run_folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        lent = containers._lend_keys(mine, stack)
        path = Path(lent["BIOVLM_SIGNING_KEY"])
        assert (path.stat().st_mode & 0o777, keys.fingerprint_of(path)) == (0o600, keys.fingerprint_of(keys.private(mine)))
        there = Settings.from_environment({"BIOVLM_HOME": str(tmp_path / "pod"), **lent})
        assert list(keys.trusted(there)) == list(keys.trusted(mine)), "a step believes what another signed"
    assert not path.exists()


def test_the_runner_takes_every_argument_and_fills_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("BIOVLM_HOME", "/h")
    path = tmp_path / "docker.json"
    path.write_text(json.dumps(containers.step_arguments(settings(), ["BIOVLM_HOME"], 0, 0)))
    assert engine.docker_runner(path).container_run_args["environment"] == {"BIOVLM_HOME": "/h"}


def test_the_variables_of_the_package_do_not_take_the_place_of_the_runners():
    """KFP's DockerRunner gives a container the variables of its task instead of its own, not besides."""
    import yaml

    def variables(text):
        executors = next(yaml.safe_load_all(text))["deploymentSpec"]["executors"].values()
        return [executor["container"].get("env") for executor in executors]

    text = local.COMPILED.read_text(encoding="utf-8")
    assert any(variables(text))
    assert not any(variables(engine.bare(text)))


def test_images_of_other_code_are_refused_before_anything_starts():
    both = {image: {containers.CODE_LABEL: "a" * 64} for image in (containers.LAUNCHER, ray_head.TRAIN)}
    containers.check(both, "a" * 64)
    with pytest.raises(RefusedError, match="keys of its steps would be others"):
        containers.check(both, "b" * 64)
    with pytest.raises(RefusedError):
        containers.check({**both, ray_head.TRAIN: {}}, "a" * 64)
    with pytest.raises(MissingInputError, match="biovlm-train") as told:
        containers.check({**both, ray_head.TRAIN: None}, "a" * 64)
    assert "make images" in told.value.hint


def test_a_container_that_vanished_before_it_was_asked_is_no_success(tmp_path, monkeypatch):
    """KFP's DockerRunner takes it for one. The step's own event says otherwise."""
    mine = settings(str(tmp_path))
    mine.run_folder.mkdir(parents=True)
    monkeypatch.setattr(local.sys, "executable", "/bin/true")
    assert local._execute(mine, lambda: None, None) is None
    events.EventLog(mine.events, "promote").write(EventType.FAILED, exit_code=77, message="refused", hint="look")
    letter = local._execute(mine, lambda: None, None)
    assert isinstance(letter, RefusedError)
    assert letter.message == "promote: refused"


def test_a_stop_goes_into_the_container_and_never_to_a_process_of_this_machine(tmp_path, monkeypatch):
    said = []

    class Container:
        def exec_run(self, command):
            said.append(command)

    monkeypatch.setattr(containers, "_client", lambda: contextlib.nullcontext(None))
    monkeypatch.setattr(containers, "_mine", lambda client, run_id, step=False: [Container()] if step else [])
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a number of a container's process was taken for one of ours"))
    event = events.EventLog(tmp_path / "events.jsonl", "data").write(EventType.STEP_STARTED, facts={"pid": 9})
    containers.Site(settings(), tmp_path).stop(event)
    assert said == [["sh", "-c", "kill -TERM 9"]]


def test_a_missing_server_is_named_with_the_way_to_it(monkeypatch):
    monkeypatch.setattr(grounds, "POSTGRES_BINARIES", Path("/nowhere"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingInputError, match="PostgreSQL") as told:
        grounds.check()
    assert "apt-get install postgresql" in told.value.hint


# ------------------------------------------------------------------------------------------------------------ in the lane


def biovlm(home, *arguments, **environment):
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "BIOVLM_HOME": str(home), "PYTHONPATH": path, **environment}
    for name in ("MLFLOW_TRACKING_URI", "BIOVLM_STORE", "BIOVLM_DATA"):
        env.pop(name, None)
    return subprocess.Popen(
        (sys.executable, "-m", "pipelines.cli", *arguments),
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return json.loads(out)


def run(homes, which, *options):
    return biovlm(homes / which, "run", "--recipe", str(homes / "micro.yaml"), "--json", *options)


def read_unless(log, run_id):
    return [] if log.parent.name == run_id else events.read(log)


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Two homes with the same data, and the recipe beside them."""
    folder = tmp_path_factory.mktemp("homes")
    micro.fill(folder / "processes")
    (folder / "micro.yaml").write_text(micro.recipe().model_dump_json())  # JSON is YAML
    for name in ("data", "dvc-remote"):
        shutil.copytree(folder / "processes" / name, folder / "containers" / name, symlinks=True)
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)  # pytest closes them to others, and a container is another user
    return folder


@pytest.fixture(scope="module")
def results(homes):
    """Kind of runner -> home, result."""
    began = time.monotonic()
    in_containers = finished(run(homes, "containers", "--runner", "docker"))
    between = time.monotonic()
    in_processes = finished(run(homes, "processes"))
    print(f"\nin containers: {between - began:.0f} s; in processes: {time.monotonic() - between:.0f} s")
    return {"containers": (homes / "containers", in_containers), "processes": (homes / "processes", in_processes)}


def records(home, result):
    """Step -> the record of its result."""
    log = events.read(Path(result["folder"]) / "events.jsonl")
    ends = {event.step: event.facts for event in log if event.type is EventType.FINISHED and "key" in event.facts}
    store = Store(home / "store")
    return {step: store.record(facts["kind"], facts["key"]) for step, facts in ends.items()}


def lineage_of(home, result):
    """The lineage of the version that a run made."""
    return version.read(Store(home / "store"), records(home, result)["register"].key)


def docker_id(image):
    """What docker knows an image by."""
    asked = ("docker", "image", "inspect", "--format", "{{.Id}}", image)
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def edges_of(document):
    """Edges between what an image has not of its own, without their facts."""
    kinds = {node.id: node.kind for node in document.nodes}
    ends = ((edge.source, edge.role, edge.target) for edge in document.edges)
    return sorted((a, role, b) for a, role, b in ends if not {kinds[a], kinds[b]} & OF_ITS_OWN)


class TestInContainers:
    pytestmark = lane

    def test_every_step_of_the_pipeline_ran(self, results):
        for _, result in results.values():
            states = {step["name"]: step["state"] for step in result["steps"]}
            assert states == {**dict.fromkeys(states, "ran"), "preflight": "checked", "champion": "reused"}

    def test_every_step_was_a_container(self, results):
        _, result = results["containers"]
        text = (Path(result["folder"]) / "kfp.log").read_text()
        assert text.count(f"Found image '{containers.LAUNCHER}'") == len(result["steps"])

    def test_keys_are_the_same_in_containers_and_in_processes(self, results):
        one, other = (records(*results[name]) for name in ("containers", "processes"))
        assert set(one) == set(other) == {"data", "align", "instruct", "task", "evaluate", "register", "promote"}
        same = {step for step in one if one[step].key == other[step].key}
        assert same >= {"data", "align", "instruct", "task", "evaluate"}

    def test_what_a_key_was_made_of_is_the_same_but_for_the_marks_of_a_server(self, results):
        one, other = (records(*results[name]) for name in ("containers", "processes"))
        for step in one:
            a, b = one[step], other[step]
            assert (a.kind, a.name, a.piece, a.code, a.revision) == (b.kind, b.name, b.piece, b.code, b.revision), step
            differ = {role for role in {*a.identity, *b.identity} if a.identity.get(role) != b.identity.get(role)}
            assert differ <= OF_ITS_SERVERS, step
            assert {role: source.digest for role, source in a.inputs.items() if role not in OF_ITS_SERVERS} == {
                role: source.digest for role, source in b.inputs.items() if role not in OF_ITS_SERVERS
            }, step

    def test_the_lineage_of_the_version_is_the_same_but_for_what_an_image_has_of_its_own(self, results):
        """The same graph of digests, keys, commits and licences. An image has another run, machine and lock, another patch release of
        Python, and the launcher, which made the data, names no library that it has not got."""
        one, other = (lineage_of(*results[name]) for name in ("containers", "processes"))
        assert edges_of(one) == edges_of(other)
        for kind in (
            Kind.CHECKPOINT,
            Kind.REPORT,
            Kind.DATA,
            Kind.SET,
            Kind.BASE,
            Kind.CODE,
            Kind.COMMIT,
            Kind.SLICE,
            Kind.RECIPE,
        ):
            assert one.of(kind) == other.of(kind) != (), kind
        assert [node.digest for node in one.of(Kind.STEP)] == [node.digest for node in other.of(Kind.STEP)]

    def test_the_lineage_names_both_images_by_the_digest_of_their_content(self, results):
        steps = lineage_of(*results["containers"]).of(Kind.STEP)
        wanted = {target: f"{name.partition(':')[0]}@{docker_id(name)}" for target, name in IMAGES.items()}
        assert [node.facts["images"] for node in steps] == [wanted] * len(steps)

    def test_nothing_of_a_run_is_left(self, results):
        left = subprocess.run(
            ("docker", "ps", "--all", "--quiet", "--filter", f"label={ray_head.RUN_LABEL}"),
            capture_output=True,
            text=True,
            check=True,
        )
        assert left.stdout == ""
        home, _ = results["containers"]
        assert not list(home.glob("runs/*/signing.pem")), "the key that was lent is taken back"

    def test_a_run_that_is_stopped_ends_with_75_and_leaves_no_container(self, homes, results):
        home, before = homes / "containers", results["containers"][1]["run_id"]
        process = run(homes, "containers", "--runner", "docker")
        deadline = time.monotonic() + 600
        while not any(
            event.step == "data" for log in (home / "runs").glob("*/events.jsonl") for event in read_unless(log, before)
        ):
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 75, err[-3000:]
        self.test_nothing_of_a_run_is_left(results)

    @pytest.mark.parametrize("step", STEPS)
    def test_a_step_needs_no_torch_in_the_launcher(self, step):
        absent = "import importlib.util as u; assert not [m for m in ('torch', 'ray', 'transformers') if u.find_spec(m)]"
        command = ("docker", "run", "--rm", "--network", "none", "--read-only", "--user", "10001", "--cap-drop", "ALL")
        code = f"{absent}; import components.{step}.step"
        subprocess.run((*command, containers.LAUNCHER, "python", "-c", code), check=True)

    @pytest.mark.parametrize("image", [containers.LAUNCHER, ray_head.TRAIN, "biovlm-mlflow:latest"])
    def test_an_image_runs_confined_and_can_write_its_home_alone(self, image):
        command = (
            "docker",
            "run",
            "--rm",
            "--network",
            "none",
            "--read-only",
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
        )
        script = "id -u; touch $HOME/x /tmp/x && echo home; touch /app/x /etc/x 2> /dev/null || echo closed"
        told = subprocess.run((*command, image, "sh", "-c", script), capture_output=True, text=True, check=True).stdout.split()
        assert told == ["10001", "home", "closed"]

    @pytest.mark.parametrize("target", ["launcher", "train", "mlflow"])
    def test_an_image_says_what_it_is_made_of(self, target):
        told = json.loads((ROOT / "build" / "images" / f"{target}.json").read_text())
        labels = told["labels"]
        assert len(labels["org.opencontainers.image.revision"]) == 40
        assert len(labels["io.biovlm.lock"]) == len(labels["io.biovlm.code"]) == 64
        sbom = json.loads((ROOT / "build" / "images" / told["sbom"]["file"]).read_text())
        names = {component["name"] for component in sbom["components"]}
        wanted = {"launcher": {"kfp", "kubernetes", "git"}, "train": {"torch", "ray", "gcc"}, "mlflow": {"Flask-WTF", "boto3"}}
        assert {name.lower() for name in wanted[target]} <= {name.lower() for name in names}
        assert sbom["bomFormat"] == "CycloneDX"
