"""Controls of lineage asked backwards: what counts as learned, the index that is believed, and what a withdrawal stops."""

from __future__ import annotations

from benchmarks._controls_crash import Mutation

IMPACT = "tests/components/test_impact.py::test_"
WITHDRAWALS = "tests/components/test_withdrawals.py::test_"
PLACE = "components/platform/impact/"
CONTROLS: tuple[Mutation, ...] = (
    Mutation(
        "an index with a changed byte is not believed",
        PLACE + "index.py",
        "    if not whole:",
        "    if False:",
        IMPACT + "an_index_with_a_changed_byte_is_not_believed_and_is_made_anew",
    ),
    Mutation(
        "an index is not believed with another key",
        PLACE + "index.py",
        '"key": _check(_key(folder))}',
        '"key": ""}',
        IMPACT + "an_index_is_not_believed_with_another_key_and_holds_no_id_that_could_be_read_or_tried",
    ),
    Mutation(
        "an id in the index cannot be tried without its key",
        PLACE + "index.py",
        "digest_size=8, key=self._key)",
        "digest_size=8)",
        IMPACT + "an_index_is_not_believed_with_another_key_and_holds_no_id_that_could_be_read_or_tried",
    ),
    Mutation(
        "what an audit left out is not told as learned",
        PLACE + "spread.py",
        "return things & ~excluded.get(use.exclusion, 0)",
        "return things",
        IMPACT + "what_an_audit_left_out_and_a_kind_that_no_stage_took_are_not_told_as_learned",
    ),
    Mutation(
        "a kind that no stage took is not told as learned",
        PLACE + "spread.py",
        "things |= those if use.kinds >> kind & 1 else 0",
        "things |= those",
        IMPACT + "what_an_audit_left_out_and_a_kind_that_no_stage_took_are_not_told_as_learned",
    ),
    Mutation(
        "what was only asked is not told as learned",
        PLACE + "gather.py",
        "ASKED_KINDS, False, exclude)",
        "ASKED_KINDS, True, exclude)",
        IMPACT + "a_question_names_every_version_that_learned_and_apart_those_only_asked",
    ),
    Mutation(
        "what was made from an export learned what the export learned",
        PLACE + "gather.py",
        "self._index.add_edge(artifact, self._placed(parent))",
        "pass",
        IMPACT + "a_question_names_every_version_that_learned_and_apart_those_only_asked",
    ),
    Mutation(
        "a base model learned from the data set that it was trained on",
        PLACE + "gather.py",
        "self._index.add_use(artifact, set_id, BASE_SPLIT, (), True, ())",
        "pass",
        IMPACT + "a_question_names_every_version_that_learned_and_apart_those_only_asked",
    ),
    Mutation(
        "versions of which nothing is known make an answer incomplete",
        PLACE + "answer.py",
        'why = flaw or unknown.get(artifact, "")',
        'why = ""',
        IMPACT + "versions_that_biovlm_did_not_make_or_whose_store_is_gone_make_the_answer_incomplete",
    ),
    Mutation(
        "an incomplete answer ends with 66",
        "pipelines/cli_impact.py",
        "    if answer.unknown:",
        "    if False:",
        IMPACT + "an_incomplete_answer_is_printed_and_ends_with_66",
    ),
    Mutation(
        "the answer repeats no id that was asked for",
        "pipelines/cli_impact.py",
        '[{"subject": str(item["subject"]), "line": item["line"]} for item in part.get("nowhere", ())]',
        'part.get("nowhere", ())',
        IMPACT + "the_command_answers_with_versions_and_counts_and_no_id_of_a_person",
    ),
    Mutation(
        "what was made from something withdrawn is not promoted",
        PLACE + "marks.py",
        "        yield from found.parents.items()",
        "        pass",
        WITHDRAWALS + "a_withdrawal_marks_what_learned_and_neither_data_nor_later_versions_pass_any_more",
    ),
    Mutation(
        "the proof before a promotion or a rollback asks for marks",
        "components/platform/ledger/proof.py",
        "    marks.refuse_version(store, receipt)",
        "    pass",
        WITHDRAWALS + "a_withdrawal_marks_what_learned_and_neither_data_nor_later_versions_pass_any_more",
    ),
    Mutation(
        "a withdrawal is an entry of the ledger",
        PLACE + "withdrawals.py",
        "            acts.withdraw(book, number, notice.by, notice.reason, {LIST: notice.list_digest})\n",
        "",
        WITHDRAWALS + "a_withdrawal_marks_what_learned_and_neither_data_nor_later_versions_pass_any_more",
    ),
    Mutation(
        "a withdrawn version carries the mark in the registry",
        PLACE + "withdrawals.py",
        "if notice.text not in before.split(",
        "if before and notice.text not in before.split(",
        WITHDRAWALS + "a_withdrawal_marks_what_learned_and_neither_data_nor_later_versions_pass_any_more",
    ),
    Mutation(
        "a dry run of a withdrawal marks nothing",
        "pipelines/cli_impact.py",
        "    if not dry_run:",
        "    if True:",
        WITHDRAWALS + "the_command_says_what_follows_from_a_withdrawal_and_marks_only_without_dry_run",
    ),
    Mutation(
        "what was withdrawn is refused when it comes again",
        PLACE + "listed.py",
        "        if held:",
        "        if False:",
        WITHDRAWALS + "what_was_withdrawn_is_refused_when_it_comes_again_in_a_new_set",
    ),
    Mutation(
        "a withdrawn data set is refused before a run uses it",
        "components/data/step.py",
        "    marks.refuse(open_store(settings), found)",
        "    pass",
        "tests/pipelines/test_plan.py::test_a_withdrawn_data_set_is_refused_also_where_its_result_is_stored",
    ),
    Mutation(
        "a stored data artifact is looked at again when a list came since",
        "components/data/step.py",
        '    if not set(listed.known(store)) <= set(stored.facts.get("withdrawals", ())):',
        "    if False:",
        "tests/pipelines/test_plan.py::test_a_withdrawn_data_set_is_refused_also_where_its_result_is_stored",
    ),
    Mutation(
        "energy that is known in part is not told as a sum",
        "components/platform/cost.py",
        "known = self.energy_joules is not None and other.energy_joules is not None",
        "known = True",
        "tests/components/test_cost.py::test_a_machine_that_does_not_tell_has_no_energy_and_not_none_at_all",
    ),
    Mutation(
        "waiting for a cluster is not paid as GPU time",
        "components/platform/cost.py",
        "gpu_seconds=gpus * worked,",
        "gpu_seconds=gpus * self._seconds,",
        "tests/components/test_cost.py::test_waiting_is_no_work_and_gpus_are_paid_while_they_are_held",
    ),
)
