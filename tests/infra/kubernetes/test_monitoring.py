"""Alerts and the dashboard ask for metrics that exist, in a language that their server speaks, and every alert says what to do.

1. PromQL is parsed by promql-parser, the alerts' also by promtool where it is installed, which plays made-up series to each alert.
2. The dashboard's SQL is run by `test_database.py`.

Not proven without servers: that Kueue, KubeRay and Ray of the versions in infra/README.md export these names with these labels (they are
taken from their sources and documentation), that the Prometheus operator takes the objects, and what Grafana draws.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.manifests import OVERLAYS, ROOT, find, rendered

KUBERNETES = ROOT / "infra" / "kubernetes"
RUNBOOKS = KUBERNETES / "runbooks"
KNOWN = {
    # metric: labels that may be asked for, beside those that Prometheus or a monitor of ours adds
    "kueue_pending_workloads": {"cluster_queue", "status"},
    "kueue_admission_wait_time_seconds_bucket": {"cluster_queue", "le"},
    "kueue_evicted_workloads_total": {"cluster_queue", "reason"},
    "kueue_local_queue_resource_usage": {"name", "namespace", "flavor", "resource"},  # with Kueue's gate LocalQueueMetrics
    "kuberay_job_deployment_status": {"name", "namespace", "deployment_status"},
    "kuberay_job_execution_duration_seconds": {"name", "namespace", "job_deployment_status", "retry_count"},
    "ray_node_gpus_utilization": set(),
    "ray_train_worker_group_start_total_time_s": set(),
    "kube_cronjob_status_last_successful_time": {"namespace", "cronjob"},
    "kubelet_volume_stats_available_bytes": {"namespace", "persistentvolumeclaim"},
    "kubelet_volume_stats_capacity_bytes": {"namespace", "persistentvolumeclaim"},
    "up": set(),
}
ADDED = {"namespace", "job", "pod", "ray_io_cluster"}
CURVES = {"loss", "tokens_per_second", "gradient_norm", "skipped_steps", "checkpoint_age_seconds"}
MACROS = {r"\$__rate_interval": "5m", r"\$__range": "1h", r"\$__interval": "1m"}


@pytest.fixture(scope="module")
def alerts():
    (group,) = find(rendered("gpu"), "PrometheusRule biovlm")["spec"]["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


@pytest.fixture(scope="module")
def panels():
    return json.loads((KUBERNETES / "base" / "monitoring" / "biovlm.json").read_text())["panels"]


def plain(text):
    for macro, value in MACROS.items():
        text = re.sub(macro, value, text)
    return text


def questions(panels, kind):
    return [(panel["title"], target[kind]) for panel in panels for target in panel.get("targets", []) if kind in target]


def asked(expression):
    """(metric, labels) of an expression."""
    parser = pytest.importorskip("promql_parser", reason="promql-parser is not installed: PromQL is not checked")
    parser.parse(plain(expression))
    for metric, labels in re.findall(r"\b([a-z_:]+[a-z])\s*\{([^}]*)\}", expression):
        yield metric, {label.strip() for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels)}
    for labels in re.findall(r"\bby \(([^)]*)\)", expression):
        yield "", {label.strip() for label in labels.split(",")}


def unknown(expressions):
    """What an expression asks of a metric that it does not have."""
    known = set().union(*KNOWN.values()) | ADDED
    for expression, (metric, labels) in ((e, found) for e in expressions for found in asked(e)):
        if metric and metric not in KNOWN:
            yield f"{metric} in {expression}"
        elif labels - (KNOWN[metric] | ADDED if metric else known):
            yield f"{metric}{sorted(labels)} in {expression}"


def test_alerts_ask_for_metrics_that_exist(alerts):
    assert not list(unknown(rule["expr"] for rule in alerts.values()))


def test_the_dashboard_asks_for_metrics_that_exist(panels):
    assert not list(unknown(expression for _, expression in questions(panels, "expr")))
    assert set(re.findall(r"m\.key = '(\w+)'", str(questions(panels, "rawSql")))) == CURVES


@pytest.mark.parametrize(
    "wrong", ['sum(kueue_pending_workload{cluster_queue="x"})', 'up{cluster_queueue="x"}', "sum by (colour) (up{})"]
)
def test_a_metric_or_label_that_does_not_exist_is_seen(wrong):
    assert list(unknown([wrong]))


def test_the_curves_are_those_that_training_reports():
    said = (ROOT / "model" / "training" / "loop.py").read_text()
    assert all(f'"{curve}"' in said for curve in CURVES)


def test_every_alert_has_a_severity_a_pause_and_a_runbook_of_its_own(alerts):
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == set(alerts)
    for name, rule in alerts.items():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert re.fullmatch(r"\d+[mh]", rule["for"])
        assert rule["annotations"]["runbook_url"].endswith(f"/infra/kubernetes/runbooks/{name}.md")


@pytest.mark.parametrize("path", sorted(RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_the_commands_of_a_runbook_parse_and_name_what_is_there(path):
    (block,) = re.findall(r"```sh\n(.*?)```", path.read_text(), re.S)
    for line in block.splitlines():
        words = shlex.split(line)
        assert words[0] in ("kubectl", "biovlm", "python"), line
        assert words[0] != "kubectl" or words[1] in ("-n", "get", "describe"), line
        assert words[0] != "python" or words[1:3] == ["-m", "infra.policy"], line


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_monitors_find_the_pods_and_ports_that_they_ask(overlay):
    documents = rendered(overlay)
    service = find(documents, "Service mlflow")
    monitor = find(documents, "ServiceMonitor mlflow")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    head = find(documents, "RayCluster biovlm")["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert find(documents, "PodMonitor ray")["spec"]["podMetricsEndpoints"][0]["port"] in [port["name"] for port in head["ports"]]


def test_the_dashboard_is_one_grafana_can_lay_out(panels):
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["title"], panel["gridPos"]) for panel in panels]
    for (one, a), (other, b) in itertools.combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"] or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart, (one, other)
    assert all(at["x"] + at["w"] <= 24 for _, at in places)


def test_the_dashboard_shows_what_a_platform_team_looks_for(panels):
    titles = {panel["title"] for panel in panels}
    assert {
        "Queue wait",
        "GPU seconds",
        "Loss",
        "Age of the checkpoint",
        "Tokens a second",
        "Time that steps took",
        "Preemptions and other evictions",
    } <= titles


def test_promtool_takes_the_alerts_and_each_fires_and_clears(alerts, tmp_path):
    tool = shutil.which("promtool") or os.environ.get("PROMTOOL")
    if not tool:
        pytest.skip("promtool is not installed: alerts are parsed, not played")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "biovlm", "rules": list(alerts.values())}]}))
    played = yaml.safe_load(Path(__file__).with_name("alerts.yaml").read_text())
    assert {test["alert_rule_test"][0]["alertname"] for test in played["tests"]} == set(alerts)
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({**played, "rule_files": ["rules.yaml"]}))
    done = subprocess.run([tool, "test", "rules", "alerts.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
