"""What a cluster has and lacks for a recipe, before any GPU is asked for: `biovlm doctor --cluster`.

1. `CHECKS` names the questions; each gets a `Ground` and yields findings, and a letter that it raises becomes one.
2. `examine` asks them all, however many fail: a person mends everything at once.

Questions that only the Kubernetes API answers stand in `doctor_kubernetes.py`; where this machine has no kubeconfig, each ends in a finding
that says so.
"""

from __future__ import annotations

import email.utils
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from components.data.registry import Registry
from components.platform import pools
from components.platform.addresses import Addresses
from components.platform.lineage import licences
from components.platform.lineage.licences import Terms
from components.platform.settings import Settings
from components.platform.store import open_store
from components.platform.tracking import Tracking
from model.config import Purpose, Recipe
from model.errors import BiovlmError
from model.recipe import REGISTRY_PREFIX
from pipelines import biovlm, cluster, doctor_kubernetes, estimate, submit
from pipelines.cluster import Server
from pipelines.doctor import Finding, Level
from pipelines.doctor_kubernetes import Kubernetes

MOST_SKEW_SECONDS = 60.0
"""A token is valid from a moment on, and S3 refuses a request that is signed five minutes off."""


@dataclass(frozen=True)
class Ground:
    """What the questions are about."""

    settings: Settings
    addresses: Addresses
    recipe: Recipe
    budget: float | None = None

    @cached_property
    def server(self) -> Server:
        """A client of the KFP server. Errors as `cluster.connect`."""
        return cluster.connect(self.addresses)

    @cached_property
    def kubernetes(self) -> Kubernetes:
        """What is asked of the Kubernetes API."""
        return Kubernetes(self.settings, self.addresses, self.recipe)


Check = Callable[[Ground], Iterator[Finding]]


def examine(ground: Ground) -> list[Finding]:
    """All findings."""
    found: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            found.extend(check(ground))
        except BiovlmError as error:
            found.append(Finding(name=name, level=Level.MISSING, found=error.message, hint=error.hint))
    return found


def _ok(name: str, found: str) -> Finding:
    return Finding(name=name, level=Level.OK, found=found)


def _pipelines(ground: Ground) -> Iterator[Finding]:
    yield _ok("kubeflow", f"{ground.server.check()} at {ground.addresses.pipelines}")
    ground.server.namespace()


def _package(ground: Ground) -> Iterator[Finding]:
    wanted = submit.package(ground.addresses)
    yield _ok("images", "both by digest")
    pipeline = ground.server.pipeline(biovlm.NAME)
    known = ground.server.versions(pipeline) if pipeline else []
    newest = known[0] if known else None
    if newest is not None and wanted.digest in (newest.description or ""):
        yield _ok("package", f"the newest version is that of this code, {wanted.version}")
    else:
        hint = "`biovlm submit` or `biovlm schedule apply` uploads it; schedules take the newest"
        said = "the newest version is of other code" if known else "not on the server yet"
        yield Finding(name="package", level=Level.WARN, found=said, hint=hint)


def _clock(ground: Ground) -> Iterator[Finding]:
    try:
        with urllib.request.urlopen(f"{ground.addresses.server()}/apis/v1beta1/healthz", timeout=10) as answer:
            stated = answer.headers.get("date")
    except urllib.error.HTTPError as error:
        stated = error.headers.get("date")  # also a refusal is dated
    except OSError:
        return  # said by another question
    skew = abs(time.time() - email.utils.parsedate_to_datetime(stated).timestamp()) if stated else 0.0
    if skew > MOST_SKEW_SECONDS:
        hint = "set the clock by NTP: tokens and signed requests are refused"
        yield Finding(name="clock", level=Level.MISSING, found=f"{skew:.0f} s apart from the server's", hint=hint)
    elif stated:
        yield _ok("clock", f"within {MOST_SKEW_SECONDS:.0f} s of the server's")


def _store(ground: Ground) -> Iterator[Finding]:
    if not ground.settings.shared_store:
        hint = "set BIOVLM_STORE to the s3://BUCKET/PREFIX of the cluster to have it tried from here"
        yield Finding(name="store", level=Level.WARN, found="no bucket is named on this machine", hint=hint)
        return
    open_store(ground.settings).check()
    yield _ok("store", f"{ground.settings.shared_store} takes conditional writes")


def _tracking(ground: Ground) -> Iterator[Finding]:
    if not ground.settings.tracking_uri.startswith(("http://", "https://")):
        hint = "set MLFLOW_TRACKING_URI to the cluster's server: the letters of failed steps are read from there"
        yield Finding(name="tracking", level=Level.WARN, found="no server is named on this machine", hint=hint)
        return
    store = Tracking(ground.settings)
    yield _ok("tracking", f"{ground.settings.tracking_uri}, experiment {ground.settings.experiment}")
    try:
        store.try_writing(ground.recipe.registered_model)
    except BiovlmError as error:
        yield Finding(name="registry", level=Level.MISSING, found=error.message, hint=error.hint)
    else:
        yield _ok("registry", f"takes what this login writes of {ground.recipe.registered_model}")


def _pool(ground: Ground) -> Iterator[Finding]:
    name, pool = pools.choose(pools.load(ground.settings.pools), ground.recipe.resources.pool)
    pools.check(name, pool, ground.recipe.resources)
    yield _ok("pool", f"{name}, queue {pool.queue}")


def _kubernetes(ask: Callable[[Kubernetes], Iterator[Finding]]) -> Check:
    """The question `ask` as one of this table."""
    return lambda ground: ask(ground.kubernetes)


def _bases(ground: Ground) -> Iterator[Finding]:
    registry, purpose = Registry(ground.settings.home), ground.recipe.promotion.purpose
    for part in ("tower", "language"):
        source = getattr(ground.recipe.model, part)
        if source.source and (wrong := _against(part, source.licence, purpose)):
            yield wrong
        elif source.source and source.source.startswith(REGISTRY_PREFIX):
            yield _weights(part, source.source.removeprefix(REGISTRY_PREFIX), source.licence, registry)
        else:
            yield _ok(part, f"{source.source or 'drawn from the seed'}, {source.licence}")


def _against(name: str, licence: str, purpose: Purpose) -> Finding | None:
    """What speaks against using something under its licence. One that nobody knows stops no training, as in preflight."""
    if licences.terms(licence) is Terms.UNKNOWN:
        said = f"no licence is known by the name {licence!r}: what is trained on it cannot be promoted"
        return Finding(name=name, level=Level.WARN, found=said, hint="ask who offers it, and write the licence down")
    if words := licences.against(licence, purpose):
        hint = "take another, or a purpose that the licence allows; the gate would refuse the version in the end"
        return Finding(name=name, level=Level.MISSING, found=f"{licence}: {words}; the purpose is {purpose}", hint=hint)
    return None


def _weights(part: str, name: str, licence: str, registry: Registry) -> Finding:
    """Whether the data registry knows a base model's weights, by digest."""
    try:
        found = registry.version(name)
    except BiovlmError as error:
        said = f"{name} is not known to the data registry of this machine"
        return Finding(name=part, level=Level.WARN, found=said, hint=error.hint or "the data step looks for it on the cluster")
    return _ok(part, f"{name} {found.digest[:12]}, {licence}")


def _sets(ground: Ground) -> Iterator[Finding]:
    """Whether the licences of the data sets allow the purpose, as far as this machine's data registry knows them."""
    registry, purpose = Registry(ground.settings.home), ground.recipe.promotion.purpose
    for name, wanted in ground.recipe.data.sets.items():
        try:
            licence = str(registry.version(name, wanted.revision).facts.get("licence", ""))
        except BiovlmError:
            continue  # the data step asks for it on the cluster
        if wrong := _against(f"data {name}", licence, purpose):
            yield wrong
        else:
            yield _ok(f"data {name}", licence)


def _cost(ground: Ground) -> Iterator[Finding]:
    if not ground.recipe.resources.gpus_per_worker:
        yield _ok("cost", "no GPU is asked for")
        return
    found = estimate.of(ground.recipe, ground.settings)
    if found is None:
        hint = "run it where the data registry and the base models are, or trust the deadline"
        yield Finding(name="cost", level=Level.WARN, found="cannot be told here", hint=hint)
        return
    error = estimate.judge(ground.recipe, found, ground.budget)
    if error is not None:
        raise error
    yield _ok("cost", f"about {found.total:,.1f} GPU hours at most")


CHECKS: dict[str, Check] = {
    "kubeflow": _pipelines,
    "package": _package,
    "clock": _clock,
    "store": _store,
    "tracking": _tracking,
    "pool": _pool,
    "kubernetes": _kubernetes(doctor_kubernetes.versions),
    "secrets": _kubernetes(doctor_kubernetes.secrets),
    "ray job": _kubernetes(doctor_kubernetes.ray_job_taken),
    "queue": _kubernetes(doctor_kubernetes.queue),
    "registry of images": _kubernetes(doctor_kubernetes.images),
    "bases": _bases,
    "data": _sets,
    "cost": _cost,
}
"""In the order in which a person would mend them."""
