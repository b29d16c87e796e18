"""From one piece of heavy work to a RayJob: a pure function, so that tests and policy checks see what a cluster would.

1. `ray_job` checks what can be checked without a cluster: pool, size, deadline, addresses. Errors are letters before anything starts.
2. It builds head and workers (`kuberay/pods.py`), labels for cost, queue and priority, deadlines, and the environment.
3. The name is `<recipe>-<step>-<hash of run and spec>`: the same work of the same run has the same name, so an attempt finds the job
   of the one before. The spec's digest stands in a label; which attempt it is does not belong to it.
4. KubeRay itself never retries (`backoffLimit: 0`): it cannot tell a failure that a second try cannot change. Who may try again is
   decided in `kuberay/adopting.py`.
"""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from typing import Any

from components.platform import pools
from components.platform.heavy import ENTRYPOINT, HeavyWork
from components.platform.kuberay import pods
from components.platform.kuberay.rules import MOST_NAME, check
from components.platform.kuberay.site import ADDRESS, Site
from components.platform.retries import forgiven
from model import manifest
from model.errors import ConfigError

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
QUEUE = "kueue.x-k8s.io/queue-name"
PRIORITY = "kueue.x-k8s.io/priority-class"
MANAGED = "app.kubernetes.io/managed-by"
RUN = "biovlm.io/run"
SPEC_DIGEST = "biovlm.io/spec-digest"
BEFORE = "biovlm.io/tries-before"
ALLOWED = "biovlm.io/tries-allowed"
RUN_ID = "biovlm.io/run-id"
HASH_DIGITS = 10
HOUR = 3600


def ray_job(work: HeavyWork, name: str, pool: pools.Pool, site: Site, before: int = 0) -> dict[str, Any]:
    """The RayJob of `work` on the pool of that name.

    Args:
        work: What is done.
        name: The pool's name.
        pool: Where.
        site: The cluster.
        before: How often the work was tried before, over all layers.

    Raises:
        ConfigError: The pool cannot hold the work, the deadline is shorter than the estimate, an address has characters that a shell would
            change, or KubeRay or Kueue would refuse the job.
    """
    _check(work)
    spec = _spec(work, name, pool, site, 0)
    digest = manifest.digest_of(spec)[:40]
    allowed = 1 + forgiven(work.resources.max_failures, before)
    body: dict[str, Any] = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "RayJob",
        "metadata": {
            "name": job_name(work, digest),
            "namespace": site.namespace,
            "labels": {**_labels(work, name, site), SPEC_DIGEST: digest, QUEUE: pool.queue, PRIORITY: pool.priority},
            "annotations": {
                RUN_ID: work.run_id,
                BEFORE: str(before),
                ALLOWED: str(allowed),
                "biovlm.io/key": work.key,
                "biovlm.io/result": work.result_uri,
            },
        },
        "spec": _spec(work, name, pool, site, before),
    }
    if site.owner:
        body["metadata"]["ownerReferences"] = [owner_reference(site.owner.name, site.owner.uid)]
    check(body)
    return body


def job_name(work: HeavyWork, spec_digest: str) -> str:
    """A DNS-1035 label of at most 47 characters. ConfigError: the step's name leaves no room."""
    tail = hashlib.sha256(f"{work.run_id}\n{spec_digest}".encode()).hexdigest()[:HASH_DIGITS]
    step = _word(work.step)
    room = MOST_NAME - len(step) - HASH_DIGITS - 2
    if room < 1:
        raise ConfigError(
            f"the step's name {work.step[:60]!r} is too long for a RayJob: with its hash, {MOST_NAME} characters are allowed",
            f"name the step with at most {MOST_NAME - HASH_DIGITS - 3} characters",
        )
    recipe = _word(work.recipe)
    recipe = recipe if recipe[:1].isalpha() else f"r{recipe}"
    return f"{recipe[:room].rstrip('-')}-{step}-{tail}"


def owner_reference(name: str, uid: str) -> dict[str, Any]:
    """A reference to the launcher's pod, which need not wait for the job when it is deleted."""
    return {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid, "controller": False, "blockOwnerDeletion": False}


def label(text: str) -> str:
    """`text` as a label's value: what is not allowed becomes `-`; at most 63 characters."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:63].strip("-_.") or "none"


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def _labels(work: HeavyWork, name: str, site: Site) -> dict[str, str]:
    """Who pays for what; on the RayJob and on its pods."""
    return {
        MANAGED: "biovlm",
        RUN: label(work.run_id),
        "biovlm.io/recipe": label(work.recipe),
        "biovlm.io/step": label(work.step),
        "biovlm.io/team": label(site.team),
        "biovlm.io/cost-centre": label(site.cost_centre),
        "biovlm.io/pool": label(name),
    }


def _spec(work: HeavyWork, name: str, pool: pools.Pool, site: Site, before: int) -> dict[str, Any]:
    wanted, labels, env = work.resources, _labels(work, name, site), _environment(work, site, before)
    layout = pools.layout(name, pool, wanted, work.evaluates)
    return {
        "entrypoint": shlex.join((*ENTRYPOINT, work.spec_uri)),
        "submissionMode": str(site.submission),
        "suspend": True,  # Kueue's to change: without it, a job that Kueue does not see would run past all quotas
        "backoffLimit": 0,
        "activeDeadlineSeconds": math.ceil(wanted.deadline_hours * HOUR),
        "preRunningDeadlineSeconds": math.ceil(wanted.pre_running_minutes * 60),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": site.keep_seconds,
        "metadata": {"biovlm_key": work.key, "biovlm_run": label(work.run_id)},
        "rayClusterSpec": {
            "rayVersion": site.ray_version,
            "authOptions": {"mode": "token"},
            "headGroupSpec": pods.head(site, labels, env),
            "workerGroupSpecs": [
                pods.workers(site, name, pool, layout, wanted.cpus_per_worker, wanted.memory_gib, labels, env),
            ],
        },
    }


def _environment(work: HeavyWork, site: Site, before: int) -> list[dict[str, Any]]:
    """What the entrypoint and the workers are told; values of secrets come by `envFrom`."""
    said = {
        **dict(site.environment),
        "BIOVLM_HOME": pods.SCRATCH,
        "BIOVLM_STORE": site.store,
        "BIOVLM_CHECKPOINTS": f"{site.store}/checkpoints",
        "BIOVLM_RUN_ID": work.run_id,
        "BIOVLM_RAY_STORAGE": f"{site.store}/ray",
        "BIOVLM_TRIES_BEFORE": str(before),
        "HOME": pods.SCRATCH,
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }
    return [{"name": key, "value": value} for key, value in sorted(said.items())]


def _check(work: HeavyWork) -> None:
    for what, uri in (("spec", work.spec_uri), ("result", work.result_uri)):
        if not ADDRESS.match(uri):
            raise ConfigError(
                f"step {work.step}: the address of its {what} is {uri[:200]!r}",
                "Ray pods read s3://BUCKET/KEY of letters, digits and . _ = - alone; set BIOVLM_STORE",
            )
