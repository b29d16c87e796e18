"""A Kubeflow Pipelines API server for tests: strict about what it is asked, honest about what it cannot show.

1. `KfpServer(schema)` answers on the loopback interface; the real `kfp.Client` talks to it.
2. Every request is matched against the published API (kfp_api_v2beta1.swagger.json): path, query parameters and their types, body. Unknown
   fields, and fields that only the server may write, are refused. What is answered is checked against the same file.
3. It keeps experiments, pipelines, versions, runs and recurring runs, with the rules of the real server (kubeflow/pipelines 2.17,
   backend/src/apiserver): names are unique, parameters must fit the package, a run that ended cannot be terminated, only a failed or
   cancelled one is retried, a single-user server refuses a namespace, times have a resolution of one second.
4. A run plays a script: a list of frames, one for each time that it is looked at. Task details come with the drivers and executors that
   Argo adds. `faults` lets requests fail: an HTTP status, or a connection that breaks.

What it cannot prove: that pods start, what Argo makes of the package, how a real proxy in front behaves, and timing.
"""

from __future__ import annotations

import contextlib
import email
import email.policy
import json
import os
import random
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.standins.kfp_rules import Refusal, Schema, check_cron, check_parameters, parse_package

SCHEMAS = Path(os.environ.get("BIOVLM_SCHEMAS") or Path(__file__).resolve().parents[3] / "shared" / "schemas")
KFP_SCHEMA = SCHEMAS / "kfp" / "kfp_api_v2beta1.swagger.json"
OVER = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
Frame = dict[str, Any]


@dataclass
class Fault:
    """The next `times` requests whose line matches end with `status`; 0 breaks the connection."""

    line: str
    status: int
    times: int = 1


@dataclass
class Played:
    """A run, and how far its script was played."""

    body: dict[str, Any]
    spec: dict[str, Any]
    script: list[Frame]
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    at: int = 0


class State:
    """What the server knows."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.lock = threading.RLock()
        self.clock, self.tick, self.jitter = 1_790_000_000, 1, 0.0
        self.tag_name, self.multi_user, self.token = "2.17.0", False, ""
        self.faults: list[Fault] = []
        self.asked: list[str] = []
        self.scripts: list[list[Frame]] = []
        self.logs: dict[str, str] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, dict[str, Any]] = {}
        self.recurring: dict[str, dict[str, Any]] = {}
        self.played: dict[str, Played] = {}

    def now(self) -> str:
        self.clock += self.tick
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.clock))

    def place(self, namespace: str | None) -> None:
        if namespace and not self.multi_user:
            raise Refusal(400, 3, "In single-user mode, a namespace cannot be given")
        if self.multi_user and not namespace:
            raise Refusal(400, 3, "Invalid input: namespace is empty in multi-user mode")

    # --------------------------------------------------------------------------------------------------- operations

    def make_experiment(self, query, body):
        if any(found["display_name"] == body["display_name"] for found in self.experiments.values()):
            raise Refusal(409, 6, f"Experiment {body['display_name']} already exists")
        made = {**body, "experiment_id": str(uuid.uuid4()), "created_at": self.now(), "storage_state": "AVAILABLE"}
        self.experiments[made["experiment_id"]] = made
        return made

    def upload(self, query, files):
        name = query.get("name") or query.get("display_name") or "unnamed"
        spec = parse_package(files["uploadfile"])
        if any(found["display_name"] == name for found in self.pipelines.values()):
            raise Refusal(409, 6, f"Pipeline with name {name} already exists")
        made = {"pipeline_id": str(uuid.uuid4()), "display_name": name, "name": name, "created_at": self.now()}
        self.pipelines[made["pipeline_id"]] = made
        self._version(made["pipeline_id"], name, query, spec)
        return made

    def upload_version(self, query, files):
        self._found(self.pipelines, query.get("pipelineid", ""), "pipeline")
        spec = parse_package(files["uploadfile"])
        return self._version(query["pipelineid"], query["name"], query, spec)

    def _version(self, pipeline, name, query, spec):
        if any(v["display_name"] == name and v["pipeline_id"] == pipeline for v in self.versions.values()):
            raise Refusal(409, 6, f"Pipeline version {name} already exists in the pipeline")
        made = {"pipeline_id": pipeline, "pipeline_version_id": str(uuid.uuid4()), "display_name": name, "name": name}
        made |= {"created_at": self.now(), "description": query.get("description", ""), "pipeline_spec": spec}
        self.versions[made["pipeline_version_id"]] = made
        return made

    def _spec(self, body) -> dict[str, Any]:
        wanted = body.get("pipeline_version_reference") or {}
        if bool(wanted) == bool(body.get("pipeline_spec")):
            raise Refusal(400, 3, "Invalid input: give either a pipeline spec or a pipeline version reference")
        if not wanted:
            raise Refusal(400, 3, "this stand-in takes no inline spec")
        self._found(self.pipelines, wanted.get("pipeline_id", ""), "pipeline")
        if wanted.get("pipeline_version_id"):
            return self._found(self.versions, wanted["pipeline_version_id"], "pipeline version")["pipeline_spec"]
        mine = [v for v in self.versions.values() if v["pipeline_id"] == wanted["pipeline_id"]]
        return max(mine, key=lambda v: (v["created_at"], v["pipeline_version_id"]))["pipeline_spec"]

    def make_run(self, query, body):
        if not body.get("display_name"):
            raise Refusal(400, 3, "Invalid input: run name is empty")
        spec = self._spec(body)
        check_parameters(spec, (body.get("runtime_config") or {}).get("parameters") or {})
        if body.get("experiment_id"):
            self._found(self.experiments, body["experiment_id"], "experiment")
        made = {**body, "run_id": str(uuid.uuid4()), "created_at": self.now(), "state": "PENDING", "storage_state": "AVAILABLE"}
        script = self.scripts.pop(0) if self.scripts else [dict.fromkeys(tasks_of(spec), "SUCCEEDED")]
        self.played[made["run_id"]] = Played(made, spec, script)
        return made

    def look(self, run_id) -> dict[str, Any]:
        """A run, one frame further."""
        run = self._found(self.played, run_id, "run")
        if run.body["state"] == "CANCELING":
            self._end(run, "CANCELED")
        elif run.body["state"] not in OVER:
            self._advance(run)
        return self.described(run)

    def _advance(self, run: Played) -> None:
        run.body["state"] = "RUNNING"
        if run.at < len(run.script):
            for name, state in run.script[run.at].items():
                state, said = state if isinstance(state, tuple) else (state, "")
                task = run.tasks.setdefault(name, {"id": uuid.uuid4().hex[:8], "start": self.now()})
                task |= {"state": state, "said": said} | ({"end": self.now()} if state in OVER else {})
            run.at += 1
        states = {name: task["state"] for name, task in run.tasks.items()}
        if "FAILED" in states.values():
            self._end(run, "FAILED")
        elif run.at >= len(run.script) and all(states.get(name) in ("SUCCEEDED", "SKIPPED") for name in tasks_of(run.spec)):
            self._end(run, "SUCCEEDED")

    def _end(self, run: Played, state: str) -> None:
        run.body |= {"state": state, "finished_at": self.now()}
        for task in run.tasks.values():
            if task["state"] not in OVER:
                task |= {"state": "CANCELED" if state == "CANCELED" else "FAILED", "end": self.now()}

    def described(self, run: Played) -> dict[str, Any]:
        details = []
        for name, task in run.tasks.items():
            whole = {"run_id": run.body["run_id"], "task_id": task["id"], "display_name": name, "state": task["state"]}
            whole |= {"create_time": task["start"], "start_time": task["start"], "pod_name": f"biovlm-{task['id']}"}
            whole |= {"end_time": task["end"]} if "end" in task else {}
            whole |= {"error": {"code": 2, "message": task["said"]}} if task["said"] else {}
            driver = {**whole, "task_id": f"{task['id']}-d", "display_name": f"{name}-driver", "state": "SUCCEEDED"}
            driver.pop("error", None)
            executor = {**whole, "task_id": f"{task['id']}-e", "display_name": "executor", "parent_task_id": task["id"]}
            executor["pod_name"] = f"biovlm-{name}-{task['id']}"
            whole["child_tasks"] = [{"pod_name": executor["pod_name"]}]
            details += [driver, whole, executor]
        shown = {k: v for k, v in run.body.items() if v is not None}
        return {**shown, "run_details": {"task_details": details}}

    def terminate(self, run_id):
        run = self._found(self.played, run_id, "run")
        if run.body["state"] in OVER:
            raise Refusal(400, 9, f"Failed to terminate run {run_id}: the run has already ended")
        run.body["state"] = "CANCELING"
        return {}

    def retry(self, run_id):
        run = self._found(self.played, run_id, "run")
        if run.body["state"] not in ("FAILED", "CANCELED"):
            raise Refusal(400, 9, f"Failed to retry run {run_id}: only a failed or cancelled run can be retried")
        run.body["state"] = "PENDING"
        run.body.pop("finished_at", None)
        run.tasks = {name: task for name, task in run.tasks.items() if task["state"] == "SUCCEEDED"}
        rest = [name for name in tasks_of(run.spec) if name not in run.tasks]
        run.script, run.at = (self.scripts.pop(0) if self.scripts else [dict.fromkeys(rest, "SUCCEEDED")]), 0
        return {}

    def make_recurring(self, query, body):
        if not body.get("display_name"):
            raise Refusal(400, 3, "Invalid input: recurring run name is empty")
        if body.get("max_concurrency") is None or not 1 <= int(body["max_concurrency"]) <= 10:
            raise Refusal(400, 3, "The max concurrency should be between 1 and 10")
        if body.get("mode") not in ("ENABLE", "DISABLE"):
            raise Refusal(400, 3, "Unrecognized recurring run mode")
        trigger = body.get("trigger") or {}
        if bool(trigger.get("cron_schedule")) == bool(trigger.get("periodic_schedule")):
            raise Refusal(400, 3, "The recurring run must have one trigger")
        if trigger.get("cron_schedule"):
            check_cron(trigger["cron_schedule"].get("cron", ""))
        self._found(self.experiments, body.get("experiment_id", ""), "experiment")
        check_parameters(self._spec(body), (body.get("runtime_config") or {}).get("parameters") or {})
        made = {**body, "recurring_run_id": str(uuid.uuid4()), "created_at": self.now()}
        made |= {"updated_at": made["created_at"], "status": "ENABLED" if body["mode"] == "ENABLE" else "DISABLED"}
        self.recurring[made["recurring_run_id"]] = made
        return made

    def switch(self, identifier, enabled):
        found = self._found(self.recurring, identifier, "recurring run")
        found |= {"mode": "ENABLE" if enabled else "DISABLE", "status": "ENABLED" if enabled else "DISABLED"}
        return {}

    def remove_recurring(self, identifier):
        self._found(self.recurring, identifier, "recurring run")
        del self.recurring[identifier]
        return {}

    def _found(self, where, identifier, what):
        if identifier not in where:
            raise Refusal(404, 5, f"{what} {identifier} not found")
        return where[identifier]

    def listed(self, values, name, query):
        self.place(query.get("namespace"))
        return self.page(values, name, query)

    def page(self, values, name, query):
        found = [value for value in values if matches(value, query.get("filter"))]
        key, _, direction = query.get("sort_by", "created_at").partition(" ")
        identifier = "recurring_run_id" if name == "recurringRuns" else f"{name[:-1]}_id"
        found.sort(key=lambda value: (value[key], value[identifier]), reverse=direction == "desc")
        size, start = int(query.get("page_size") or 10), int(query.get("page_token") or 0)
        more = {"next_page_token": str(start + size)} if start + size < len(found) else {}
        return {name: found[start : start + size], "total_size": len(found), **more}


def tasks_of(spec) -> list[str]:
    return list(spec["pipeline_spec"]["root"]["dag"]["tasks"])


def matches(value, text) -> bool:
    """The filters that the client sends: equality of strings."""
    for predicate in json.loads(text)["predicates"] if text else ():
        if predicate["operation"] not in ("EQUALS", 1) or "string_value" not in predicate:
            raise Refusal(400, 3, f"Invalid filter: {predicate}")
        if value.get(predicate["key"]) != predicate["string_value"]:
            return False
    return True


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait for the first one's acknowledgement
    state: State

    def log_message(self, *given) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_DELETE = do_GET

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, strict_parsing=bool(url.query), keep_blank_values=True))
        line = f"{self.command} {url.path}"
        state = self.state
        with state.lock:
            state.asked.append(line)
            fault = next((f for f in state.faults if f.times and re.search(f.line, line)), None)
            if fault:
                fault.times -= 1
        if fault and not fault.status:
            self.close_connection = True
            self.connection.close()
            return
        try:
            if fault:
                raise Refusal(fault.status, 13, "planted fault")
            if state.token and self.headers.get("authorization") != f"Bearer {state.token}":
                raise Refusal(401, 16, "Unauthenticated: the token is missing, wrong or expired")
            if state.jitter and self.command != "GET":
                time.sleep(random.random() * state.jitter)
            with state.lock:
                answer = self._answer(url.path, query, raw)
            self._send(200, answer)
        except Refusal as refusal:
            self._send(refusal.status, {"error": refusal.words, "code": refusal.code, "message": refusal.words, "details": []})

    def _answer(self, path, query, raw) -> Any:
        state = self.state
        if path == "/apis/v1beta1/healthz":
            return {"commit_sha": "0" * 40, "tag_name": state.tag_name, "multi_user": state.multi_user}
        log = re.fullmatch(r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", path)
        if log:
            name = re.sub(r"^biovlm-(.+)-[0-9a-f]{8}$", r"\1", log[2])
            if name not in state.logs:
                raise Refusal(404, 5, "log not found")
            return state.logs[name]
        operation = state.schema.operation(self.command, path)
        operation.check_query({k: v for k, v in query.items() if v != ""})
        body = self._files(raw) if operation.takes_files else operation.check_body(raw)
        answer = self._act(operation.name, operation.given, query, body)
        operation.check_answer(answer)
        return answer

    def _files(self, raw) -> dict[str, bytes]:
        head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
        parts = email.message_from_bytes(head + raw, policy=email.policy.HTTP)
        return {p.get_param("name", header="content-disposition"): p.get_payload(decode=True) for p in parts.iter_parts()}

    def _act(self, name, given, query, body) -> Any:
        state = self.state
        simple = {
            "HealthzService_GetHealthz": lambda: {"multi_user": state.multi_user, "pipeline_store": "database"},
            "ExperimentService_ListExperiments": lambda: state.listed(state.experiments.values(), "experiments", query),
            "ExperimentService_CreateExperiment": lambda: state.make_experiment(query, body),
            "PipelineService_ListPipelines": lambda: state.listed(state.pipelines.values(), "pipelines", query),
            "PipelineService_ListPipelineVersions": lambda: state.page(
                [v for v in state.versions.values() if v["pipeline_id"] == given["pipeline_id"]], "pipeline_versions", query
            ),
            "UploadPipeline": lambda: state.upload(query, body),
            "UploadPipelineVersion": lambda: state.upload_version(query, body),
            "RunService_CreateRun": lambda: state.make_run(query, body),
            "RunService_GetRun": lambda: state.look(given["run_id"]),
            "RunService_ListRuns": lambda: state.listed([r.body for r in state.played.values()], "runs", query),
            "RunService_TerminateRun": lambda: state.terminate(given["run_id"]),
            "RunService_RetryRun": lambda: state.retry(given["run_id"]),
            "RecurringRunService_ListRecurringRuns": lambda: state.listed(state.recurring.values(), "recurringRuns", query),
            "RecurringRunService_CreateRecurringRun": lambda: state.make_recurring(query, body),
            "RecurringRunService_DeleteRecurringRun": lambda: state.remove_recurring(given["recurring_run_id"]),
            "RecurringRunService_EnableRecurringRun": lambda: state.switch(given["recurring_run_id"], True),
            "RecurringRunService_DisableRecurringRun": lambda: state.switch(given["recurring_run_id"], False),
        }
        if name not in simple:
            raise Refusal(501, 12, f"{name} is not in this stand-in")
        return simple[name]()

    def _send(self, status, answer) -> None:
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain" if isinstance(answer, str) else "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Listener(ThreadingHTTPServer):
    """All who come at once get in: with the library's backlog of 5, the kernel lets the others try again after seconds."""

    daemon_threads, request_queue_size = True, 128


class KfpServer:
    """The server, and its address."""

    def __init__(self, schema: Path) -> None:
        self.state = State(Schema.read(schema))
        self._http = Listener(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"state": self.state}))
        self.address = f"http://127.0.0.1:{self._http.server_port}"


@contextlib.contextmanager
def serving(schema: Path) -> Iterator[KfpServer]:
    """A server while the context lasts."""
    server = KfpServer(schema)
    thread = threading.Thread(target=lambda: server._http.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server._http.shutdown()
        server._http.server_close()
        thread.join(5)
