"""Who may do what in the bucket: the policies of infra/kubernetes/s3, asked as S3 evaluates them.

A request passes if the role's policy allows it and neither that nor the bucket's denies it. `verdict` knows the operators that the files
use and refuses any other, so a new one is learned here first. Whether a given S3 server acts on each condition cannot be seen here:
`biovlm doctor` tries the conditional write on the real one.
"""

from __future__ import annotations

import fnmatch
import json
import re

import pytest

from tests.manifests import ROOT

FOLDER = ROOT / "infra" / "kubernetes" / "s3"
ROLES = ("launcher", "train", "curator", "mlflow", "auditor")
KEY = "a1" * 32
STEP = f"store/steps/train/{KEY}"
CHECKPOINT = f"store/checkpoints/train/{KEY}/attempt-000001"


def statements(name):
    return json.loads((FOLDER / f"{name}.json").read_text())["Statement"]


def listed(value):
    return value if isinstance(value, list) else [value]


def like(pattern, text):
    return fnmatch.fnmatchcase(text, pattern.replace("[", "[[]"))


def holds(condition, context):
    """Whether a statement's condition holds; a value that the request lacks fulfils only a negated operator."""
    answers = {
        "Bool": lambda told, values: told is not None and str(told).lower() in values,
        "Null": lambda told, values: (told is None) == (values[0] == "true"),
        "StringLike": lambda told, values: told is not None and any(like(value, told) for value in values),
        "ArnNotLike": lambda told, values: told is None or not any(like(value, told) for value in values),
    }
    return all(
        answers[operator](context.get(key), listed(values))
        for operator, pairs in condition.items()
        for key, values in pairs.items()
    )


def verdict(role, action, name, **context):
    """True if `role` may do `action` on the object `name` (or on the bucket, for an empty one)."""
    resource = "arn:aws:s3:::biovlm" + (f"/{name}" if name else "")
    request = {"aws:SecureTransport": "true", "aws:PrincipalArn": f"arn:aws:iam::111122223333:role/biovlm-{role}", **context}
    every = [*(statements(role) if role in ROLES else []), *statements("bucket")]
    meant = [
        one["Effect"]
        for one in every
        if any(like(pattern, f"s3:{action}") for pattern in listed(one["Action"]))
        and any(like(pattern, resource) for pattern in listed(one["Resource"]))
        and holds(one.get("Condition", {}), request)
    ]
    return "Allow" in meant and "Deny" not in meant


ONCE = {"s3:if-none-match": "*"}
MAY = [
    ("launcher", "PutObject", f"store/steps/data/{KEY}/manifest.json", ONCE),
    ("launcher", "PutObject", f"store/files/{KEY}/a.safetensors", {}),
    ("launcher", "PutObject", f"store/heavy/run/{KEY}/spec.json", {}),
    ("launcher", "PutObject", f"store/steps/data/{KEY}.json", {}),
    ("launcher", "PutObject", "store/steps/data/bad-20260101T000000-ab12-a1a1a1a1a1a1a1a1/manifest.json", {}),
    ("launcher", "DeleteObject", f"{STEP}/manifest.json", {}),
    ("launcher", "PutObject", "store/ledger/mini/1790000000000/entries/00000001.json", ONCE),
    ("launcher", "PutObject", "store/.probe-12345678", ONCE),
    ("launcher", "GetObject", "dvc/files/md5/ab/cd", {}),
    ("launcher", "ListBucket", "", {"s3:prefix": "store/steps/"}),
    ("train", "PutObject", f"{STEP}/manifest.json", ONCE),
    ("train", "PutObject", f"store/files/{KEY}/a.safetensors", {}),
    ("train", "PutObject", f"store/heavy/run/{KEY}/result.json", {}),
    ("train", "PutObject", f"{CHECKPOINT}/claim", ONCE),
    ("train", "PutObject", f"{CHECKPOINT}/step-000050/manifest.json", ONCE),
    ("train", "PutObject", f"{CHECKPOINT}/step-000050/weights.safetensors", {}),
    ("train", "PutObject", f"store/checkpoints/train/{KEY}/quarantine/attempt-000001-step-000050/manifest.json", {}),
    ("train", "DeleteObject", f"{CHECKPOINT}/step-000050/manifest.json", {}),
    ("train", "GetObject", "store/data/phantom-abc/manifest.json", {}),
    ("curator", "PutObject", "dvc/files/md5/ab/cd", {}),
    ("mlflow", "PutObject", "mlflow/1/abc/artifacts/report.html", {}),
    ("auditor", "GetObjectVersion", f"{STEP}/manifest.json", {}),
]
MAY_NOT = [
    ("train", "PutObject", "store/data/phantom-abc/manifest.json", ONCE),
    ("train", "PutObject", f"store/steps/register/{KEY}/manifest.json", ONCE),
    ("train", "PutObject", f"store/steps/promote/{KEY}/manifest.json", ONCE),
    ("train", "PutObject", "store/exports/abc/manifest.json", ONCE),
    ("train", "PutObject", "store/ledger/mini/1790000000000/entries/00000001.json", ONCE),
    ("launcher", "DeleteObject", "store/ledger/mini/1790000000000/entries/00000001.json", {}),
    ("train", "PutObject", f"store/heavy/run/{KEY}/spec.json", {}),
    ("train", "PutObject", "dvc/files/md5/ab/cd", {}),
    ("train", "GetObject", "dvc/files/md5/ab/cd", {}),
    ("train", "PutObject", "mlflow/x", {}),
    ("train", "DeleteObject", "store/data/phantom-abc/manifest.json", {}),
    ("train", "DeleteObject", f"store/files/{KEY}/a.safetensors", {}),
    ("train", "DeleteObjectVersion", f"{CHECKPOINT}/step-000050/manifest.json", {}),
    ("launcher", "DeleteObjectVersion", f"{STEP}/manifest.json", {}),
    ("launcher", "DeleteObject", "store/data/phantom-abc/manifest.json", {}),
    ("launcher", "PutObject", f"{CHECKPOINT}/step-000050/manifest.json", ONCE),
    ("launcher", "PutObject", "dvc/files/md5/ab/cd", {}),
    ("curator", "GetObject", f"store/files/{KEY}/a.safetensors", {}),
    ("curator", "GetObject", f"{CHECKPOINT}/step-000050/weights.safetensors", {}),
    ("curator", "ListBucket", "", {"s3:prefix": "store/exports/"}),
    ("curator", "DeleteObject", "dvc/files/md5/ab/cd", {}),
    ("mlflow", "GetObject", f"store/files/{KEY}/a.safetensors", {}),
    ("auditor", "PutObject", "store/x", {}),
    *[(role, "PutBucketPolicy", "", {}) for role in ROLES],
    *[(role, "PutLifecycleConfiguration", "", {}) for role in ROLES],
]


@pytest.mark.parametrize(("role", "action", "name", "context"), MAY)
def test_a_role_may_do_its_work(role, action, name, context):
    assert verdict(role, action, name, **context)


@pytest.mark.parametrize(("role", "action", "name", "context"), MAY_NOT)
def test_a_role_may_not_do_anothers(role, action, name, context):
    assert not verdict(role, action, name, **context)


WRITTEN_ONCE = [case for case in MAY if case[3] == ONCE and ".probe" not in case[2]]


@pytest.mark.parametrize(("role", "action", "name", "context"), WRITTEN_ONCE)
def test_a_manifest_or_claim_is_only_written_where_none_is(role, action, name, context):
    assert not verdict(role, action, name)


@pytest.mark.parametrize(("role", "action", "name", "context"), MAY)
def test_nothing_passes_in_the_clear(role, action, name, context):
    assert not verdict(role, action, name, **context, **{"aws:SecureTransport": "false"})


@pytest.mark.parametrize("name", [*ROLES, "bucket"])
def test_a_policy_is_well_formed_and_allows_no_action_by_a_wildcard(name):
    assert {path.stem for path in FOLDER.glob("*.json")} == {*ROLES, "bucket"}
    told = json.loads((FOLDER / f"{name}.json").read_text())
    assert told["Version"] == "2012-10-17"
    assert len({one["Sid"] for one in told["Statement"]}) == len(told["Statement"])
    for one in told["Statement"]:
        assert set(one) <= {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
        assert re.fullmatch(r"[A-Za-z0-9]+", one["Sid"])
        assert all(resource.startswith("arn:aws:s3:::biovlm") for resource in listed(one["Resource"]))
        assert ("Principal" in one) == (name == "bucket")
        assert one["Effect"] == "Deny" or not any("*" in action for action in listed(one["Action"]))
