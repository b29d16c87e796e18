"""Controls of the ledger: one entry an act, an unbroken chain, who may do what, aliases that follow, notices told once."""

from __future__ import annotations

from benchmarks._controls_crash import Mutation

CHAIN, RULES, REGISTRY, OUTBOX = (
    f"tests/components/test_{name}.py::" for name in ("ledger", "ledger_rules", "ledger_registry", "outbox")
)
FOLDER = "components/platform/ledger/"
CONTROLS: tuple[Mutation, ...] = (
    Mutation(
        "an entry is linked, never put over another",
        "components/platform/places.py",
        "os.link(aside, path)",
        "os.replace(aside, path)",
        CHAIN + "test_of_many_that_write_at_once_each_gets_its_own_number_and_one_act_is_one_entry[folder]",
    ),
    Mutation(
        "an act of a known key is done",
        FOLDER + "ledger.py",
        "if done is not None:",
        "if False:",
        CHAIN + "test_an_act_is_written_once_however_often_it_is_tried[folder]",
    ),
    Mutation(
        "a stale attempt is fenced",
        FOLDER + "ledger.py",
        "if newest > claim.attempt:",
        "if False:",
        CHAIN + "test_a_stale_attempt_writes_nothing_and_hears_of_what_the_newer_one_wrote[folder]",
    ),
    Mutation(
        "an entry has one form, byte by byte",
        FOLDER + "entry.py",
        "if render(entry) != content:",
        "if False:",
        CHAIN + "test_a_byte_changed_anywhere_is_found_and_its_entry_named",
    ),
    Mutation(
        "an entry follows the one before",
        FOLDER + "chain.py",
        "if before and entry.previous != before:",
        "if False:",
        CHAIN + "test_a_broken_chain_is_a_letter[fork]",
    ),
    Mutation(
        "the registry remembers the end of the ledger",
        FOLDER + "chain.py",
        "if int(number) > len(entries):",
        "if False:",
        CHAIN + "test_a_ledger_that_lost_its_end_or_was_written_anew_is_found_by_what_the_registry_remembers",
    ),
    Mutation(
        "a listing that lacks an entry is asked again",
        FOLDER + "ledger.py",
        "sorted({*names, *between} - self._seen.keys())",
        "sorted({*names} - self._seen.keys())",
        CHAIN + "test_a_listing_that_lacks_an_entry_in_the_middle_is_no_gap",
    ),
    Mutation(
        "a promotion is measured with the present reign",
        FOLDER + "rules.py",
        "if (state.champion, state.since) == (against, since):",
        "if state.champion == against:",
        RULES + "test_a_champion_that_changed_since_is_a_refusal_also_if_it_changed_back",
    ),
    Mutation(
        "a withdrawn version is refused",
        FOLDER + "rules.py",
        "if version in state.withdrawn:\n        raise",
        "if False:\n        raise",
        RULES + "test_a_withdrawn_version_is_neither_promoted_nor_gone_back_to",
    ),
    Mutation(
        "a withdrawal that is taken back leaves those of other lists",
        FOLDER + "chain.py",
        "            held.pop(of, None)",
        "            held.clear()",
        RULES + "test_a_withdrawal_that_is_taken_back_leaves_what_another_list_withdrew_and_promotes_nothing",
    ),
    Mutation(
        "what was rolled back needs a person",
        FOLDER + "rules.py",
        "if not found.approvals and fell is None:",
        "if not found.approvals:",
        RULES + "test_a_version_that_was_rolled_back_becomes_champion_only_by_a_person",
    ),
    Mutation(
        "nobody approves their own promotion",
        FOLDER + "approvals.py",
        "if approval.by in (by, nomination.by):",
        "if False:",
        RULES + "test_nobody_approves_what_they_nominate_or_promote",
    ),
    Mutation(
        "an approval expires",
        FOLDER + "approvals.py",
        "if expired(approval, nomination, now):",
        "if False:",
        RULES + "test_an_approval_expires_and_can_be_given_anew",
    ),
    Mutation(
        "an approval is for one nomination",
        FOLDER + "approvals.py",
        'if approval.evidence.get("nomination") != nomination.digest:',
        "if approval.version != nomination.version:",
        RULES + "test_an_approval_holds_for_one_nomination_only",
    ),
    Mutation(
        "an approval's signature is verified",
        FOLDER + "approvals.py",
        "    except (InvalidSignature, binascii.Error):\n        return False",
        "    except (InvalidSignature, binascii.Error):\n        return True",
        RULES + "test_an_approval_whose_signature_does_not_fit_does_not_count",
    ),
    Mutation(
        "a key that others may read is refused",
        FOLDER + "approvals.py",
        "if path.stat().st_mode & 0o077:",
        "if False:",
        RULES + "test_who_acts_is_whose_key_it_is",
    ),
    Mutation(
        "aliases are put back where the ledger has them",
        FOLDER + "registry.py",
        "moving = drifted(state(entries), _ours(facts.aliases))",
        "moving: list[Drift] = []",
        REGISTRY + "test_a_promotion_killed_after_its_entry_is_finished_by_the_next[before the aliases]",
    ),
    Mutation(
        "drift by hand is told in the ledger",
        FOLDER + "registry.py",
        "    if not strange:\n        return None",
        "    if strange or not strange:\n        return None",
        REGISTRY + "test_an_alias_moved_by_hand_is_nobodys_champion_and_is_put_back_and_told",
    ),
    Mutation(
        "a deleted run is not promoted",
        FOLDER + "acts.py",
        "if not book.tracking.run_is_there(book.name, version):",
        "if False:",
        REGISTRY + "test_a_version_or_run_that_is_gone_is_a_letter",
    ),
    Mutation(
        "a rollback proves signatures",
        FOLDER + "proof.py",
        "        signing.verify(store, settings, export, found.digest)",
        "        pass",
        REGISTRY + "test_a_rollback_to_what_was_changed_is_refused_and_changes_nothing[export]",
    ),
    Mutation(
        "an event is posted by one process",
        FOLDER + "outbox.py",
        "return number if ledger.place.create(name, content) else 0",
        "return number",
        OUTBOX + "test_many_that_deliver_at_once_post_each_event_once",
    ),
    Mutation(
        "a killed sender is replaced",
        FOLDER + "outbox.py",
        "< TRY_SECONDS:",
        "< 1e9:",
        OUTBOX + "test_a_sender_killed_before_it_posts_is_replaced_when_its_time_is_over",
    ),
    Mutation(
        "half a line in the file of events goes",
        FOLDER + "outbox.py",
        "stream.truncate(len(whole))",
        "pass",
        OUTBOX + "test_a_line_that_a_killed_writer_left_half_is_written_anew",
    ),
)
