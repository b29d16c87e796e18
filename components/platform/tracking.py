"""The door to MLflow: runs, curves, files, and the registry's client.

1. `Tracking(settings)` opens the store: embedded SQLite under `BIOVLM_HOME` unless MLFLOW_TRACKING_URI says otherwise. A store
   that does not answer is a MissingInputError within seconds.
2. `root(run_id)` is the one run of a pipeline run, `child(run_id, step, attempt)` one run a step below it. Both are found again
   by their tags, so any process may ask for them in any order.
3. `curves`, `inputs`, `files` and `finish` write to a run by its id. `try_writing` says before a run whether they and registration may.

Always `MlflowClient` with explicit ids: `mlflow.start_run` takes MLFLOW_RUN_ID out of the environment and then ignores the
parent. MLflow cuts long values silently, so long things go into files. Nothing that comes from a record is written here.
"""

from __future__ import annotations

import json
import os
import random
import socket
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from components.platform import peek
from components.platform.locks import held
from components.platform.peek import Registered
from components.platform.settings import Settings
from model.errors import BiovlmError, RefusedError
from model.manifest import sha256_file

DIGEST_CHARS = 36  # MLflow refuses longer digests of data sets
LOCK = "mlflow.lock"
"""Of the embedded store, in the home. A server needs none, but taking it costs nothing."""
PARAM_CHARS = 500
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # a model is code from a file, never a pickled object
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what it logs as an error it also raises, and a person gets a letter instead of its trace
}
LOADERS_NOTE = "registered_model_meta"
"""MLflow writes the name and number of a version into the folder that it loads; where artifacts are files, into the kept one."""
RUN_TAG, STEP_TAG, ATTEMPT_TAG, KEY_TAG = "biovlm.run_id", "biovlm.step", "biovlm.attempt", "biovlm.key"
REUSED_TAG = "biovlm.reused"
PROBED_TAG = "biovlm.probed"
MOST_TRIES = 6
T = TypeVar("T")


class Laid(NamedTuple):
    """A copy of what MLflow serves."""

    folder: Path
    files: dict[str, str]
    """File -> SHA-256 of the copy."""


class Tracking:
    """An open tracking store."""

    def __init__(self, settings: Settings) -> None:
        reachable(settings.tracking_uri)
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self.settings = settings
        # Two processes that make or migrate the same SQLite file at once break it; the lock also makes find-or-create one act.
        with held(settings.home / LOCK):
            try:
                self.client = MlflowClient(tracking_uri=settings.tracking_uri, registry_uri=settings.tracking_uri)
                self.experiment_id, self.store_id = self._experiment()
            except (MlflowException, OSError) as error:
                raise _letter(settings.tracking_uri, f"open the experiment {settings.experiment}", error) from None

    def try_writing(self, name: str) -> None:
        """Write where a run will: a tag on the experiment, and one on the registered model `name`. Where there is no such model, one of
        another name is made and removed again.

        Raises:
            RefusedError: The login may not, or there is none. MissingInputError: The store does not answer.
        """
        from mlflow.exceptions import MlflowException

        now, client = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), self.client
        what = f"write to the experiment {self.settings.experiment}"
        try:
            client.set_experiment_tag(self.experiment_id, PROBED_TAG, now)
            what = f"write to the registered model {name}"
            if self._marked(name, now):
                return
            what, probe = "make a registered model", f"{name}-probe-{uuid.uuid4().hex[:8]}"
            client.create_registered_model(probe, description="Made and removed by biovlm, to see whether it may.")
            what = f"remove the registered model {probe}, which it has just made"
            client.delete_registered_model(probe)
        except (MlflowException, OSError) as error:
            raise _letter(self.settings.tracking_uri, what, error) from None

    def _marked(self, name: str, now: str) -> bool:
        """Whether there is a registered model `name`, which then has a new mark."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.set_registered_model_tag(name, PROBED_TAG, now)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _experiment(self) -> tuple[str, str]:
        found = self.client.get_experiment_by_name(self.settings.experiment)
        if found is None:
            embedded = self.settings.tracking_uri.startswith("sqlite:")
            place = str(self.settings.mlflow_artifacts) if embedded else None
            mark = uuid.uuid4().hex
            # Without the second tag MLflow's pages of it are those for chatbots.
            tags = {peek.STORE_ID: mark, "mlflow.experimentKind": "custom_model_development"}
            return self.client.create_experiment(self.settings.experiment, place, tags), mark
        if peek.STORE_ID not in found.tags:
            self.client.set_experiment_tag(found.experiment_id, peek.STORE_ID, uuid.uuid4().hex)
            return self._experiment()
        return str(found.experiment_id), str(found.tags[peek.STORE_ID])

    def root(self, run_id: str, tags: Mapping[str, str] | None = None) -> str:
        """The MLflow run of a pipeline run, made on first need."""
        return self._run(run_id, {RUN_TAG: run_id, STEP_TAG: "pipeline", **(tags or {})}, {RUN_TAG: run_id, STEP_TAG: "pipeline"})

    def child(self, run_id: str, step: str, attempt: int = 1) -> str:
        """The MLflow run of one attempt of a step, made on first need below the root."""
        own = {RUN_TAG: run_id, STEP_TAG: step, ATTEMPT_TAG: str(attempt)}
        return self._run(step, {**own, "mlflow.parentRunId": self.root(run_id)}, own)

    def _run(self, name: str, tags: Mapping[str, str], known_by: Mapping[str, str]) -> str:
        with held(self.settings.home / LOCK):
            found = self.find(known_by)
            return found or str(self.client.create_run(self.experiment_id, tags=dict(tags), run_name=name).info.run_id)

    def find(self, tags: Mapping[str, str], newest: bool = False) -> str | None:
        """The id of the run that carries all `tags` (the oldest, unless `newest`); None without one."""
        text = " AND ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        order = [f"attributes.start_time {'DESC' if newest else 'ASC'}"]
        runs = self.client.search_runs([self.experiment_id], filter_string=text, max_results=1, order_by=order)
        return str(runs[0].info.run_id) if runs else None

    def failure(self, run_id: str, step: str) -> dict[str, str] | None:
        """`exit_code`, `message` and `hint` of the newest attempt of a step, if it failed; None if nothing says so."""
        found = self.find({RUN_TAG: run_id, STEP_TAG: step}, newest=True)
        tags = self.client.get_run(found).data.tags if found else {}
        if "biovlm.exit_code" not in tags:
            return None
        return {name: str(tags.get(f"biovlm.{name}", "")) for name in ("exit_code", "message", "hint")}

    def version_tags(self, name: str, alias: str) -> dict[str, str] | None:
        """Tags of the version of the registered model `name` with `alias`, with its number as `version`; None without one."""
        found = self._asked(lambda: self.client.get_model_version_by_alias(name, alias))
        return None if found is None else {**found.tags, "version": str(found.version)}

    def numbered_tags(self, name: str, version: str) -> dict[str, str] | None:
        """Tags of a version of the registered model `name`, with its number as `version`; None without one."""
        found = self._asked(lambda: self.client.get_model_version(name, version))
        return None if found is None else {**found.tags, "version": str(found.version)}

    def registered(self, name: str) -> Registered | None:
        """The registered model `name`; None without one."""
        found = self._asked(lambda: self.client.get_registered_model(name))
        if found is None:
            return None
        aliases = {str(alias): str(version) for alias, version in found.aliases.items()}
        return Registered(str(found.creation_timestamp), aliases, dict(found.tags))

    def run_is_there(self, name: str, version: str) -> bool:
        """Whether the run that registered a version was not deleted; a version without a run has none to lose."""
        found = self._asked(lambda: self.client.get_model_version(name, version))
        if found is None or not found.run_id:
            return found is not None
        run = self._asked(lambda: self.client.get_run(found.run_id))
        return run is not None and run.info.lifecycle_stage == "active"

    def move_alias(self, name: str, alias: str, version: str) -> bool:
        """Set an alias, or take it away with an empty `version`; False if there is no such version."""
        if not version:
            self._asked(lambda: self.client.delete_registered_model_alias(name, alias) or True)
            return True
        return bool(self._asked(lambda: self.client.set_registered_model_alias(name, alias, version) or True))

    def remember(self, name: str, tag: str, value: str) -> None:
        """Set a tag of a registered model."""
        self._asked(lambda: self.client.set_registered_model_tag(name, tag, value) or True)

    def _asked(self, ask: Callable[[], T]) -> T | None:
        """What MLflow answers; None if there is no such thing. Of many that write the same row at once, a database turns some away:
        those ask again."""
        from mlflow.exceptions import MlflowException

        for tried in range(MOST_TRIES):
            try:
                return ask()
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                if tried == MOST_TRIES - 1:
                    raise peek.unreachable(self.settings.tracking_uri, error.error_code) from None
                time.sleep(random.uniform(0, 0.05) * (tried + 1))
        return None

    def curves(self, run: str, points: Iterable[tuple[int, float, Mapping[str, float]]]) -> None:
        """Append points (step, time in seconds, metrics) to the curves of a run."""
        from mlflow.entities import Metric

        metrics = [Metric(k, v, int(when * 1000), step) for step, when, values in points for k, v in values.items()]
        for start in range(0, len(metrics), 900):
            self.client.log_batch(run, metrics=metrics[start : start + 900])

    def params(self, run: str, values: Mapping[str, Any]) -> None:
        """Write parameters, nested ones as `a.b`. What MLflow would cut is cut here, visibly."""
        from mlflow.entities import Param

        pairs = [Param(key, text if len(text) <= PARAM_CHARS else text[: PARAM_CHARS - 3] + "...") for key, text in _flat(values)]
        for start in range(0, len(pairs), 90):
            self.client.log_batch(run, params=pairs[start : start + 90])

    def tags(self, run: str, values: Mapping[str, str]) -> None:
        """Write tags."""
        from mlflow.entities import RunTag

        self.client.log_batch(run, tags=[RunTag(key, value) for key, value in values.items()])

    def inputs(self, run: str, sets: Mapping[str, Mapping[str, Any]], context: str) -> None:
        """Say which data sets a run read: name -> facts of the data artifact (uri, digest, revision, licence)."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = []
        for name, facts in sets.items():
            tags = {"mlflow.data.context": context, "sha256": str(facts["digest"])}
            tags |= {key: str(facts[key]) for key in ("revision", "licence") if key in facts}
            source = json.dumps({"uri": str(facts.get("uri", ""))})
            dataset = Dataset(name=name, digest=str(facts["digest"])[:DIGEST_CHARS], source_type="local", source=source)
            datasets.append(DatasetInput(dataset, [InputTag(key, value) for key, value in tags.items()]))
        if datasets:
            self.client.log_inputs(run, datasets)

    def files(self, run: str, paths: Iterable[Path], folder: str | None = None) -> None:
        """Keep small files with a run."""
        for path in paths:
            self.client.log_artifact(run, str(path), folder)

    def text(self, run: str, path: str, content: str) -> None:
        """Keep a text with a run as the file `path`."""
        self.client.log_text(run, content, path)

    def kept(self, run: str, path: str) -> str | None:
        """A text that is kept with a run; None if the run is deleted or gone, or keeps no such file."""
        from mlflow.exceptions import MlflowException

        try:
            if self.client.get_run(run).info.lifecycle_stage != "active":
                return None
            with tempfile.TemporaryDirectory(prefix="biovlm-") as folder:
                return Path(self.client.download_artifacts(run, path, folder)).read_text(encoding="utf-8")
        except (MlflowException, OSError, UnicodeDecodeError):
            return None

    def served(self, model_id: str) -> dict[str, str] | None:
        """File -> SHA-256 of what MLflow serves of a LoggedModel; None if it is gone."""
        with tempfile.TemporaryDirectory(prefix="biovlm-") as empty:
            found = self.laid(model_id, Path(empty))
            return found.files if found else None

    def laid(self, model_id: str, below: Path) -> Laid | None:
        """Copy what MLflow serves of a LoggedModel to a place below an empty folder, without MLflow's own note; None if it is gone."""
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        uri = self.settings.tracking_uri
        try:
            place = str(self.client.get_logged_model(model_id).artifact_location)
            folder = Path(download_artifacts(artifact_uri=place, dst_path=str(below), tracking_uri=uri))
            (folder / LOADERS_NOTE).unlink(missing_ok=True)
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            return Laid(folder, {path.relative_to(folder).as_posix(): sha256_file(path) for path in files})
        except (MlflowException, OSError):
            return None

    def run_of(self, name: str, number: str) -> str:
        """The run that registered a version of the model `name`."""
        return str(self.client.get_model_version(name, number).run_id or "")

    def saw(self, run: str, model_id: str, sets: Mapping[str, str], metric: str) -> None:
        """Say of a LoggedModel which data sets (name -> digest) it saw, so that `search_logged_models(datasets=...)` finds it.

        MLflow knows the data sets of a LoggedModel by its metrics alone: `metric` is 1 for each of them.
        """
        for name, digest in sorted(sets.items()):
            self.client.log_metric(run, metric, 1.0, model_id=model_id, dataset_name=name, dataset_digest=digest[:DIGEST_CHARS])

    def finish(self, run: str, status: str, when: float | None = None) -> None:
        """Close a run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run, status=status, end_time=int((when or time.time()) * 1000))


def _letter(uri: str, what: str, error: Exception) -> BiovlmError:
    """Why the store did not do `what`."""
    code = str(getattr(error, "error_code", ""))
    if code not in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return peek.unreachable(uri, code or type(error).__name__)
    return RefusedError(
        f"the tracking store does not let this login {what} ({code})",
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (in a pod from the Secret biovlm-tracking) need a user with EDIT on both",
    )


def reachable(uri: str) -> None:
    """MissingInputError unless something answers at the address of the tracking store; asked before the slow client tries."""
    parts = urllib.parse.urlsplit(uri)
    if not parts.hostname:
        return
    port = parts.port or {"https": 443, "http": 80, "postgresql": 5432, "mysql": 3306}.get(parts.scheme.partition("+")[0], 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=peek.TIMEOUT_SECONDS).close()
    except OSError as error:
        raise peek.unreachable(uri, error.strerror or str(error)) from None


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON values as (dotted name, text); lists of plain values stay one text."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            pairs += _flat({str(i): item for i, item in enumerate(value)}, f"{prefix}{key}.")
        elif value is not None:
            pairs.append((prefix + key, value if isinstance(value, str) else json.dumps(value)))
    return pairs
