"""A piece of heavy work, a site, and the way to the stand-in, for tests of the KubeRay back end."""

from __future__ import annotations

import kubernetes

from components.platform import pools
from components.platform.heavy import HeavyWork
from components.platform.kuberay.backend import KubeRay as BackEnd
from components.platform.kuberay.client import Cluster
from components.platform.kuberay.site import Owner, Site
from model.config import Resources
from tests.standins.kuberay import NAMESPACE, TOKEN

STORE = "s3://bucket/store"
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: here, user: me}}}}]
clusters: [{{name: here, cluster: {{server: "{address}"}}}}]
users: [{{name: me, user: {{token: "{token}"}}}}]
"""
RUN = "00000000-0000-4000-8000-000000000001"
"""A run, by an id of the form that KFP gives."""
SITE = Site(
    namespace=NAMESPACE,
    image="registry.example/biovlm-train@sha256:" + "a" * 64,
    store=STORE,
    team="radiology",
    secrets=("biovlm-store-train",),
    owner=Owner("launcher-1", "uid-of-launcher-1"),
)


def work(step="align", run_id=RUN, evaluates=False, recipe="tiny", **resources):
    wanted = {"workers": 2, "gpus_per_worker": 1, "pool": "l4"} | resources
    where = f"{STORE}/jobs/{'ab' * 8}"
    return HeavyWork(
        key="ab" * 32,
        step=step,
        run_id=run_id,
        recipe=recipe,
        spec_uri=f"{where}/spec.json",
        result_uri=f"{where}/result.json",
        resources=Resources(**wanted),
        evaluates=evaluates,
    )


class Clock:
    """Time that passes only when someone sleeps."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def connection(address, token=TOKEN):
    configuration = kubernetes.client.Configuration(host=address, api_key={"authorization": f"Bearer {token}"})
    configuration.retries = False
    return kubernetes.client.ApiClient(configuration)


def way_to(cluster, clock=None, token=TOKEN):
    clock = clock or Clock()
    return Cluster(NAMESPACE, lambda: connection(cluster.address, token), clock=clock, sleep=clock.sleep)


def back_end(cluster, site=SITE, clock=None, token=TOKEN):
    clock = clock or Clock()
    return BackEnd(site, pools.load(), way_to(cluster, clock, token), clock=clock, sleep=clock.sleep)
