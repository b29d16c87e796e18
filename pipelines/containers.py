"""`biovlm run --runner docker`: every step in the launcher image, heavy work on a Ray head in the train image.

1. `check` demands both images, made of the code of this checkout: else their steps would have other keys.
2. `site` lays the grounds (grounds.py), starts the head with a token of its own, and settles what a step is told.
3. `step_arguments` says how KFP's DockerRunner starts a step: numeric user, read-only root, no capabilities, its own empty home in
   memory, as a pod on a fresh node has it. What a step shares with this machine is the run's folder (KFP's files, events) and the
   data registry, read-only; everything else goes through the shared store. Values of secrets stand in no file but the
   token's and, until the run ends, the signing key's, which only the steps' user may read.
4. A stop goes to the process in the step's container. On leaving, whatever still runs of this run's containers is removed, and so
   are those of a command that was killed before it could.

The home of a step has the path that it has here, so that paths in events mean the same on both sides.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.data.registry import Registry
from components.platform import code, keys, launch
from components.platform.events import Event
from components.platform.settings import Settings
from components.platform.store import open_store
from model import recipe as recipes
from model.config import DataSlice, Recipe
from model.errors import BiovlmError, MissingInputError, RefusedError
from pipelines import grounds, ray_head
from pipelines.ray_head import OWNER_LABEL, RUN_LABEL, TRAIN, give, labelled, user

if TYPE_CHECKING:
    import docker
    from docker.models.images import Image

    from pipelines.summary import RunResult

LAUNCHER = "biovlm-launcher-python:latest"
CODE_LABEL = "io.biovlm.code"
REGISTRY = Path("/registry")
"""Where a step finds the Git repository of this machine's data registry."""
CONFINED: dict[str, Any] = {
    "network_mode": "host",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "init": True,
}


@dataclass(frozen=True)
class Site:
    """Where and how the steps of a run are executed."""

    settings: Settings
    arguments: Path
    """File with the arguments of KFP's DockerRunner."""

    def stop(self, event: Event) -> None:
        """Ask the step that began with `event` to end: SIGTERM to its process, by its number in its own container."""
        with _client() as client:
            for found in _mine(client, self.settings.run_id, step=True):
                found.exec_run(["sh", "-c", f"kill -TERM {int(event.facts['pid'])}"])


@contextlib.contextmanager
def site(settings: Settings, recipe: Recipe, tell: Callable[[str], None]) -> Iterator[Site]:
    """Inside, everything runs that the containers of this run need.

    Args:
        settings: Of the run.
        recipe: What is run.
        tell: Gets a line for what takes its time.

    Raises:
        MissingInputError: Docker, an image, or what the grounds need is missing. RefusedError: The images hold other code.
        InternalError: Something did not start.
    """
    folder = settings.run_folder
    grounds.check()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_client())
        images = {name: _image(client, name) for name in (LAUNCHER, TRAIN)}
        check({name: dict(image.labels) if image else None for name, image in images.items()}, code.everything())
        _sweep(client)
        wanted = DataSlice.model_validate(recipes.slices(recipe)["data"])
        _lay_data(settings, wanted, tell)
        tell("starting PostgreSQL, MLflow, an S3 server and a Ray head")
        reach, laid = stack.enter_context(grounds.lay(folder))
        token = ray_head.secret(folder / "ray-token")
        address = stack.enter_context(ray_head.running(settings, launch.cpus_for(recipe.resources), reach, token))
        laid()
        told = {
            **reach,
            "BIOVLM_LAUNCHER": "jobs",
            "BIOVLM_RAY_ADDRESS": address,
            "BIOVLM_DATA": f"file://{REGISTRY}",
            **_by_digest(images),
            **_lend_keys(settings, stack),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
        }
        stack.enter_context(_in_environment(told))
        mine = Settings.from_environment({**os.environ, **settings.for_children(), **told})
        path = folder / "docker.json"
        path.write_text(
            json.dumps(step_arguments(mine, sorted({*told, *mine.for_children()}), os.geteuid(), os.getegid()), indent=1)
        )
        _hand_over(folder)
        stack.callback(_remove, client, settings.run_id)
        yield Site(mine, path)


def _lay_data(settings: Settings, wanted: DataSlice, tell: Callable[[str], None]) -> None:
    """Make what is missing, which needs a torch that the launcher has not; and lay it into this store, where `bring_home` and the
    report look first."""
    registry = Registry(settings.home)
    registry.ensure((*wanted.data.sets, *wanted.bases), tell)
    for name, entry in wanted.data.sets.items():
        registry.materialise([name], entry.revision, settings.store)
    registry.materialise(wanted.bases, "HEAD", settings.store)


def _lend_keys(settings: Settings, stack: contextlib.ExitStack) -> dict[str, str]:
    """Let the steps sign with this machine's key while `stack` is open: a copy that their user may read, and the keys that are trusted.

    DockerRunner starts all steps alike, so each gets it; a pod has it where it signs alone. The Ray head gets neither."""
    if not settings.signing:
        return {}
    own, known = settings.run_folder / "signing.pem", settings.run_folder / "trusted-keys"
    stack.callback(own.unlink, missing_ok=True)
    own.touch(mode=0o600)
    own.write_bytes(keys.private(settings).read_bytes())
    known.mkdir()
    for name, path in keys.trusted(settings).items():
        shutil.copyfile(path, known / f"{name}.pem")
    return {"BIOVLM_SIGNING_KEY": str(own), "BIOVLM_TRUSTED_KEYS": str(known)}


def bring_home(settings: Settings, result: RunResult) -> None:
    """Bring what the steps made into the store of this machine: the bucket ends with the run."""
    store = open_store(settings)
    for folder in filter(None, (step.folder for step in result.steps)):
        uri = store.uri(Path(folder))
        with contextlib.suppress(BiovlmError):  # of a run that failed there is what there is
            store.fetch(uri)
            if record := store.record_of(uri):
                store.write_record(record)


def check(labels: Mapping[str, Mapping[str, str] | None], now: str) -> None:
    """Compare the images with the code of this checkout.

    Args:
        labels: Image -> its labels; None where there is no such image.
        now: Digest of the code here.
    """
    missing = [name for name, found in labels.items() if found is None]
    if missing:
        raise MissingInputError(f"no image {', '.join(missing)}", "`make images` builds them")
    stale = [name for name, found in labels.items() if found is not None and found.get(CODE_LABEL) != now]
    if stale:
        held = (labels[stale[0]] or {}).get(CODE_LABEL, "none")
        raise RefusedError(
            f"{', '.join(stale)}: code {held[:12]}, this checkout has {now[:12]}: the keys of its steps would be others",
            "`make images` builds them anew",
        )


def step_arguments(settings: Settings, names: list[str], uid: int, gid: int) -> dict[str, Any]:
    """Arguments of KFP's DockerRunner; `environment` holds names, whose values the engine takes from its own environment."""
    who = user(uid, gid)
    owner, _, group = who.partition(":")
    writable = f"uid={owner},gid={group},mode=0770"
    followed = settings.home / "registries"  # clones lie there, and name their remote relative to themselves
    return {
        **CONFINED,
        "user": who,
        "environment": names,
        "tmpfs": {str(settings.home): writable, str(followed): writable, "/home/biovlm": writable, "/tmp": "mode=1777"},
        "mounts": [
            _mount(settings.run_folder, settings.run_folder, write=True),
            _mount(settings.data_registry, REGISTRY),
            _mount(settings.dvc_remote, followed / settings.dvc_remote.name),
        ],
        "labels": {**labelled(settings.run_id), "io.biovlm.step": "1"},
    }


def _mount(source: Path, target: Path, write: bool = False) -> dict[str, Any]:
    return {"Type": "bind", "Source": str(source), "Target": str(target), "ReadOnly": not write}


@contextlib.contextmanager
def _in_environment(told: Mapping[str, str]) -> Iterator[None]:
    """Inside, this process sees what its steps see: it mirrors events to the same MLflow, and reads the same store."""
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _hand_over(folder: Path) -> None:
    """Let containers write into the run's folder, and nobody else look into it."""
    folder.chmod(0o770)
    (folder / "kfp").mkdir(exist_ok=True)
    give(folder, *folder.rglob("*"))


# ------------------------------------------------------------------------------------------------------------------- docker


@contextlib.contextmanager
def _client() -> Iterator[docker.DockerClient]:
    import docker

    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        raise MissingInputError(
            f"no container daemon answers: {type(error).__name__}", "start docker (`dockerd`), or set DOCKER_HOST"
        ) from None
    try:
        yield client
    finally:
        client.close()


def _image(client: docker.DockerClient, name: str) -> Image | None:
    import docker

    try:
        return client.images.get(name)
    except docker.errors.ImageNotFound:
        return None


def _by_digest(images: Mapping[str, Image | None]) -> dict[str, str]:
    """What lineage is told of the images: each by the digest of its content, docker's id; a name may mean another image tomorrow."""
    variables = {LAUNCHER: "BIOVLM_LAUNCHER_IMAGE", TRAIN: "BIOVLM_TRAIN_IMAGE"}
    return {variables[name]: f"{name.partition(':')[0]}@{image.id}" for name, image in images.items() if image}


def _mine(client: docker.DockerClient, run_id: str, step: bool = False) -> list[Any]:
    wanted = [f"{RUN_LABEL}={run_id}", *(["io.biovlm.step=1"] if step else [])]
    return list(client.containers.list(filters={"label": wanted}))


def _remove(client: docker.DockerClient, run_id: str) -> None:
    import docker

    for found in _mine(client, run_id):
        with contextlib.suppress(docker.errors.APIError):  # it is just going by itself
            found.remove(force=True, v=True)


def _sweep(client: docker.DockerClient) -> None:
    """Remove containers whose command is gone."""
    for found in client.containers.list(filters={"label": OWNER_LABEL}):
        if not Path("/proc", found.labels[OWNER_LABEL]).exists():
            _remove(client, found.labels[RUN_LABEL])
