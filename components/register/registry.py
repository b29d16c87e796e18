"""MLflow's side of registration: one LoggedModel and one version for each checkpoint.

Both are looked for by the checkpoint's digest before they are made, so a step that was killed between two calls, or runs again for a
new report, finds what is there and brings its tags up to date.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.platform.champion import CHECKPOINT_DIGEST
from components.platform.settings import Settings
from components.platform.tracking import DIGEST_CHARS, Tracking


@dataclass(frozen=True)
class Candidate:
    """What is to be registered."""

    registered_model: str
    checkpoint: str
    source: str
    tags: Mapping[str, str]
    figures: Mapping[str, float]
    sets: Mapping[str, Mapping[str, Any]]
    attempt: int


def ensure_version(settings: Settings, candidate: Candidate) -> tuple[str, str]:
    """Version number and LoggedModel id of a candidate; made if they do not exist yet."""
    tracking = Tracking(settings)
    run = tracking.child(settings.run_id, "register", candidate.attempt)
    model_id = _logged_model(tracking, candidate, run)
    client, name = tracking.client, candidate.registered_model
    _ensure_registered_model(tracking, name)
    by_checkpoint = f"name = '{name}' AND tags.`{CHECKPOINT_DIGEST}` = '{candidate.checkpoint}'"
    known = sorted(client.search_model_versions(by_checkpoint), key=lambda found: int(found.version))
    if known:
        version = str(known[0].version)
        for key, value in candidate.tags.items():
            client.set_model_version_tag(name, version, key, value)
    else:
        made = client.create_model_version(
            name, source=candidate.source, run_id=run, tags=dict(candidate.tags), model_id=model_id
        )
        version = str(made.version)
    # MLflow writes this link itself only for versions made from `models:/` sources.
    client.set_logged_model_tags(model_id, {"biovlm.version": f"{name}/{version}"})
    return version, model_id


def _logged_model(tracking: Tracking, candidate: Candidate, run: str) -> str:
    client = tracking.client
    known = client.search_logged_models(
        experiment_ids=[tracking.experiment_id], filter_string=f"tags.`{CHECKPOINT_DIGEST}` = '{candidate.checkpoint}'"
    )
    if known:
        return str(known[0].model_id)
    made = client.create_logged_model(
        tracking.experiment_id,
        name=candidate.registered_model,
        source_run_id=run,
        tags=dict(candidate.tags),
        model_type="vision-language adapter",
    )
    set_name, facts = next(iter(candidate.sets.items()))
    for key, value in candidate.figures.items():
        client.log_metric(
            run,
            key,
            value,
            model_id=made.model_id,
            dataset_name=set_name,
            dataset_digest=str(facts["digest"])[:DIGEST_CHARS],
        )
    client.finalize_logged_model(made.model_id, "READY")
    return str(made.model_id)


def _ensure_registered_model(tracking: Tracking, name: str) -> None:
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):  # it is there already
        tracking.client.create_registered_model(name, description="Biomedical vision-language assistant. Research use only.")
