"""The registry follows the ledger: a real MLflow, real steps, processes that are killed, and hands that move an alias."""

from __future__ import annotations

import os
import signal

import pytest

from benchmarks import promotions
from benchmarks.promotions import fault_of
from components.platform import champion, versions
from components.platform.ledger import acts, proof
from components.platform.ledger import registry as following
from components.platform.ledger.approvals import Person
from components.platform.ledger.entry import Kind
from components.platform.ledger.registry import Book
from components.platform.ledger.rules import Candidate
from components.platform.settings import Settings
from components.platform.tracking import Tracking
from model.errors import MissingInputError, RefusedError, UsageError
from model.manifest import digest_of
from pipelines import cli
from tests import postgres
from tests.components.promotions import GATE, make_person
from tests.forks import forked
from tests.races import Racers


class Clock:
    def __init__(self):
        self.now = 1_790_000_000.0

    def __call__(self):
        return self.now


def book(settings, clock=None):
    return Book(settings, "mini", clock or Clock())


def kinds(settings):
    return [entry.kind.value for entry in book(settings).entries()]


class Plain:
    """Versions with nothing behind them: for what happens between ledger and registry."""

    def __init__(self, settings):
        self.settings, self.client = settings, Tracking(settings).client
        self.client.create_registered_model("mini")

    def version(self, **more):
        return str(self.client.create_model_version("mini", source="exports/none", **more).version)

    def offer(self, version):
        now = following.standing(self.settings, "mini")
        candidate = Candidate(version, now.state.champion, now.since, {})
        return acts.offer(book(self.settings), candidate, "run 1", digest_of([version, now.since]))

    def promoted(self, versions):
        for _ in range(versions):
            self.offer(self.version())

    def rollback(self, to):
        return acts.rollback(book(self.settings), to, "ada", "worse at night", lambda _: {})

    def by_hand(self, alias, version):
        if version:
            self.client.set_registered_model_alias("mini", alias, version)
        else:
            self.client.delete_registered_model_alias("mini", alias)

    def aliases(self):
        return {str(alias): str(version) for alias, version in self.client.get_registered_model("mini").aliases.items()}


@pytest.fixture
def plain(store):
    return Plain(store)


def promoted(registry, *names):
    """Candidates, each better than the one before, all promoted by the steps."""
    rival = None
    for right, name in enumerate(names, 15):
        registry.candidate(name, right)
        registry.register(name)
        assert registry.promote(name, rival=rival)["verdict"] == "promote"
        rival = name


def rollback(settings, to, reason="worse at night"):
    own = book(settings)
    return acts.rollback(own, to, "ada", reason, lambda version: proof.of_version(own, version))


def test_an_alias_moved_by_hand_is_nobodys_champion_and_is_put_back_and_told(plain, store):
    plain.promoted(2)
    plain.by_hand("champion", "1")
    plain.by_hand("previous", "")
    # Readers follow the ledger meanwhile.
    assert versions.find(store, "models:/mini@champion").version == "2"
    assert champion.present(store, "mini")[0].facts["version"] == "2"
    clock = Clock()
    clock.now = book(store).entries()[-1].seconds + following.UNDER_WAY_SECONDS + 1
    done = acts.reconcile(book(store, clock), "ada")
    assert [str(one) for one in done.drift] == [
        "champion was at version 1, and is at 2 again",
        "previous was at version none, and is at 1 again",
    ]
    assert plain.aliases() == {"champion": "2", "previous": "1"}
    assert kinds(store) == ["promotion", "promotion", "repair"]
    assert acts.reconcile(book(store, clock), "ada").drift == []
    assert kinds(store) == ["promotion", "promotion", "repair"]
    plain.by_hand("staging", "1")
    assert acts.reconcile(book(store, clock), "ada").drift == []  # an alias that is nobody's business here
    assert "staging" in plain.aliases()


@pytest.mark.lane
def test_a_reused_decision_is_reused_only_while_the_aliases_are_in_place(registry, store, happened):
    promoted(registry, "a")
    Tracking(store).client.delete_registered_model_alias("mini", "champion")
    registry.promote("a", rival="a")
    assert happened()[-1] == "finished"
    assert registry.aliases() == {"champion": "1"}
    assert kinds(store) == ["promotion"]
    assert registry.promote("a", rival="a")["verdict"] == "promote"
    assert happened()[-1] == "reused"


@pytest.mark.parametrize("where", ["before the aliases", "between two aliases", "before the notices"])
def test_a_promotion_killed_after_its_entry_is_finished_by_the_next(plain, store, where, monkeypatch, tmp_path):
    notices = tmp_path / "notices.jsonl"
    monkeypatch.setenv("BIOVLM_NOTIFY_FILE", str(notices))
    plain.settings = Settings.from_environment()
    plain.promoted(1)
    version = plain.version()

    def dies(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def promote():
        if where == "before the aliases":
            monkeypatch.setattr(Book, "project", lambda self: dies() if len(self.entries()) == 2 else None)
        elif where == "between two aliases":
            move = Tracking.move_alias
            monkeypatch.setattr(Tracking, "move_alias", lambda self, *args: (move(self, *args), dies())[0])
        else:
            monkeypatch.setattr(acts.outbox, "deliver", dies)
        plain.offer(version)
        return 0

    assert forked([promote]) == [-signal.SIGKILL]
    assert kinds(store) == ["promotion", "promotion"]
    assert versions.find(store, "models:/mini@champion").version == "2"  # readers need no alias
    done = acts.reconcile(book(plain.settings), "ada")
    assert {"before the aliases": 2, "between two aliases": 1, "before the notices": 0}[where] == len(done.drift)
    assert plain.aliases() == {"champion": "2", "previous": "1"}
    assert kinds(store) == ["promotion", "promotion"]
    assert len(notices.read_text().splitlines()) == 2


@pytest.mark.lane
def test_a_run_killed_after_the_ledgers_entry_ends_as_if_it_had_not_been(registry, store, monkeypatch):
    promoted(registry, "a")
    registry.candidate("b", 18)
    registry.register("b")

    def promote():
        monkeypatch.setattr(acts, "_finish", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        registry.promote("b", rival="a")
        return 0

    assert forked([promote]) == [-signal.SIGKILL]
    assert kinds(store) == ["promotion", "promotion"]
    # The same run again still measures with the champion that its preflight saw.
    monkeypatch.setattr(champion, "present", lambda *_, before=versions_champion(store, "1"): (before, ""))
    found = registry.promote("b", rival="a")
    assert (found["verdict"], found["champion_before"]) == ("promote", "1")
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    assert kinds(store) == ["promotion", "promotion"]


def versions_champion(settings, version):
    """What preflight saw while `version` was champion by entry 1."""
    return champion.as_reference(settings, champion.numbered_tags(settings, "mini", version), 1)


def test_a_ledger_that_begins_writes_down_what_it_finds(plain, store):
    version = plain.version()
    plain.by_hand("champion", version)
    assert versions.find(store, "models:/mini@champion").version == "1"
    now = following.standing(store, "mini")
    assert (now.state.champion, now.since) == ("1", 1)
    acts.offer(book(store), Candidate(plain.version(), "1", now.since, {}), "run 1", digest_of("2"))
    first, second = book(store).entries()
    assert (first.kind, first.moves) == (Kind.REPAIR, {"champion": "1"})
    assert second.moves == {"champion": "2", "previous": "1"}


@pytest.mark.lane
def test_a_rollback_proves_its_goal_and_needs_a_reason(registry, store, capsys):
    promoted(registry, "a", "b")
    with pytest.raises(UsageError, match="needs a reason"):
        rollback(store, "1", reason=" ")
    with pytest.raises(RefusedError, match="version 3 was never champion"):
        rollback(store, "3")
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    done = rollback(store, "1")
    assert (done.entry.kind, done.entry.reason) == (Kind.ROLLBACK, "worse at night")
    assert {"receipt", "report", "export", "licences"} <= done.entry.evidence.keys()
    assert registry.aliases() == {"champion": "1"}
    # The same candidate again: its decision is in the store, and a person took the championship from it.
    registry.promote("b", rival="a")
    assert registry.aliases() == {"champion": "1"}


@pytest.mark.parametrize(
    "harm", ["export", *(pytest.param(x, marks=pytest.mark.lane) for x in ("signature", "receipt", "licence"))]
)
def test_a_rollback_to_what_was_changed_is_refused_and_changes_nothing(registry, store, harm):
    promoted(registry, "a", "b")
    tags = Tracking(store).client.get_model_version("mini", "1").tags
    export = store.store / tags["biovlm.export"]
    if harm == "export":
        (export / "config.json").write_text("[]")
    elif harm == "signature":
        for path in (store.store / "signatures").glob("*/model.sig"):
            path.write_text(path.read_text().replace("a", "b", 1))
    elif harm == "receipt":
        other = Tracking(store).client.get_model_version("mini", "2").tags[champion.RECEIPT_KEY]
        Tracking(store).client.set_model_version_tag("mini", "1", champion.RECEIPT_KEY, other)
    else:
        for path in store.store.glob("steps/register/*/lineage*.json"):
            path.write_text(path.read_text().replace("CC0-1.0", "unknown"))
    with pytest.raises(RefusedError):
        rollback(store, "1")
    assert kinds(store) == ["promotion", "promotion"]
    assert registry.aliases() == {"champion": "2", "previous": "1"}


def test_what_is_unsigned_is_not_promoted(registry, store, happened):
    registry.candidate("a", 18)
    receipt = registry.register("a")
    (store.store / receipt.facts["export"] / "config.json").write_text("[]")
    with pytest.raises(SystemExit) as stopped:
        registry.promote("a")
    assert (stopped.value.code, registry.aliases(), kinds(store)) == (77, {}, [])


def test_a_version_or_run_that_is_gone_is_a_letter(plain, store):
    plain.promoted(1)
    run = plain.client.create_run(plain.client.get_experiment_by_name(store.experiment).experiment_id).info.run_id
    version = plain.version(run_id=run)
    plain.client.delete_run(run)
    with pytest.raises(MissingInputError, match="the run that registered version 2 of mini was deleted"):
        plain.offer(version)
    with pytest.raises(MissingInputError, match="version 9 of mini is gone from the registry"):
        plain.offer("9")
    assert kinds(store) == ["promotion"]
    plain.client.restore_run(run)
    plain.offer(version)
    plain.client.delete_model_version("mini", "2")  # the champion itself
    with pytest.raises(MissingInputError, match="version 2 of mini, which the ledger has as champion, is gone"):
        versions.find(store, "models:/mini@champion")
    with pytest.raises(MissingInputError, match="is gone from the registry"):
        acts.reconcile(book(store), "ada")
    plain.rollback("1")
    assert versions.find(store, "models:/mini@champion").version == "1"


def test_a_broken_ledger_stops_every_act_and_nothing_changes(plain, store):
    plain.promoted(2)
    (entry,) = (store.home / "ledger").rglob("00000002.json")
    whole = entry.read_bytes()
    entry.write_bytes(whole.replace(b'"champion":"2"', b'"champion":"1"'))
    for act in (
        lambda: plain.rollback("1"),
        lambda: acts.reconcile(book(store), "ada"),
        lambda: acts.withdraw(book(store), "1", "ada", "consent", {}),
        lambda: champion.present(store, "mini"),
    ):
        with pytest.raises(RefusedError, match="entry 2 of the ledger was changed"):
            act()
    entry.unlink()  # its end is gone: whole in itself
    with pytest.raises(MissingInputError, match="ends at entry 1, and the registry remembers entry 2"):
        plain.rollback("1")
    entry.write_bytes(whole)
    assert plain.aliases() == {"champion": "2", "previous": "1"}
    assert kinds(store) == ["promotion", "promotion"]


def test_persons_approve_and_promote_by_the_command(registry, store, tmp_path, monkeypatch, capsys):
    files = {name: make_person(tmp_path, name) for name in ("ada", "bob")}
    monkeypatch.setenv("BIOVLM_APPROVERS", str(tmp_path / "approvers"))

    def call(who, *arguments):
        monkeypatch.setenv("BIOVLM_ACTOR_KEY", str(files[who]))
        exit_code = cli.call(["registry", *arguments])
        return exit_code, capsys.readouterr()

    registry.candidate("a", 18)
    registry.register("a")
    assert call("ada", "promote", "models:/mini/1")[0] == 77  # not nominated
    found = registry.promote("a", gate={**GATE, "approvals": 1})
    assert (found["verdict"], registry.aliases()) == ("promote", {"challenger": "1"})
    code_, said = call("ada", "promote", "models:/mini@challenger")
    assert (code_, "needs 1 approvals, and 0 count" in said.err) == (77, True)
    assert call("bob", "approve", "models:/mini@challenger")[0] == 0
    code_, said = call("bob", "promote", "models:/mini/1")
    assert (code_, "one's own" in said.err) == (77, True)
    assert registry.aliases() == {"challenger": "1"}
    code_, said = call("ada", "promote", "models:/mini/1")
    assert (code_, said.out) == (0, "entry 3: promotion of version 1 by ada\nmini: champion 1\n")
    assert "(it was done already)" in call("ada", "promote", "models:/mini/1")[1].out
    assert call("ada", "rollback", "mini", "--to", "1", "--reason", "none")[0] == 0
    assert call("ada", "rollback", "mini", "--to", "champion", "--reason", "none")[0] == 64
    assert call("ada", "reconcile", "nobody")[0] == 66
    _, said = call("ada", "history", "mini")
    assert "nomination  1        challenger=1" in said.out
    assert "approval    1        -" in said.out
    assert "promotion   1        challenger=none,champion=1  ada" in said.out
    assert "champion" in call("ada", "list")[1].out


def test_a_withdrawn_champion_stays_until_a_rollback_and_never_comes_back(plain, store):
    plain.promoted(2)
    done = acts.withdraw(book(store), "2", "ada", "consent was withdrawn", {})
    assert done.aliases == {"champion": "2", "previous": "1"}
    plain.rollback("1")
    assert plain.aliases() == {"champion": "1"}
    with pytest.raises(RefusedError, match="version 2 is withdrawn"):
        plain.rollback("2")
    with pytest.raises(RefusedError, match="version 2 is withdrawn"):
        acts.promote(book(store), "2", Person("ada", proven=True), dict)


def test_another_registry_has_another_ledger(plain, store):
    """A model of this name that is made anew does not inherit the old one's champion."""
    plain.promoted(1)
    plain.client.delete_registered_model("mini")
    plain.client.create_registered_model("mini")
    assert book(store).entries() == ()
    assert champion.present(store, "mini")[0].is_none


def test_many_processes_promote_one_version_once_and_their_own_in_one_order(store):
    """benchmarks/promotions.py does this with 16 processes, many rounds, PostgreSQL and S3."""
    with Racers(3, store.for_children()) as racers:
        same, different = racers.same("one"), racers.different("many")
    assert (fault_of(same, 1), fault_of(different, 3)) == ("", "")


@pytest.mark.lane
@pytest.mark.parametrize("kind", ["postgres", "s3"])
def test_many_processes_promote_once_over_servers_too(kind):
    if kind == "postgres" and not postgres.is_installed():
        pytest.skip("PostgreSQL is not installed: promotions over it are not raced")
    found = promotions.measure((kind,), processes=6, rounds=2)
    assert {name: value for name, value in found.items() if name.endswith("bad_rounds") and value} == {}
    assert found[f"{kind}_different_entries"] == 12
