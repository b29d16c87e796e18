"""MLflow's side of registration: one LoggedModel and one version for each checkpoint.

1. The LoggedModel gets the folder that MLflow serves (components/register/served.py) and is then ready; the version is made from it, so
   that `models:/NAME/NUMBER` loads and serves.
2. Both are looked for by the checkpoint's digest before they are made, so a step that was killed between two calls, or runs again for a
   new report, finds what is there, finishes it, and brings its tags up to date.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.platform.champion import CHECKPOINT_DIGEST
from components.platform.settings import Settings
from components.platform.tracking import DIGEST_CHARS, Tracking
from components.register import served
from components.register.served import Served

READY = "READY"
DESCRIPTION = (
    "Research use only: not a medical device, not for clinical decisions. What it was made from: `biovlm lineage show`; whether that is "
    "still true: `biovlm lineage verify`. Aliases follow the ledger (`biovlm registry history`); one that is moved here is put back."
)


@dataclass(frozen=True)
class Candidate:
    """What is to be registered."""

    registered_model: str
    checkpoint: str
    export: str
    """Place of the export in the store."""
    export_digest: str
    tags: Mapping[str, str]
    figures: Mapping[str, float]
    measured: tuple[str, str]
    """Name and digest of the data set that the figures were measured on."""
    attempt: int
    versions: Mapping[str, str] = field(default_factory=dict)
    """Library -> version with which it was evaluated."""


@dataclass(frozen=True)
class Registered:
    """What there is of it in MLflow."""

    version: str
    model_id: str
    served: dict[str, str]
    """File -> SHA-256 of the folder that MLflow serves."""


def ensure_version(settings: Settings, candidate: Candidate) -> Registered:
    """The version of a candidate; made if it does not exist yet."""
    tracking = Tracking(settings)
    run = tracking.child(settings.run_id, "register", candidate.attempt)
    model = _logged_model(tracking, candidate, run)
    files = _serving(tracking, candidate, model)
    client, name, model_id = tracking.client, candidate.registered_model, str(model.model_id)
    _ensure_registered_model(tracking, name)
    by_checkpoint = f"name = '{name}' AND tags.`{CHECKPOINT_DIGEST}` = '{candidate.checkpoint}'"
    known = sorted(client.search_model_versions(by_checkpoint), key=lambda found: int(found.version))
    if known:
        version = str(known[0].version)
        for key, value in candidate.tags.items():
            client.set_model_version_tag(name, version, key, value)
    else:
        # Not `models:/ID`: a client without a server would look that up in the tracking store that MLFLOW_TRACKING_URI names.
        source = str(model.artifact_location)
        made = client.create_model_version(
            name, source=source, run_id=run, tags=dict(candidate.tags), description=DESCRIPTION, model_id=model_id
        )
        version = str(made.version)
    # The page of a LoggedModel takes its versions from the second tag; without it, it offers to register the model.
    own = [{"name": name, "version": version}]
    client.set_logged_model_tags(model_id, {"biovlm.version": f"{name}/{version}", "mlflow.modelVersions": json.dumps(own)})
    return Registered(version, model_id, files)


def _logged_model(tracking: Tracking, candidate: Candidate, run: str) -> Any:
    """The LoggedModel of the checkpoint; one whose maker was killed may lack its figures, its files and the mark that it is ready."""
    client = tracking.client
    known = client.search_logged_models(
        experiment_ids=[tracking.experiment_id], filter_string=f"tags.`{CHECKPOINT_DIGEST}` = '{candidate.checkpoint}'"
    )
    model = known[0] if known else None
    if model is None:
        model = client.create_logged_model(
            tracking.experiment_id,
            name=candidate.registered_model,
            source_run_id=run,
            tags=dict(candidate.tags),
            model_type="vision-language adapter",
        )
    if model.status != READY:
        _figures(tracking, candidate, run, str(model.model_id))
    return model


def _figures(tracking: Tracking, candidate: Candidate, run: str, model_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    tracking.client.log_outputs(run, [LoggedModelOutput(model_id, 0)])
    set_name, digest = candidate.measured
    for key, value in candidate.figures.items():
        tracking.client.log_metric(
            run,
            key,
            value,
            model_id=model_id,
            dataset_name=set_name,
            dataset_digest=digest[:DIGEST_CHARS],
        )


def _serving(tracking: Tracking, candidate: Candidate, model: Any) -> dict[str, str]:
    """Put the served folder into the LoggedModel, unless it is ready; file -> SHA-256."""
    content = Served(
        model_id=str(model.model_id),
        run=str(model.source_run_id),
        created_ms=int(model.creation_timestamp),
        export=candidate.export,
        digest=candidate.export_digest,
        versions=candidate.versions,
    )
    with tempfile.TemporaryDirectory(prefix="biovlm-") as folder:
        files = served.write(Path(folder), content)
        if model.status != READY:
            tracking.client.log_model_artifacts(str(model.model_id), folder)
            tracking.client.finalize_logged_model(str(model.model_id), READY)
    return files


def _ensure_registered_model(tracking: Tracking, name: str) -> None:
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):  # it is there already
        tracking.client.create_registered_model(name, description="Biomedical vision-language assistant. Research use only.")
