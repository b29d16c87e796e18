"""What goes to a cluster keeps to the policy of infra/policy: both overlays as rendered, and the steps of the compiled pipeline."""

from __future__ import annotations

import pytest

from infra.policy.checks import check, unused
from infra.policy.documents import read
from tests.manifests import OVERLAYS, rendered

# What the compiled steps may still lack. Empty is the aim: then the check is strict.
LACKING_IN_STEPS = {"step-deadline", "step-non-root"}


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
    findings = [f for f in check(read([root / "pipelines" / "compiled" / "biovlm.yaml"])) if f.rule.name not in LACKING_IN_STEPS]
    assert not findings, letters(findings)
