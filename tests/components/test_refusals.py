"""What cannot be promoted, approved, gone back to or verified ends with a letter and its code, and changes nothing: by the command."""

from __future__ import annotations

import shutil
import time

import pytest

from components.platform.ledger import acts, approvals
from components.platform.ledger.registry import Book
from components.platform.tracking import Tracking
from pipelines import cli
from tests.components.promotions import GATE, make_person

NOMINATING = {**GATE, "approvals": 1, "approval_hours": 1}


class Hospital:
    """Version 1 and 2 were champions, 3 is nominated by a run, 4 is not biovlm's; ada and bob have keys."""

    def __init__(self, registry, folder, patch):
        self.registry, self.settings, self.patch = registry, registry.settings, patch
        self.files = {name: make_person(folder, name) for name in ("ada", "bob")}
        patch.setenv("BIOVLM_APPROVERS", str(folder / "approvers"))
        rival = None
        for name, right, gate in (("a", 15, GATE), ("b", 16, GATE), ("c", 18, NOMINATING)):
            registry.candidate(name, right)
            registry.register(name)
            if gate is NOMINATING:
                self.approve_gate(folder)
            registry.promote(name, rival=rival, gate=gate)
            rival = name
        self.client = Tracking(self.settings).client
        self.client.create_model_version("mini", source=str(folder))

    def approve_gate(self, folder):
        from model.config import Promotion
        from model.evaluation.gates import gate_digest

        digest = gate_digest(Promotion.model_validate(NOMINATING))
        (folder / "gates.yaml").write_text(f"gates: [{{digest: '{digest}', by: eve, since: 2026-01-01, reason: approvals}}]")
        self.patch.setenv("BIOVLM_APPROVED_GATES", str(folder / "gates.yaml"))

    def call(self, who, *arguments):
        self.patch.setenv("BIOVLM_ACTOR_KEY", str(self.files[who]))
        return cli.call(list(arguments))

    def approved(self, who, hours_ago=0.0):
        book = Book(self.settings, "mini", lambda: time.time() - 3600 * hours_ago)
        person = approvals.actor(self.files[who], self.files[who].parent / "approvers")
        self.patch.setenv("BIOVLM_ACTOR_KEY", str(self.files[who]))
        acts.approve(Book(type(self.settings).from_environment(), "mini", book.clock), "3", person)

    def left(self):
        """All that an act could change."""
        entries = [entry.digest for entry in Book(self.settings, "mini").entries()]
        versions = {one.version: dict(one.tags) for one in self.client.search_model_versions("name = 'mini'")}
        return entries, self.registry.aliases(), versions

    def delete_run(self):
        self.client.delete_run(self.client.get_model_version("mini", "3").run_id)

    def lose_export(self):
        tags = self.client.get_model_version("mini", "1").tags
        shutil.rmtree(self.settings.store / tags["biovlm.export"])

    def withdraw(self):
        acts.withdraw(Book(self.settings, "mini"), "3", "officer", "consent was withdrawn", {})


@pytest.fixture
def hospital(registry, tmp_path, monkeypatch):
    return Hospital(registry, tmp_path, monkeypatch)


PROMOTE, BACK = ("registry", "promote", "models:/mini/3"), ("registry", "rollback", "mini", "--reason", "worse at night")
CASES = {
    "a version that biovlm did not register is verified": (
        None,
        ("lineage", "verify", "models:/mini/4"),
        66,
        "did not register it",
    ),
    "it is promoted": (None, ("registry", "promote", "models:/mini/4"), 77, "not nominated"),
    "it is gone back to": (None, (*BACK, "--to", "4"), 77, "never champion"),
    "it is served": (None, ("serve", "--model", "models:/mini/4"), 66, "did not register it"),
    "the run was deleted": (Hospital.delete_run, PROMOTE, 66, "was deleted"),
    "an artifact is gone": (Hospital.lose_export, (*BACK, "--to", "1"), 66, "export"),
    "the version is withdrawn": (Hospital.withdraw, PROMOTE, 77, "is withdrawn"),
    "nobody approved": (None, PROMOTE, 77, "needs 1 approvals, and 0 count"),
    "the approval has expired": (lambda own: own.approved("ada", hours_ago=2), PROMOTE, 77, "approval expired"),
    "the approval is one's own": (lambda own: own.approved("bob"), PROMOTE, 77, "one's own"),
}


@pytest.mark.lane
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_a_letter_with_its_code_and_nothing_changes(hospital, capsys, case):
    harm, command, code, words = CASES[case]
    if harm:
        harm(hospital)
    before = hospital.left()
    assert before[1]["challenger" if case != "the version is withdrawn" else "champion"]
    assert hospital.call("bob", *command) == code
    said = capsys.readouterr()
    assert words in said.err
    assert "hint:" in said.err
    assert hospital.left() == before
