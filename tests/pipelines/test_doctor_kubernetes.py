"""`biovlm doctor --cluster` and the Kubernetes API: every question against the stand-in, whose answers are changed one by one."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from pipelines import cli, doctor_cluster, doctor_kubernetes
from tests.standins.kuberay import NAMESPACE, TOKEN, KubeRay
from tests.standins.work import KUBECONFIG

ASKED = ("pool", "kubernetes", "secrets", "ray job", "queue", "registry of images")
DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def kubernetes(monkeypatch, tmp_path):
    """A cluster with a queue for the recipe's pool, named by a kubeconfig; and the environment of its launcher."""
    path = tmp_path / "kubeconfig"
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    told = {
        "BIOVLM_HOME": str(tmp_path / "home"),
        "BIOVLM_NAMESPACE": NAMESPACE,
        "BIOVLM_STORE": "s3://bucket/store",
        "BIOVLM_TEAM": "radiology",
        "BIOVLM_TRAIN_IMAGE": f"127.0.0.1:1/biovlm-train@{DIGEST}",
        "BIOVLM_LAUNCHER_IMAGE": "",
        "BIOVLM_RAY_SECRETS": "biovlm-store-train",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor_cluster, "CHECKS", {name: doctor_cluster.CHECKS[name] for name in ASKED})
    with KubeRay() as server:
        server.queue("biovlm-cpu", {})
        server.secrets.add("biovlm-store-train")
        path.write_text(KUBECONFIG.format(address=server.address, token=TOKEN))
        yield server


@pytest.fixture
def look(capsys):
    """Findings by name, and the exit code."""

    def run(*arguments):
        code = cli.call(["doctor", "--cluster", "--json", *arguments])
        return code, {one["name"]: one for one in json.loads(capsys.readouterr().out)}

    return run


def levels(found):
    return {name: one["level"] for name, one in found.items()}


def test_a_cluster_that_has_everything_is_told_so_and_nothing_is_made(kubernetes, look):
    code, found = look()
    assert code == 0
    assert {name for name, level in levels(found).items() if level != "ok"} == {"train image"}
    assert found["kubernetes"]["found"] == "1.32"
    assert found["kueue"]["found"] == "kueue.x-k8s.io v1beta2, v1beta1"
    assert not kubernetes.created
    assert not kubernetes.jobs
    assert {method for method, path, _ in kubernetes.requests if "rayjobs" not in path} == {"GET"}
    assert [query for method, _, query in kubernetes.requests if method == "POST"] == [
        {"dryRun": "All", "fieldValidation": "Strict"}
    ]


@pytest.mark.parametrize(
    ("change", "name", "level", "said"),
    [
        (lambda server: server.groups.pop("ray.io"), "kuberay", "missing", "no definitions of ray.io"),
        (lambda server: server.groups.update({"ray.io": ["v1alpha1"]}), "kuberay", "missing", "served as v1alpha1"),
        (lambda server: server.groups.pop("kueue.x-k8s.io"), "kueue", "missing", "no definitions of kueue.x-k8s.io"),
        (lambda server: setattr(server, "version", ("1", "27+")), "kubernetes", "warn", "1.27"),
        (lambda server: server.secrets.discard("biovlm-store-train"), "biovlm-store-train", "missing", "no such Secret"),
        (lambda server: server.secrets.discard("biovlm-tracking"), "biovlm-tracking", "warn", "no such Secret"),
        (lambda server: server.secrets.discard("biovlm-signing"), "biovlm-signing", "missing", "no such Secret"),
        (lambda server: server.secrets.discard("biovlm-trusted-keys"), "biovlm-trusted-keys", "missing", "no such Secret"),
        (lambda server: server.forbidden.add(("GET", "secrets")), "biovlm-store", "warn", "may not see"),
        (lambda server: server.forbidden.add(("POST", "rayjobs")), "ray job", "warn", "may not start"),
        (lambda server: server.queues.clear(), "queue", "missing", "no LocalQueue biovlm-cpu"),
        (lambda server: server.queue("biovlm-cpu", {"memory": "1Gi"}), "queue", "missing", "can never admit this: head asks for"),
    ],
)
def test_what_the_cluster_lacks_is_named_with_its_remedy(kubernetes, look, change, name, level, said):
    change(kubernetes)
    code, found = look()
    assert (found[name]["level"], code) == (level, 66 if level == "missing" else 0)
    assert said in found[name]["found"]
    assert found[name]["hint"]


def test_a_site_that_signs_nothing_needs_no_keys(kubernetes, look, monkeypatch):
    kubernetes.secrets -= {"biovlm-signing", "biovlm-trusted-keys"}
    monkeypatch.setenv("BIOVLM_SIGNING", "off")
    code, found = look()
    assert (code, "biovlm-signing" in found) == (0, False)


def test_a_field_that_the_installed_kuberay_does_not_know_is_found_before_any_run(kubernetes, look, monkeypatch):
    real = doctor_kubernetes.ray_job

    def newer(*arguments):
        body = real(*arguments)
        body["spec"]["notYetInvented"] = True
        return body

    monkeypatch.setattr(doctor_kubernetes, "ray_job", newer)
    code, found = look()
    assert (code, found["ray job"]["level"]) == (66, "missing")
    assert "notYetInvented" in found["ray job"]["found"]


def test_an_expired_token_and_a_server_that_is_gone_end_in_findings(kubernetes, look, tmp_path):
    kubernetes.tokens.clear()
    code, found = look()
    assert (code, levels(found)) == (
        66,
        dict.fromkeys(("kubernetes", "secrets", "ray job", "queue"), "missing") | {"pool": "ok", "train image": "warn"},
    )
    assert "expired" in found["secrets"]["hint"]
    (tmp_path / "kubeconfig").write_text(KUBECONFIG.format(address="http://127.0.0.1:9", token=TOKEN))
    assert "does not answer" in look()[1]["kubernetes"]["found"]


@pytest.mark.parametrize(
    ("image", "address"),
    [
        (f"registry.example/team/biovlm-train@{DIGEST}", f"https://registry.example/v2/team/biovlm-train/manifests/{DIGEST}"),
        (f"registry.example:5000/a/b/c:1@{DIGEST}", f"https://registry.example:5000/v2/a/b/c/manifests/{DIGEST}"),
        (f"localhost:5001/biovlm-train@{DIGEST}", f"http://localhost:5001/v2/biovlm-train/manifests/{DIGEST}"),
        (f"team/biovlm-train@{DIGEST}", f"https://registry-1.docker.io/v2/team/biovlm-train/manifests/{DIGEST}"),
        (f"python@{DIGEST}", f"https://registry-1.docker.io/v2/library/python/manifests/{DIGEST}"),
    ],
)
def test_the_address_of_an_image_in_its_registry(image, address):
    assert doctor_kubernetes.manifest_address(image) == address


@pytest.mark.parametrize(("code", "level"), [(200, "ok"), (401, "ok"), (404, "missing"), (500, "warn")])
def test_a_registry_is_asked_for_the_digest(kubernetes, look, monkeypatch, code, level):
    class Registry(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(code if self.path == f"/v2/biovlm-train/manifests/{DIGEST}" else 400)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("BIOVLM_TRAIN_IMAGE", f"127.0.0.1:{server.server_port}/biovlm-train@{DIGEST}")
        assert look()[1]["train image"]["level"] == level
        server.shutdown()
