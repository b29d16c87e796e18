"""What goes to a cluster keeps to the policy of infra/policy: both overlays, the steps of the compiled pipeline, and the Ray jobs."""

from __future__ import annotations

import pytest
import yaml

from components.platform import pools
from components.platform.kuberay.manifest import ray_job
from infra.policy.checks import check, unused
from infra.policy.documents import read
from tests.manifests import OVERLAYS, rendered
from tests.standins.work import SITE, work


def letters(findings):
    return "\n".join(finding.letter() for finding in findings)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_breaks_no_rule(overlay):
    findings = check(rendered(overlay))
    assert not findings, letters(findings)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_permission_outlives_its_need(overlay):
    assert not unused(rendered(overlay))


def test_the_compiled_steps_break_no_rule(root):
    findings = check(read([root / "pipelines" / "compiled" / "biovlm.yaml"]))
    assert not findings, letters(findings)


@pytest.mark.parametrize("pool", [*pools.load()])
def test_the_ray_job_of_every_pool_breaks_no_rule(tmp_path, pool):
    known = pools.load()[pool]
    gpus = 1 if known.gpus_per_node else 0
    wanted = work(pool=pool, workers=1 if known.mig else 2, gpus_per_worker=gpus)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(ray_job(wanted, pool, known, SITE)))
    findings = check(read([path]))
    assert not findings, letters(findings)
