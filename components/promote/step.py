"""Promotion: decide, record the decision, and move the alias if it says so.

1. The decision is a pure function of the gate, the candidate's report and the champion's report on the same items
   (`model.evaluation.decision`).
2. Before the alias moves, it must still be where preflight saw it: MLflow has no compare-and-set, so a champion that changed
   during the run is a refusal (exit 77), and the next run compares with the new one.
3. The former champion gets the alias `previous`, the new one `champion`. The decision is an artifact, and its outcome a tag of
   the version.

A decision that is not `promote` is a result like any other: the step succeeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial

from components.platform.champion import AGAINST, ALIAS, PREVIOUS
from components.platform.reference import NONE, Reference
from components.platform.step import Work, run_step
from components.platform.tracking import Tracking
from model import manifest
from model.config import PromoteSlice
from model.errors import RefusedError

KIND = "decision"


def run(piece: str, tracking: str, receipt: str, report: str, champion: str, champion_report: str, decision: str) -> None:
    """Decide or find the decision, and write its reference to the path `decision`."""
    given = {"receipt": receipt, "report": report, "champion": champion, "champion_report": champion_report}
    run_step("promote", "promote", json.loads(piece), given, decision, _produce, partial(identity, tracking))


def identity(tracking: str, given: Mapping[str, Reference]) -> dict[str, str]:
    """What belongs to the key. A champion that is its own candidate counts as compared with what it was compared with then."""
    against = given["champion_report"].digest or NONE
    if given["champion"].digest == given["receipt"].facts["checkpoint"]:
        against = str(given["champion"].facts["against"])
    found = {"receipt": given["receipt"].digest, "report": given["report"].digest}
    return found | {"champion_report": against, "tracking": tracking}


def _produce(work: Work) -> None:
    from model.evaluation.decision import Verdict, decide  # numpy
    from model.evaluation.results import read_items, read_report

    wanted, given = PromoteSlice.model_validate(work.piece), work.inputs
    rival = given["champion_report"]
    decision = decide(
        wanted.promotion,
        read_report(given["report"].folder),
        None if rival.is_none else read_report(rival.folder),
        read_items(given["report"].folder),
        () if rival.is_none else read_items(rival.folder),
    )
    version, champion = str(given["receipt"].facts["version"]), str(given["champion"].facts.get("version", ""))
    tags = {"biovlm.decision": str(decision.verdict), "biovlm.failed": ", ".join(r.check for r in decision.failed)}
    if champion != version:
        tags[AGAINST] = rival.digest or NONE
    _record(work, wanted.registered_model, version, champion, tags, decision.verdict is Verdict.PROMOTE)
    facts = {
        "verdict": str(decision.verdict),
        "version": version,
        "champion_before": champion or NONE,
        "reasons": [asdict(reason) for reason in decision.reasons],
        "figures": {"decision": str(decision.verdict), "version": version},
    }
    with manifest.commit(work.final, KIND, work.parents, facts) as folder:
        (folder / "decision.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _record(work: Work, name: str, version: str, champion: str, tags: dict[str, str], promote: bool) -> None:
    """Tag the version and, if it is promoted, move the aliases. The tag comes first: an alias must never lack its reason.

    Raises:
        RefusedError: Another version became champion while this run was at work.
    """
    tracking = Tracking(work.settings)
    now = (tracking.version_tags(name, ALIAS) or {}).get("version", "")
    if now not in (champion, version):
        raise RefusedError(
            f"the champion of {name} was version {champion or NONE} when this run began, and is version {now or NONE} now",
            "run the same command again: it compares with the new champion, and reuses everything else",
        )
    for key, value in tags.items():
        tracking.client.set_model_version_tag(name, version, key, value)
    if promote and now != version:
        if now:
            tracking.client.set_registered_model_alias(name, PREVIOUS, now)
        tracking.client.set_registered_model_alias(name, ALIAS, version)
