"""The stand-in refuses what the original refuses; else the tests that use it would prove nothing."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from tests.standins.kfp import KFP_SCHEMA, serving
from tests.standins.kfp_rules import Refusal, check_cron, parse_package


@pytest.fixture(scope="module")
def server():
    if not KFP_SCHEMA.is_file():
        pytest.skip(f"no published KFP API at {KFP_SCHEMA}")
    with serving(KFP_SCHEMA) as found:
        yield found


def ask(server, method, path, body=None):
    request = urllib.request.Request(
        server.address + path, method=method, data=None if body is None else json.dumps(body).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/apis/v2beta1/runs?page_size=5", None, 200),
        ("GET", "/apis/v2beta1/runs?pagesize=5", None, 400),
        ("GET", "/apis/v2beta1/runs?page_size=five", None, 400),
        ("GET", "/apis/v2beta1/runs?namespace=team", None, 400),
        ("GET", "/apis/v1beta1/runs", None, 404),
        ("POST", "/apis/v2beta1/runs", {"display_name": "x", "colour": "red"}, 400),
        ("POST", "/apis/v2beta1/runs", {"display_name": "x", "run_id": "mine"}, 400),
        ("POST", "/apis/v2beta1/runs", {"display_name": 5}, 400),
        ("POST", "/apis/v2beta1/runs", {"display_name": "x", "pipeline_version_reference": {"pipeline_id": "no"}}, 404),
        ("POST", "/apis/v2beta1/runs/none:terminate", None, 404),
        ("POST", "/apis/v2beta1/recurringruns", {"display_name": "x", "max_concurrency": "1"}, 400),
        ("POST", "/apis/v2beta1/recurringruns", {"display_name": "x", "max_concurrency": "11", "mode": "ENABLE"}, 400),
        ("POST", "/apis/v2beta1/experiments", {"display_name": "e"}, 200),
        ("POST", "/apis/v2beta1/experiments", {"display_name": "e"}, 409),
    ],
)
def test_requests_are_held_against_the_published_api(server, method, path, body, status):
    assert ask(server, method, path, body)[0] == status


@pytest.mark.parametrize("text", [b"a: [", b"x: 1\n", b"pipelineInfo: {name: x}\n---\nplatforms: {kubernetes: {typo: 1}}\n", b""])
def test_a_package_that_kfp_cannot_read_is_refused(text):
    with pytest.raises(Refusal):
        parse_package(text)


@pytest.mark.parametrize("text", ["", "* * *", "0 0 25 * * *", "0 0 0 0 * *", "x * * * * *", "0 0 0 5-1 * *", "*/0 * * * * *"])
def test_a_cron_expression_that_robfig_cannot_read_is_refused(text):
    with pytest.raises(Refusal):
        check_cron(text)
