"""Start runs on a cluster, and wait for them.

1. `package` compiles the pipeline with the images of the environment, or takes a file that was kept; one that is older than the code is
   refused.
2. `publish` uploads it as a version named by its digest, unless the server has that already.
3. `start` starts a run of that version with the recipe as its argument.
4. `follow` looks until the run is over, and tells each change. A server that is away for a while does not end the waiting.
"""

from __future__ import annotations

import functools
import getpass
import hashlib
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.platform.addresses import Addresses
from components.platform.origin import PERSON
from components.platform.settings import Settings
from model.config import Recipe
from model.errors import ConfigError, InternalError, MissingInputError
from model.manifest import digest_of
from pipelines import biovlm, runs
from pipelines.cluster import AlreadyThereError, AwayError, Server
from pipelines.pods import Images
from pipelines.runs import RunView

BY_DIGEST = re.compile(r"^[\w.:/-]+@sha256:[0-9a-f]{64}$")
TRIGGER, NAMELESS = re.compile(r"[a-z]{1,20}(:[\w.@/+-]{1,100})?"), re.compile(r"[^\w.@/+-]")
MOST_BYTES = 100_000
"""Of a recipe: Argo keeps the arguments of a run in one object of the cluster's database, which is bounded."""
POLL_SECONDS = 5.0
PATIENCE_SECONDS = 900.0
"""How long a server may be away while a command waits for a run."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """A compiled pipeline."""

    text: str
    digest: str

    @property
    def version(self) -> str:
        """Name of its version on the server."""
        return f"{biovlm.NAME}-{self.digest[:16]}"


def package(addresses: Addresses, kept: Path | None = None) -> Package:
    """What is submitted.

    Args:
        addresses: Name the images.
        kept: A compiled file to take instead.

    Raises:
        ConfigError: An image is not named by its digest, or the file is not what the code compiles to.
        MissingInputError: There is no such file.
    """
    if kept is None:
        return compiled(Images(addresses.launcher_image, addresses.train_image))
    try:
        found = read(kept.read_text(encoding="utf-8"))
        images = images_of(found)
    except OSError as error:
        raise MissingInputError(f"cannot read {kept}: {error.strerror}", "`biovlm compile --out FILE` writes one") from None
    except (yaml.YAMLError, KeyError, TypeError, IndexError, UnicodeDecodeError):
        raise ConfigError(f"{kept} is no compiled pipeline", "`biovlm compile --out FILE` writes one") from None
    now = compiled(images)
    if found != (made := read(now.text)):
        raise ConfigError(
            f"{kept} is older than the code: its digest is {digest_of(found)[:12]}, the code compiles to {digest_of(made)[:12]}",
            "compile it again with `biovlm compile`, or check out the code that it was made from",
        )
    return now


def checked(images: Images) -> Images:
    """These images. ConfigError if one of them can change under its name."""
    for name, image in (("launcher", images.launcher), ("train", images.train)):
        if not BY_DIGEST.match(image):
            raise ConfigError(
                f"the {name} image is {image!r}, which is no image by digest",
                f"set BIOVLM_{name.upper()}_IMAGE to REGISTRY/NAME@sha256:..., or give --{name}-image to `biovlm compile`",
            )
    return images


@functools.cache
def compiled(images: Images) -> Package:
    """The pipeline with these images. Errors as `checked`."""
    checked(images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "biovlm.yaml"
        biovlm.compile_to(path, images)
        text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith(("#", "sdkVersion:"))]
    return Package(text, hashlib.sha256("\n".join(lines).encode()).hexdigest())


def read(text: str) -> list[dict[str, Any]]:
    """Both documents of a package, without the version of the compiler."""
    documents = list(yaml.load_all(text, Loader=yaml.CSafeLoader))
    for document in documents:
        document.pop("sdkVersion", None)
    return documents


def images_of(documents: list[dict[str, Any]]) -> Images:
    """The images that a package names."""
    container = documents[0]["deploymentSpec"]["executors"]["exec-train"]["container"]
    train = next(entry["value"] for entry in container["env"] if entry["name"] == "BIOVLM_TRAIN_IMAGE")
    return Images(container["image"], train)


def publish(server: Server, wanted: Package) -> tuple[str, str]:
    """Ids of the pipeline and of the version with this package, uploaded if the server has not got it."""
    for _ in range(3):  # another process may upload at the same time; then its version is ours
        pipeline = server.pipeline(biovlm.NAME)
        known = server.versions(pipeline) if pipeline else []
        found = next((v for v in known if v.display_name == wanted.version or wanted.digest in (v.description or "")), None)
        if pipeline and found is not None:
            return pipeline, str(found.pipeline_version_id)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "biovlm.yaml"
            path.write_text(wanted.text, encoding="utf-8")
            try:
                name = wanted.version if pipeline else biovlm.NAME
                server.upload(path, name, pipeline, f"biovlm, package {wanted.digest}")
            except AlreadyThereError:
                continue
    pipeline = server.pipeline(biovlm.NAME)
    found = next((v for v in server.versions(pipeline) if wanted.version == v.display_name), None) if pipeline else None
    if pipeline is None or found is None:
        raise InternalError("the uploaded pipeline is not on the server", "look at its pipelines, then run the command again")
    return pipeline, str(found.pipeline_version_id)


def arguments(recipe: Recipe, budget: float | None, trigger: str) -> dict[str, str]:
    """The arguments of a run.

    Args:
        recipe: What is trained.
        budget: GPU hours that it may cost; None for no bound.
        trigger: Who or what begins it, for its lineage.

    Raises:
        ConfigError: The recipe is too big to travel as one, or the trigger is none.
    """
    if not TRIGGER.fullmatch(trigger):
        raise ConfigError(f"BIOVLM_TRIGGER is {trigger[:80]!r}", "write KIND or KIND:NAME, of letters, digits and . _ @ / + -")
    text = recipe.model_dump_json()
    if len(text.encode()) > MOST_BYTES:
        raise ConfigError(
            f"the recipe has {len(text.encode()):,} bytes, a run's argument at most {MOST_BYTES:,}",
            "long texts and inline model configs belong into the data registry",
        )
    return {"recipe": text, "budget": "" if budget is None else f"{budget:g}", "trigger": trigger}


def begun_by(settings: Settings) -> str:
    """Who or what starts a run from this process; a person by name, which is a claim: nothing has to be proved to start one."""
    if settings.trigger:
        return settings.trigger
    try:
        name = settings.actor or getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return PERSON
    return f"{PERSON}:{NAMELESS.sub('-', name)[:100]}"


def start(server: Server, recipe: Recipe, wanted: Package, settings: Settings, budget: float | None = None) -> str:
    """Start a run in the experiment of the settings; its id."""
    given = arguments(recipe, budget, begun_by(settings))
    server.check()
    pipeline, version = publish(server, wanted)
    name = f"{recipe.name} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    return server.start(name, server.experiment(settings.experiment), pipeline, version, given)


def follow(server: Server, run_id: str, tell: Tell, logs: bool = False) -> RunView:
    """Wait until a run is over; its last view.

    Args:
        server: The server.
        run_id: The run.
        tell: Is given each change, and each line of the steps' logs.
        logs: Also the logs.

    Raises:
        AwayError: The server was away too long. RefusedError: The token was refused. MissingInputError: The run was deleted.
    """
    seen: RunView | None = None
    shown: dict[str, int] = {}
    away_since: float | None = None
    while True:
        try:
            now = runs.view(server.run(run_id))
        except (AwayError, InternalError) as error:
            away_since = away_since or time.monotonic()
            if seen is None or time.monotonic() - away_since > PATIENCE_SECONDS:
                raise
            tell(f"the server does not answer, waiting on: {error.message}")
            _pause()
            continue
        away_since = None
        for line in runs.changes(seen, now):
            tell(line)
        if logs:
            _tell_logs(server, now, shown, tell)
        if now.over:
            return now
        seen = now
        _pause()


def _pause() -> None:
    time.sleep(POLL_SECONDS)


def _tell_logs(server: Server, run: RunView, shown: dict[str, int], tell: Tell) -> None:
    """The lines that were not shown yet. The server gives a log whole, so what is finished is asked once more and then left alone."""
    for step in run.steps:
        if step.state in ("waiting", "skipped") or shown.get(step.name, 0) < 0:
            continue
        lines = [line for pod in step.pods for line in server.log(run.run_id, pod).splitlines()]
        for line in lines[shown.get(step.name, 0) :]:
            tell(f"{step.name} | {line}")
        shown[step.name] = len(lines) if step.state == "running" else -1
