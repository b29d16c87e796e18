"""What may be written into the ledger: pure, from entries to an act or a letter."""

from __future__ import annotations

import pytest

from components.platform.ledger import approvals, rules
from components.platform.ledger.approvals import Person
from components.platform.ledger.chain import state
from components.platform.ledger.entry import LIST, Kind
from components.platform.ledger.ledger import Ledger
from components.platform.ledger.rules import Candidate
from model.errors import MissingInputError, RefusedError
from model.manifest import digest_of
from tests.components.promotions import make_person

NOON, HOUR = 1_790_000_000.0, 3600.0


class Story:
    """Acts one after the other, and where they lead."""

    def __init__(self):
        self.entries, self.now = (), NOON

    @property
    def state(self):
        return state(self.entries)

    def write(self, draft):
        if draft is not None:
            book = Ledger(None, "mini", lambda: self.now)
            self.entries += (book._entry(self.entries, draft, digest_of(len(self.entries)), None),)
        return draft

    def offer(self, version, needs=0, against=None, since=None, by="run 1"):
        now = self.state
        against, since = now.champion if against is None else against, now.since if since is None else since
        return self.write(rules.candidate(now, Candidate(version, against, since, {}, needs, 24), by))

    def rollback(self, version):
        return self.write(rules.rollback(self.state, version, "me", "worse at night", {}))

    def withdraw(self, version):
        return self.write(rules.withdrawal(self.state, version, "me", "consent was withdrawn", {}))


@pytest.fixture
def story():
    return Story()


def test_versions_that_pass_the_gate_follow_each_other(story):
    for version in "123":
        assert story.offer(version).kind is Kind.PROMOTION
    assert story.state.aliases == {"champion": "3", "previous": "2"}
    assert story.offer("3") is None  # it is champion
    assert [entry.moves for entry in story.entries][1] == {"champion": "2", "previous": "1"}


def test_a_champion_that_changed_since_is_a_refusal_also_if_it_changed_back(story):
    story.offer("1")
    story.offer("2")
    with pytest.raises(RefusedError, match="was version 1 when this run began, and is version 2 now"):
        story.offer("3", against="1", since=1)
    story.rollback("1")
    with pytest.raises(RefusedError, match="was version 1 when this run began, and is version 1 again now"):
        story.offer("3", against="1", since=1)
    with pytest.raises(RefusedError, match="was version none when"):
        story.offer("3", against="", since=0)


def test_a_rollback_goes_to_a_former_champion_and_previous_is_where_the_next_one_would_go(story):
    for version in "1234":
        story.offer(version)
    story.rollback("3")
    assert story.state.aliases == {"champion": "3", "previous": "2"}
    assert story.rollback("3") is None
    with pytest.raises(RefusedError, match="version 7 was never champion"):
        story.rollback("7")
    story.rollback("1")
    assert story.state.aliases == {"champion": "1", "previous": "2"}


def test_a_version_that_was_rolled_back_becomes_champion_only_by_a_person(story):
    story.offer("1")
    story.offer("2")
    story.rollback("1")
    nomination = story.offer("2")
    assert nomination.kind is Kind.NOMINATION
    assert "a person must promote it" in nomination.reason
    assert story.state.aliases == {"champion": "1", "challenger": "2"}
    story.write(rules.promotion(story.state, "2", Person("ada", proven=False), NOON, {}))
    assert story.state.aliases == {"champion": "2", "previous": "1"}
    assert story.state.rolled_back == {}


def test_a_withdrawn_version_is_neither_promoted_nor_gone_back_to(story):
    for version in "123":
        story.offer(version)
    story.withdraw("2")
    assert story.state.aliases == {"champion": "3", "previous": "1"}
    assert story.withdraw("2") is None
    for act in (story.offer, story.rollback):
        with pytest.raises(RefusedError, match="version 2 is withdrawn: consent was withdrawn"):
            act("2")
    story.offer("4", needs=1)
    story.withdraw("4")
    assert "challenger" not in story.state.aliases
    with pytest.raises(RefusedError, match="version 4 is withdrawn"):
        rules.promotion(story.state, "4", Person("ada", proven=True), NOON, {})


def test_a_withdrawal_that_is_taken_back_leaves_what_another_list_withdrew_and_promotes_nothing(story):
    def take_back(version, name):
        return story.write(rules.reinstatement(story.state, version, "me", "the wrong patient", {LIST: name}))

    for version in "123":
        story.offer(version)
    for name in ("a", "b"):
        story.write(rules.withdrawal(story.state, "2", "me", f"list {name}", {LIST: name}))
    assert story.state.aliases == {"champion": "3", "previous": "1"}
    assert take_back("2", "c") is None
    assert take_back("2", "a").moves == {}
    with pytest.raises(RefusedError, match="version 2 is withdrawn: list b"):
        story.rollback("2")
    assert take_back("2", "b").moves == {"previous": "2"}
    assert story.state.aliases == {"champion": "3", "previous": "2"}
    assert take_back("2", "b") is None
    assert story.rollback("2").moves["champion"] == "2"


class Committee:
    """Persons with keys, and a nomination by run 1."""

    def __init__(self, story, folder):
        self.story, self.files = story, {name: make_person(folder, name) for name in ("ada", "bob", "eve")}
        self.keys = approvals.keys(folder / "approvers")

    def approve(self, name, version="1"):
        def sign(content):
            return approvals.sign(self.files[name], content)

        return self.story.write(
            rules.approval(self.story.state, version, Person(name, proven=True), sign, "mini", self.story.now)
        )

    def promote(self, name, version="1", proven=True):
        person = Person(name, proven=proven)
        return self.story.write(rules.promotion(self.story.state, version, person, self.story.now, self.keys))


@pytest.fixture
def committee(story, tmp_path):
    return Committee(story, tmp_path)


def test_two_approvals_by_others_make_a_nominated_version_champion(story, committee):
    assert story.offer("1", needs=2).kind is Kind.NOMINATION
    with pytest.raises(RefusedError, match="needs 2 approvals, and 0 count"):
        committee.promote("eve")
    committee.approve("ada")
    assert committee.approve("ada") is None  # twice the same is once
    with pytest.raises(RefusedError, match="needs 2 approvals, and 1 count"):
        committee.promote("eve")
    committee.approve("bob")
    done = committee.promote("eve")
    assert {"nomination", "approval by ada", "approval by bob"} <= done.evidence.keys()
    assert story.state.aliases == {"champion": "1"}


def test_nobody_approves_what_they_nominate_or_promote(story, committee):
    story.offer("1", needs=1, by="ada")
    with pytest.raises(RefusedError, match="ada nominated version 1 and cannot approve it"):
        committee.approve("ada")
    committee.approve("bob")
    with pytest.raises(RefusedError, match="bob's approval is one's own"):
        committee.promote("bob")
    assert committee.promote("eve")


def test_an_approval_expires_and_can_be_given_anew(story, committee):
    story.offer("1", needs=1)
    committee.approve("ada")
    story.now += 24 * HOUR + 1
    with pytest.raises(RefusedError, match="ada's approval expired: it is of .*, holds 24 h"):
        committee.promote("eve")
    assert committee.approve("ada")
    assert committee.promote("eve")


def test_an_approval_holds_for_one_nomination_only(story, committee):
    story.offer("1", needs=1)
    committee.approve("ada")
    story.now += 1
    story.offer("1", needs=1)
    with pytest.raises(RefusedError, match="and 0 count\nhint"):
        committee.promote("eve")


def test_an_approval_whose_signature_does_not_fit_does_not_count(story, committee):
    story.offer("1", needs=1)
    committee.approve("ada")
    forged = story.entries[-1].model_copy(update={"by": "bob"})
    story.entries = (*story.entries[:-1], forged)
    with pytest.raises(RefusedError, match="bob's signature does not fit"):
        committee.promote("eve")
    story.entries = (*story.entries[:-1], forged.model_copy(update={"by": "ada", "signature": "no base64!"}))
    with pytest.raises(RefusedError, match="ada's signature does not fit"):
        committee.promote("eve")
    del committee.keys["ada"]
    with pytest.raises(RefusedError, match="ada's key is not among the approvers any more"):
        committee.promote("eve")


def test_nobody_without_a_key_approves_or_promotes_what_needs_approval(story, committee):
    story.offer("1", needs=1)
    with pytest.raises(RefusedError, match="nobody knows who approves"):
        rules.approval(story.state, "1", Person("ada", proven=False), str, "mini", NOON)
    committee.approve("ada")
    with pytest.raises(RefusedError, match="nobody knows who promotes"):
        committee.promote("eve", proven=False)


def test_a_nomination_ends_with_the_reign_that_it_was_measured_with(story, committee):
    story.offer("1")
    story.offer("2", needs=1)
    committee.approve("ada", "2")
    story.offer("3")
    with pytest.raises(RefusedError, match="measured with the champion of entry 1; the champion is version 3 of entry 4"):
        committee.promote("eve", "2")
    with pytest.raises(RefusedError, match="version 9 is not nominated"):
        committee.promote("eve", "9")


def test_who_acts_is_whose_key_it_is(tmp_path):
    own = make_person(tmp_path, "ada")
    assert approvals.actor(own, tmp_path / "approvers", "bob") == Person("ada", proven=True)
    assert approvals.actor(None, None, "bob") == Person("bob", proven=False)
    (tmp_path / "approvers" / "ada.pem").unlink()
    with pytest.raises(RefusedError, match="belongs to nobody"):
        approvals.actor(own, tmp_path / "approvers")
    own.chmod(0o644)
    with pytest.raises(RefusedError, match="may be read by others"):
        approvals.actor(own, tmp_path / "approvers")
    with pytest.raises(MissingInputError, match="there is no key"):
        approvals.actor(tmp_path / "none.key", tmp_path / "approvers")
    own.write_text("not a key")
    own.chmod(0o600)
    with pytest.raises(RefusedError, match="no Ed25519 key"):
        approvals.sign(own, b"")
