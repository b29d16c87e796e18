"""What the Kubernetes cluster has and lacks for a recipe: the questions of `biovlm doctor --cluster` that only its API server answers.

1. `versions`: the server, KubeRay's and Kueue's definitions, each in a version that we speak.
2. `secrets`: those that steps and Ray pods name, by metadata alone.
3. `ray_job`: whether the server would take the first RayJob of the recipe, schema, admission and rights included; nothing is kept.
4. `queue`: whether the pool's queue is there, whether it could ever admit that RayJob, and how many jobs of ours there are.
5. `images`: whether the registry has both, by digest, as far as it tells somebody without a login.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from components.platform import pools
from components.platform.addresses import Addresses
from components.platform.heavy import HeavyWork
from components.platform.kuberay import quota
from components.platform.kuberay.client import KUEUE_GROUP, KUEUE_VERSIONS, Cluster, Object
from components.platform.kuberay.manifest import GROUP, VERSION, ray_job
from components.platform.kuberay.site import Site
from components.platform.kuberay.survey import Survey
from components.platform.settings import Settings
from model.config import Recipe
from model.errors import BiovlmError
from pipelines import pods
from pipelines.doctor import Finding, Level

CHECKED_AGAINST = (1, 32)
"""The Kubernetes whose schemas the manifests were checked against (infra/README.md)."""
DOCKER_HUB = "registry-1.docker.io"
KINDS = ",".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class Kubernetes:
    """What the questions are about."""

    settings: Settings
    addresses: Addresses
    recipe: Recipe

    @cached_property
    def survey(self) -> Survey:
        """The way to the server. Errors as `client.connect`."""
        return Survey(self.addresses.jobs_namespace)


def versions(ground: Kubernetes) -> Iterator[Finding]:
    """The server and the definitions that we need."""
    found = ground.survey.version()
    text = ".".join(map(str, found))
    if found < CHECKED_AGAINST:
        checked = ".".join(map(str, CHECKED_AGAINST))
        yield _finding(
            "kubernetes", Level.WARN, text, f"the manifests were checked against {checked}; an older server may refuse fields"
        )
    else:
        yield _finding("kubernetes", Level.OK, text)
    for name, group, spoken in (("kuberay", GROUP, (VERSION,)), ("kueue", KUEUE_GROUP, KUEUE_VERSIONS)):
        served = ground.survey.served(group)
        if not set(served) & set(spoken):
            has = f"{group} is served as {', '.join(served)}" if served else f"no definitions of {group}"
            hint = f"install a {name} that serves {' or '.join(spoken)} (infra/README.md says which were checked)"
            yield _finding(name, Level.MISSING, has, hint)
        else:
            yield _finding(name, Level.OK, f"{group} {', '.join(served)}")


def secrets(ground: Kubernetes) -> Iterator[Finding]:
    """Secrets of the steps, of which a role of the pod may replace all but the keys, and of the Ray pods, which do not start without."""
    site = _site(ground)
    needed = set(site.secrets) if isinstance(site, Site) else set()
    if ground.settings.signing:
        needed |= {pods.SIGNING, pods.TRUSTED}
    for name in sorted({*pods.SECRETS, *needed}):
        there = ground.survey.has_secret(name)
        if there:
            yield _finding(name, Level.OK, "the Secret is there")
        elif there is None:
            yield _finding(name, Level.WARN, "this account may not see Secrets", "ask the platform team whether it is there")
        else:
            level = Level.MISSING if name in needed else Level.WARN
            said = f"no such Secret in {ground.survey.namespace}"
            yield _finding(name, level, said, "infra/README.md lists the Secrets with their keys, and who reads them")


def ray_job_taken(ground: Kubernetes) -> Iterator[Finding]:
    """A dry run of the RayJob of the recipe's first stage."""
    site = _site(ground)
    if isinstance(site, BiovlmError):
        hint = "set what the launcher's pod gets from the ConfigMap `biovlm` to have a RayJob tried from here"
        yield _finding("ray job", Level.WARN, f"not tried: {site.message}", hint)
        return
    if ground.survey.would_take(_first_job(ground, site)):
        yield _finding("ray job", Level.OK, "the first one would be taken")
    else:
        hint = "the launcher's own account may; its role is in infra/kubernetes/base/access"
        yield _finding("ray job", Level.WARN, "this account may not start any", hint)


def queue(ground: Kubernetes) -> Iterator[Finding]:
    """The pool's queue, whether it could ever admit the first RayJob, and the jobs that are there."""
    _, pool = pools.choose(pools.load(ground.settings.pools), ground.recipe.resources.pool)
    jobs = Cluster(ground.addresses.jobs_namespace, patience_seconds=10)
    there = len(jobs.jobs("app.kubernetes.io/managed-by=biovlm"))
    yield _finding("ray jobs", Level.OK, f"{there} of ours in {ground.addresses.jobs_namespace}")
    whole, site = jobs.cluster_queue(pool.queue), _site(ground)
    if whole is None:
        hint = "ask the platform team whether the pool has room; the step itself asks again before it waits"
        yield _finding("queue", Level.WARN, f"{pool.queue} may not be read from here", hint)
    elif isinstance(site, BiovlmError):
        yield _finding("queue", Level.OK, pool.queue)  # what keeps a RayJob from being tried is said by another question
    elif why := quota.never_fits(_first_job(ground, site), whole):
        hint = "take fewer or smaller workers, another pool, or ask the platform team for more quota"
        yield _finding("queue", Level.MISSING, f"{pool.queue} can never admit this: {why}", hint)
    else:
        yield _finding("queue", Level.OK, f"{pool.queue} has room for it, once it is free")


def _first_job(ground: Kubernetes, site: Site) -> Object:
    """The RayJob of the recipe's first stage; others ask for as much. ConfigError: the pool cannot hold it."""
    name, pool = pools.choose(pools.load(ground.settings.pools), ground.recipe.resources.pool)
    desk = f"{site.store}/heavy/doctor"
    work = HeavyWork(
        key="0" * 64,
        step="align",
        run_id="doctor",
        recipe=ground.recipe.name,
        spec_uri=f"{desk}/spec.json",
        result_uri=f"{desk}/result.json",
        resources=ground.recipe.resources,
    )
    return ray_job(work, name, pool, site)


def images(ground: Kubernetes) -> Iterator[Finding]:
    """Both images in their registry."""
    for name, image in (("launcher image", ground.addresses.launcher_image), ("train image", ground.addresses.train_image)):
        if "@sha256:" not in image:
            continue  # said by another question
        address = manifest_address(image)
        try:
            request = urllib.request.Request(address, method="HEAD", headers={"Accept": KINDS})
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
                yield _finding(name, Level.OK, "in its registry, by digest")
        except urllib.error.HTTPError as error:
            yield _refused(name, image, error.code)
        except OSError as error:
            reason = getattr(error, "reason", error)
            said = f"{address.split('/')[2]} does not answer: {type(reason).__name__}"
            yield _finding(
                name, Level.WARN, said, "the nodes may have another way to it; see whether its name and port are right"
            )


def manifest_address(image: str) -> str:
    """Where a registry says whether it has an image by digest.

    Args:
        image: `REGISTRY/NAME@sha256:...`, as docker writes it: without a registry it is Docker Hub's.
    """
    name, _, digest = image.partition("@")
    host, _, rest = name.partition("/")
    if not rest or not ("." in host or ":" in host or host == "localhost"):
        host, rest = DOCKER_HUB, name if rest else f"library/{name}"
    scheme = "http" if host.partition(":")[0] in ("localhost", "127.0.0.1") else "https"
    head, _, last = rest.rpartition("/")
    return f"{scheme}://{host}/v2/{'/'.join(filter(None, (head, last.partition(':')[0])))}/manifests/{digest}"


def _refused(name: str, image: str, code: int) -> Finding:
    if code == 404:
        return _finding(
            name, Level.MISSING, f"its registry has no {image}", "push it, or name the digest that `docker push` told"
        )
    if code in (401, 403):
        hint = "the nodes need a pull secret for it, if the pool has none of its own"
        return _finding(name, Level.OK, f"its registry answers, and wants a login ({code})", hint)
    return _finding(name, Level.WARN, f"its registry says {code}", "try again, or look at the registry")


def _site(ground: Kubernetes) -> Site | BiovlmError:
    """The launcher's site, as far as this machine's environment describes it; else what it lacks."""
    try:
        return Site.from_environment()
    except BiovlmError as error:
        return error


def _finding(name: str, level: Level, found: str, hint: str = "") -> Finding:
    return Finding(name=name, level=level, found=found, hint=hint)
