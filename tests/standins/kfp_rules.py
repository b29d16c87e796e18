"""What the KFP stand-in refuses: requests that the published API does not know, packages that kfp cannot read, cron that robfig cannot.

`Schema` turns the published swagger file into JSON Schema with no room for unknown fields. Everything else here is a rule of the server
that the file cannot say.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import yaml

MOST_BYTES = 32 * 2**20


class Refusal(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, code: int, words: str) -> None:
        super().__init__(words)
        self.status, self.code, self.words = status, code, words


class Schema:
    """The published API."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._paths = content["paths"]
        self._answers = Shapes({name: _closed(part, asked=False) for name, part in content["definitions"].items()}, 500)
        self._asked = Shapes({name: _closed(part, asked=True) for name, part in content["definitions"].items()}, 400)

    @classmethod
    def read(cls, path: Path) -> Schema:
        return cls(json.loads(path.read_text()))

    def operation(self, method: str, path: str) -> Operation:
        """The operation of a request. Refusal if the API has none."""
        for template, methods in sorted(self._paths.items(), key=lambda entry: entry[0].count("{")):
            names = re.findall(r"{([^}]+)}", template)
            pattern = "".join(
                "([^/:]+)" if part.startswith("{") else re.escape(part) for part in re.split(r"({[^}]+})", template)
            )
            found = re.fullmatch(pattern, path)
            if found and method.lower() in methods:
                given = dict(zip(names, found.groups(), strict=True))
                return Operation(methods[method.lower()], given, self._asked, self._answers)
        raise Refusal(404, 5, f"Not Found: {method} {path}")


class Operation:
    """One operation of the API."""

    def __init__(self, content: dict[str, Any], given: dict[str, str], asked: Shapes, answers: Shapes) -> None:
        self.name, self.given = content["operationId"], given
        self._parameters = content.get("parameters", [])
        self._answer = content["responses"]["200"]["schema"]
        self._asked, self._answers = asked, answers

    @property
    def takes_files(self) -> bool:
        return any(parameter["in"] == "formData" for parameter in self._parameters)

    def check_query(self, query: dict[str, str]) -> None:
        known = {p["name"]: p for p in self._parameters if p["in"] == "query"}
        for name, value in query.items():
            if name not in known:
                raise Refusal(400, 3, f"unknown query parameter {name!r} of {self.name}")
            if known[name]["type"] == "integer" and not re.fullmatch(r"-?\d+", value):
                raise Refusal(400, 3, f"query parameter {name} is no integer: {value!r}")

    def check_body(self, raw: bytes) -> Any:
        wanted = next((p["schema"] for p in self._parameters if p["in"] == "body"), None)
        if wanted is None:
            if raw not in (b"", b"{}", b"null"):
                raise Refusal(400, 3, f"{self.name} takes no body")
            return None
        try:
            body = json.loads(raw)
        except ValueError:
            raise Refusal(400, 3, "the body is no JSON") from None
        self._asked.check(body, wanted)
        return body

    def check_answer(self, answer: Any) -> None:
        """A defect of the stand-in, if it fails: it would teach a client what no server says."""
        self._answers.check(answer, self._answer)


class Shapes:
    """The definitions of the API as JSON Schema, and the status that a value ends with that is not like them."""

    def __init__(self, definitions: dict[str, Any], status: int) -> None:
        self._definitions, self._status = definitions, status
        self._validators: dict[str, Any] = {}

    def check(self, value: Any, wanted: dict[str, Any]) -> None:
        """Refusal if `value` is not what `wanted` says."""
        key = json.dumps(wanted, sort_keys=True)
        if key not in self._validators:
            self._validators[key] = jsonschema.Draft7Validator({**wanted, "definitions": self._definitions})
        for error in self._validators[key].iter_errors(value):
            where = ".".join(str(part) for part in error.absolute_path)
            raise Refusal(self._status, 3, f"{where or 'body'}: {error.message[:200]}")


def _closed(part: dict[str, Any], asked: bool) -> dict[str, Any]:
    """A definition without room for unknown fields; for a request, also without what only the server writes."""
    made = copy.deepcopy(part)
    properties = made.get("properties", {})
    for name, entry in list(properties.items()):
        if asked and (entry.get("readOnly") or entry.get("description", "").startswith("Output")):
            del properties[name]
        elif entry.get("format") == "int64":
            properties[name] = {"type": ["string", "integer"]}
    if properties and "additionalProperties" not in made:
        made["additionalProperties"] = False
    return made


def check_parameters(spec: dict[str, Any], given: dict[str, Any]) -> None:
    """The arguments of a run must fit the package."""
    known = spec["pipeline_spec"]["root"].get("inputDefinitions", {}).get("parameters", {})
    for name in given:
        if name not in known:
            raise Refusal(400, 3, f"unknown input parameter: {name}")
    for name, entry in known.items():
        if name not in given and not entry.get("isOptional") and "defaultValue" not in entry:
            raise Refusal(400, 3, f"parameter {name} is not optional, yet has neither default value nor user provided value")
        if name in given and entry["parameterType"] == "STRING" and not isinstance(given[name], str):
            raise Refusal(400, 3, f"input parameter {name} requires type string")


@functools.cache
def parse_package(content: bytes) -> dict[str, Any]:
    """Both documents of a compiled file, read by kfp's own messages."""
    from google.protobuf import json_format
    from kfp.kubernetes import kubernetes_executor_config_pb2
    from kfp.pipeline_spec import pipeline_spec_pb2

    if len(content) > MOST_BYTES:
        raise Refusal(400, 3, "File size too large. Maximum supported file size: 32 MB")
    try:
        documents = list(yaml.load_all(content, Loader=yaml.CSafeLoader))
        json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        platform = documents[1] if len(documents) > 1 else {}
        json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
        pods = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
        for pod in pods.values():
            json_format.ParseDict(pod, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    except (yaml.YAMLError, json_format.ParseError, IndexError, TypeError, AttributeError) as error:
        raise Refusal(400, 3, f"Invalid input: the package cannot be read: {str(error)[:200]}") from None
    unknown = set(pods) - set(documents[0]["deploymentSpec"]["executors"])
    if unknown:
        raise Refusal(400, 3, f"Invalid input: platform settings for unknown executors {sorted(unknown)}")
    return {"pipeline_spec": documents[0], "platform_spec": platform}


FIELDS = ((0, 59, ()), (0, 59, ()), (0, 23, ()), (1, 31, ()))
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def check_cron(text: str) -> None:
    """Six fields with the seconds first, as robfig/cron v1 reads them, or one of its descriptors."""
    if re.fullmatch(r"@(yearly|annually|monthly|weekly|daily|midnight|hourly)|@every [0-9hms.]+", text):
        return
    fields = text.split()
    if len(fields) not in (5, 6):
        raise Refusal(400, 3, f"Schedule cron is not supported: expected 5 or 6 fields, found {len(fields)}: {text}")
    kinds = [*FIELDS, (1, 12, MONTHS), (0, 6, DAYS)]
    for content, (low, high, names) in zip(fields, kinds, strict=False):
        for part in content.split(","):
            found = re.fullmatch(r"(\*|\?|\w+)(?:-(\w+))?(?:/(\d+))?", part)
            ends = [_number(end, names) for end in (found[1], found[2]) if end not in (None, "*", "?")] if found else [-1]
            wrong = not found or any(not low <= end <= high for end in ends) or found[3] == "0" or ends != sorted(ends)
            if wrong:
                raise Refusal(400, 3, f"Schedule cron is not supported: {part!r} in {text}")


def _number(text: str, names: tuple[str, ...]) -> int:
    if text.isdigit():
        return int(text)
    return names.index(text.lower()) + (len(names) == 12) if text.lower() in names else -1
