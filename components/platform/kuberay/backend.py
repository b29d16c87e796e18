"""Heavy work on KubeRay: one RayJob, started once, adopted by later attempts, waited for to its end.

1. `run` believes a result that says done, builds the RayJob, asks whether its queue could ever admit it, and creates it.
2. If a job of its name is there, `adopting.decide` says whether to wait for it, replace it or refuse.
3. It looks at the job until `waiter.step` says that it is over, and tells each change of state.
4. Done is what is Complete, SUCCEEDED and has a result of 0; on any other end the result in the store is asked first.

A launcher that is stopped or dies leaves the job: the step's next attempt adopts it, its owner references and the reaper remove it when
there is none. What must not go on (a job past its limits) is deleted here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from components.platform import pools
from components.platform.heavy import HeavyWork, Result
from components.platform.kuberay import manifest, quota, waiter
from components.platform.kuberay.adopting import Way, decide, look_of
from components.platform.kuberay.client import Cluster, Object
from components.platform.kuberay.site import Site
from components.platform.retries import MOST_ATTEMPTS
from components.platform.settings import Settings
from model.errors import ConfigError, ExitCode, InternalError, kind_of

Tell = Callable[[str], None]
Ask = Callable[[], Result | None]
GONE_SECONDS = 300.0
"""How long the deletion of a RayJob may take: KubeRay stops the Ray job first."""
LOOK_AGAIN = 2.0


class KubeRay:
    """The back end for one namespace.

    Args:
        site: The cluster.
        known: The pools by name.
        cluster: The way to the API server.
        clock: Seconds, monotonic.
        sleep: Waits for that many seconds.
    """

    def __init__(
        self,
        site: Site,
        known: Mapping[str, pools.Pool],
        cluster: Cluster,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._site, self._pools, self._cluster = site, known, cluster
        self._clock, self._sleep = clock, sleep

    def run(self, work: HeavyWork, tell: Tell, result: Ask) -> None:
        """Do the work and return, or raise the letter of its end.

        Args:
            work: What.
            tell: Is given each change of state, in words.
            result: Reads what the entrypoint wrote last; None if there is nothing.
        """
        if (said := result()) is not None and said.exit_code == ExitCode.DONE:
            tell("done by an earlier attempt")
            return
        name, pool = pools.choose(self._pools, work.resources.pool)
        self._fits(manifest.ray_job(work, name, pool, self._site), name, pool)
        job_name = self._start(work, name, pool, tell, result)
        end = self._wait(job_name, work, tell)
        _close(end, job_name, result if end.ask_result else lambda: None)

    def _fits(self, job: Object, name: str, pool: pools.Pool) -> None:
        """ConfigError if the pool's queue can never admit the job: Kueue would let it wait for ever."""
        queue = self._cluster.cluster_queue(pool.queue)
        if queue is not None:
            why = quota.never_fits(job, queue)
        else:
            why = _past_maximum(job, pool)
        if why:
            raise ConfigError(
                f"pool {name}: the queue {pool.queue} can never admit this: {why}",
                "take fewer or smaller workers, another pool, or ask the platform team for more quota",
            )

    def _start(self, work: HeavyWork, name: str, pool: pools.Pool, tell: Tell, result: Ask) -> str:
        """Name of the one RayJob of this work: made now, or by an earlier attempt."""
        before, until = 0, self._clock() + GONE_SECONDS
        while self._clock() < until:
            body = manifest.ray_job(work, name, pool, self._site, before)
            job_name = str(body["metadata"]["name"])
            if self._cluster.create(body):
                tell(f"RayJob {job_name} is created in the queue {pool.queue}: {_most(work, pool)}")
                return job_name
            if (job := self._cluster.read(job_name)) is None:
                continue
            verdict = decide(job, body["metadata"]["labels"][manifest.SPEC_DIGEST], result())
            if verdict.way is Way.ADOPT:
                tell(f"RayJob {job_name} of an earlier attempt is adopted")
                if self._site.owner:
                    self._cluster.own(job_name, manifest.owner_reference(self._site.owner.name, self._site.owner.uid))
                return job_name
            if verdict.way is Way.REPLACE:
                tell(f"RayJob {job_name} failed; try {verdict.before + 1} of {MOST_ATTEMPTS} follows")
                self._cluster.delete(job)
            before = max(before, verdict.before)
            self._sleep(LOOK_AGAIN)
        raise InternalError(
            f"the RayJob {job_name} of the attempt before is still being deleted after {GONE_SECONDS / 60:.0f} min",
            "its finalizer waits for KubeRay; see whether the operator runs",
        )

    def _wait(self, job_name: str, work: HeavyWork, tell: Tell) -> waiter.End:
        wanted = work.resources
        limits = waiter.Limits(
            working=wanted.deadline_hours * 3600,
            starting=wanted.pre_running_minutes * 60,
            queued=wanted.queue_hours * 3600,
            starts=MOST_ATTEMPTS,
        )
        memory, last = waiter.Memory(), self._clock()
        for job in self._cluster.looks(job_name):
            now = self._clock()
            why = self._cluster.waits_for(job) if job and job["spec"].get("suspend") else ""
            turn = waiter.step(memory, look_of(job, why), now - last, limits)
            memory, last = turn.memory, now
            if turn.tell:
                tell(f"RayJob {job_name}: {turn.tell}")
            if turn.end:
                if turn.end.delete and job:
                    self._cluster.delete(job)
                return turn.end
        raise InternalError("the watch on a RayJob ended without a word", "start the step again")


def connected(settings: Settings) -> KubeRay:
    """The back end for the cluster that this process is in, or that its kubeconfig names. Errors as `Site.from_environment`."""
    site = Site.from_environment()
    return KubeRay(site, pools.load(settings.pools), Cluster(site.namespace))


def _most(work: HeavyWork, pool: pools.Pool) -> str:
    """What it takes at most."""
    wanted = work.resources
    dollars = pools.cost_usd(pool, wanted.workers * wanted.gpus_per_worker, wanted.deadline_hours)
    return f"{wanted.workers} workers for at most {wanted.deadline_hours:g} h, {dollars:,.0f} USD of GPUs"


def _past_maximum(job: Object, pool: pools.Pool) -> str:
    """As `quota.never_fits`, by what the pool says of itself."""
    wanted = quota.wanted_of(job, pool.accelerator) if pool.accelerator else 0
    if pool.max_gpus is None or wanted <= pool.max_gpus:
        return ""
    return f"{wanted} GPUs are asked for, the pool has {pool.max_gpus} at most"


def _close(end: waiter.End, job_name: str, ask: Ask) -> None:
    """Return if the work is done, else raise the letter of its end: the result's, or the status's."""
    said = ask()
    if said is not None and said.exit_code == ExitCode.DONE:
        return
    if said is not None and end.state is not waiter.State.STUCK:
        raise kind_of(said.exit_code)(f"{said.message or 'the work failed'} (RayJob {job_name})", said.hint)
    if end.state is waiter.State.DONE:
        raise InternalError(
            f"the RayJob {job_name} succeeded and left no result", "the store may have refused it; the entrypoint writes it last"
        )
    raise kind_of(end.code)(f"{end.message} ({job_name})", end.hint)
