"""The only client of a KFP API server.

1. `connect` makes a `Server` from the addresses in the environment. Nothing is asked yet.
2. `Server.check` asks for the version and refuses one that lacks what the pipeline needs.
3. Each method is one request, or one per page. What goes wrong becomes a letter: a token that was refused (77), a server that does not
   answer (66), a thing that is not there (66), a request that was refused (78), a fault of the server (70).

Requests go through the API objects of `kfp.Client`, not through its convenience methods: those print to stdout, ask for five times five
seconds where a token has expired, wait for ever on a cancelled run, and cannot make a recurring run that follows the latest version.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kfp_server_api
import urllib3.exceptions

from components.platform.addresses import Addresses
from model.errors import BiovlmError, ConfigError, InternalError, MissingInputError, RefusedError

OLDEST, NEWEST_MAJOR = (2, 15), 2
"""Versions of the server that are supported: the pass-through of a task's settings came with 2.15."""
PAGE = 100
TRIES = 3
PAUSE_SECONDS = 0.25
TIMEOUT_SECONDS = (10.0, 120.0)
"""To connect, and between two bytes of an answer: a proxy that swallows requests must not hold a command for ever."""


class AlreadyThereError(RefusedError):
    """What was to be made has been made by someone else."""


class AwayError(MissingInputError):
    """Nobody answers at the address."""


class Server:
    """A KFP API server.

    Args:
        client: A `kfp.Client`.
        addresses: Where it is.
    """

    def __init__(self, client: Any, addresses: Addresses) -> None:
        self._client, self.addresses = client, addresses
        self._multi_user: bool | None = None

    def version(self) -> str:
        """What the server calls its version; `unknown` for one built by hand."""
        return str(self._get("/apis/v1beta1/healthz", "object").get("tag_name") or "unknown")

    def check(self) -> str:
        """The version, if it is one that can run the pipeline. ConfigError if not."""
        found = self.version()
        parts = found.lstrip("v").split(".")
        if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
            return found  # built by hand: its maker knows
        number = (int(parts[0]), int(parts[1]))
        if number < OLDEST or number[0] > NEWEST_MAJOR:
            wanted = f"{OLDEST[0]}.{OLDEST[1]} or newer, below {NEWEST_MAJOR + 1}"
            raise ConfigError(f"the Kubeflow server is version {found}, supported is {wanted}", "upgrade one of the two")
        return found

    def namespace(self) -> str | None:
        """The namespace that requests must name: a multi-user server wants one, a single-user one refuses it."""
        if self._multi_user is None:
            self._multi_user = bool(self._ask(self._client.healthzs.healthz_service_get_healthz).multi_user)
        if self._multi_user and not self.addresses.namespace:
            raise ConfigError("this Kubeflow server has many users", "set BIOVLM_KFP_NAMESPACE to the namespace of the profile")
        return self.addresses.namespace if self._multi_user else None

    def experiment(self, name: str) -> str:
        """The id of the experiment `name`, made if it is not there."""
        api, model = self._client.experiments, self._client.api_models.V2beta1Experiment
        listed = self._pages(api.experiment_service_list_experiments, "experiments", filter=_named(name), **self._place())
        for found in listed:
            return str(found.experiment_id)
        try:
            wanted = model(display_name=name, **self._place())
            return str(self._once(api.experiment_service_create_experiment, experiment=wanted).experiment_id)
        except AlreadyThereError:
            return self.experiment(name)

    def pipeline(self, name: str) -> str | None:
        """The id of the pipeline `name`; None if it is not there."""
        api = self._client.pipelines
        listed = self._pages(api.pipeline_service_list_pipelines, "pipelines", filter=_named(name), **self._place())
        return next((str(found.pipeline_id) for found in listed), None)

    def versions(self, pipeline: str) -> list[Any]:
        """The versions of a pipeline, newest first."""
        api = self._client.pipelines
        order = {"pipeline_id": pipeline, "sort_by": "created_at desc"}
        return list(self._pages(api.pipeline_service_list_pipeline_versions, "pipeline_versions", **order))

    def upload(self, package: Path, name: str, pipeline: str | None, description: str) -> None:
        """Upload a compiled file: as version `name` of `pipeline`, or as the new pipeline `name`. AlreadyThereError."""
        api = self._client.pipeline_uploads
        if pipeline is None:
            self._once(api.upload_pipeline, str(package), name=name, description=description, **self._place())
        else:
            self._once(api.upload_pipeline_version, str(package), name=name, pipelineid=pipeline, description=description)

    def start(self, name: str, experiment: str, pipeline: str, version: str, parameters: dict[str, Any]) -> str:
        """Start a run; its id. Never asked twice: an answer that was lost could have started one."""
        models = self._client.api_models
        wanted = models.V2beta1Run(
            experiment_id=experiment,
            display_name=name,
            pipeline_version_reference=models.V2beta1PipelineVersionReference(pipeline, version),
            runtime_config=models.V2beta1RuntimeConfig(parameters=parameters),
        )
        return str(self._once(self._client.runs.run_service_create_run, run=wanted).run_id)

    def run(self, run_id: str) -> Any:
        """A run with its tasks. MissingInputError if there is none."""
        return self._ask(self._client.runs.run_service_get_run, run_id=run_id)

    def runs(self, most: int) -> list[Any]:
        """The newest runs."""
        listed = self._pages(self._client.runs.run_service_list_runs, "runs", sort_by="created_at desc", **self._place())
        return list(itertools.islice(listed, most))

    def terminate(self, run_id: str) -> None:
        """End a run. What its steps launched goes on until someone ends that, too."""
        self._ask(self._client.runs.run_service_terminate_run, run_id=run_id)

    def retry(self, run_id: str) -> None:
        """Run the failed steps of a run again, with the same package."""
        self._once(self._client.runs.run_service_retry_run, run_id=run_id)

    def log(self, run_id: str, pod: str) -> str:
        """What a pod wrote so far; empty where the server cannot give it."""
        try:
            return str(self._get(f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log", "str"))
        except BiovlmError:
            return ""  # the pod is gone and nobody archived its log

    def schedules(self) -> list[Any]:
        """All recurring runs of the namespace."""
        api = self._client.recurring_runs
        return list(self._pages(api.recurring_run_service_list_recurring_runs, "recurring_runs", **self._place()))

    def add_schedule(self, experiment: str, pipeline: str, enabled: bool, **fields: Any) -> str:
        """Make a recurring run that follows the latest version of `pipeline`; its id.

        Args:
            experiment: Id of the experiment.
            pipeline: Id of the pipeline.
            enabled: Whether it runs.
            fields: `name`, `description`, `cron`, `no_catchup` and `parameters`.
        """
        models, api = self._client.api_models, self._client.recurring_runs
        wanted = models.V2beta1RecurringRun(
            display_name=fields["name"],
            description=fields["description"],
            experiment_id=experiment,
            pipeline_version_reference=models.V2beta1PipelineVersionReference(pipeline_id=pipeline),
            runtime_config=models.V2beta1RuntimeConfig(parameters=fields["parameters"]),
            trigger=models.V2beta1Trigger(cron_schedule=models.V2beta1CronSchedule(cron=fields["cron"])),
            max_concurrency="1",
            no_catchup=fields["no_catchup"],
            mode="ENABLE" if enabled else "DISABLE",
        )
        return str(self._once(api.recurring_run_service_create_recurring_run, recurring_run=wanted).recurring_run_id)

    def enable_schedule(self, identifier: str, enabled: bool) -> None:
        """Let a recurring run run, or not."""
        api = self._client.recurring_runs
        act = api.recurring_run_service_enable_recurring_run if enabled else api.recurring_run_service_disable_recurring_run
        self._ask(act, recurring_run_id=identifier)

    def remove_schedule(self, identifier: str) -> None:
        """Delete a recurring run; nothing happens if someone else did."""
        with contextlib.suppress(MissingInputError):
            self._ask(self._client.recurring_runs.recurring_run_service_delete_recurring_run, recurring_run_id=identifier)

    def _place(self) -> dict[str, str]:
        named = self.namespace()
        return {"namespace": named} if named else {}

    def _pages(self, listed: Callable[..., Any], field: str, **asked: Any) -> Iterator[Any]:
        token = ""
        while True:
            page = self._ask(listed, page_token=token, page_size=PAGE, **asked)
            yield from getattr(page, field) or ()
            token = page.next_page_token or ""
            if not token:
                return

    def _get(self, path: str, kind: str) -> Any:
        """What the server says at a path that its published API leaves out."""
        call = self._client._run_api.api_client.call_api  # the one client that all API objects share; it has no public name
        return self._ask(call, path, "GET", response_type=kind, auth_settings=["Bearer"], _return_http_data_only=True)

    def _ask(self, call: Callable[..., Any], *given: Any, **asked: Any) -> Any:
        """The answer to a request that may be made again."""
        for tried in range(1, TRIES + 1):
            try:
                return self._once(call, *given, **asked)
            except InternalError:
                if tried == TRIES:
                    raise
                time.sleep(PAUSE_SECONDS * 2**tried)
        raise AssertionError  # the last round returns or raises

    def _once(self, call: Callable[..., Any], *given: Any, **asked: Any) -> Any:
        try:
            return call(*given, _request_timeout=TIMEOUT_SECONDS, **asked)
        except kfp_server_api.ApiException as error:
            raise letter(error.status or 0, _words(error), self.addresses) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _unreachable(self.addresses, error) from None


def connect(addresses: Addresses | None = None) -> Server:
    """A client of the server that the environment names. ConfigError without one, MissingInputError without its token."""
    found = addresses or Addresses.from_environment()
    host = found.server()
    from kfp.client import Client, token_credentials_base

    class FromFile(token_credentials_base.TokenCredentialsBase):
        """Reads the token before each request: a kubelet replaces it while a command waits."""

        def refresh_api_key_hook(self, config: Any) -> None:
            config.api_key["authorization"] = _token(found.token_file)

    credentials = FromFile() if found.token_file else None
    if found.token_file:
        _token(found.token_file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A namespace of any name keeps the client from asking the server while it is being made.
        client = Client(
            host=host, namespace=found.namespace or "none", credentials=credentials, ssl_ca_cert=found.ca_file or None
        )
    return Server(client, found)


def letter(status: int, words: str, addresses: Addresses) -> BiovlmError:
    """The letter for an answer of the server that is not a success.

    Args:
        status: HTTP status.
        words: What the server says.
        addresses: Where it was asked, and with which token.
    """
    if status in (401, 403):
        token = f"the token in {addresses.token_file}" if addresses.token_file else "a request without a token"
        return RefusedError(
            f"the Kubeflow server refused {token} ({status}): {words}",
            "a token that has expired is the usual cause: fetch a new one into the file that KF_PIPELINES_SA_TOKEN_PATH names",
        )
    if status == 404:
        return MissingInputError(f"the Kubeflow server has no such thing: {words}", "`biovlm status` lists the runs it knows")
    if status == 409:
        return AlreadyThereError(f"the Kubeflow server has it already: {words}", "run the command again")
    if 400 <= status < 500 and status != 429:
        return ConfigError(f"the Kubeflow server refused the request ({status}): {words}", "the server's own words say why")
    return InternalError(f"the Kubeflow server failed ({status}): {words}", "try again in a while, or ask its operator")


def _named(name: str) -> str:
    predicate = {"operation": "EQUALS", "key": "display_name", "string_value": name}
    return json.dumps({"predicates": [predicate]})


def _token(path: Path | None) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() if path else ""
    except OSError as error:
        raise MissingInputError(
            f"cannot read the token in {path}: {error.strerror}", "KF_PIPELINES_SA_TOKEN_PATH names the file"
        ) from None


def _words(error: Any) -> str:
    """The server's explanation, in one line of bounded length; its own trace stays out."""
    try:
        text = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        text = error.reason or "no explanation"
    return str(text).splitlines()[0][:300]


def _unreachable(addresses: Addresses, error: Exception) -> BiovlmError:
    return AwayError(
        f"no Kubeflow server answers at {addresses.pipelines} ({type(error).__name__})",
        "check KF_PIPELINES_ENDPOINT, the network, and REQUESTS_CA_BUNDLE where the server has a certificate of your own",
    )
