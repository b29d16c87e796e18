"""Controls of the gate and of signatures."""

from __future__ import annotations

from benchmarks._controls_crash import Mutation

DECISION, SIGNING, GATE, SERVER = (
    f"tests/{name}.py::"
    for name in ("model/evaluation/test_decision", "components/test_signing", "components/test_gate", "components/test_server")
)
VERDICT, OWN, COMPARE, DECIDE, SIGN, KEYS, FOLDERS = (
    "model/evaluation/verdict.py",
    "model/evaluation/own_figures.py",
    "model/evaluation/comparison.py",
    "model/evaluation/decision.py",
    "components/platform/signing.py",
    "components/platform/keys.py",
    "model/folders.py",
)
ROWS = (
    (
        "a number of the gate must be finite",
        (VERDICT, " or not math.isfinite(value)", ""),
        DECISION + "test_a_number_that_is_no_share_fails_by_name[nan]",
    ),
    (
        "a number of the gate must be a share",
        (VERDICT, "if not lowest <= value <= 1:", "if False:"),
        DECISION + "test_ninety_is_taken_for_percent_and_refused",
    ),
    (
        "a refusal never promotes",
        (VERDICT, "outcomes & {Outcome.REFUSAL, Outcome.FAILED}", "outcomes & {Outcome.FAILED}"),
        DECISION + "test_a_champion_that_answered_something_else_is_a_refusal[changes0]",
    ),
    (
        "a model that does not look is held",
        (OWN, "passed_or(Outcome.FAILED, low > limit)", "Outcome.PASSED"),
        DECISION + "test_a_model_that_does_not_look_is_held_however_good_it_is",
    ),
    (
        "leakage is a gate",
        (OWN, "share <= limit + ROUNDING", "True"),
        DECISION + "test_a_benchmark_about_training_images_is_held_unless_the_gate_allows_it",
    ),
    (
        "figures are recomputed from the items",
        (OWN, "    return abs(sum(values) / len(values) - figure.value) < SAME", "    return True"),
        DECISION + "test_a_figure_that_its_items_do_not_give_is_held",
    ),
    (
        "the whole interval is within the margin",
        (COMPARE, "    return Outcome.UNDECIDED if within", "    return Outcome.PASSED if within"),
        DECISION + "test_a_loss_that_the_interval_does_not_exclude_is_not_enough_data",
    ),
    (
        "no modality loses more than its margin",
        (COMPARE, "good = found.value >= limit - ROUNDING", "good = True"),
        DECISION + "test_no_modality_may_lose_more_than_its_margin_though_the_total_gains",
    ),
    (
        "both answered the same items",
        (COMPARE, 'for field in ("version", "items_digest")]', 'for field in ("version",)]'),
        DECISION + "test_a_champion_that_answered_something_else_is_a_refusal[changes1]",
    ),
    (
        "both answered the same version of the benchmark",
        (COMPARE, 'for field in ("version", "items_digest")]', 'for field in ("items_digest",)]'),
        GATE + "test_a_report_of_another_version_of_the_benchmark_is_refused",
    ),
    (
        "what any set taught counts as seen",
        ("components/evaluate/asking.py", 'training_images=inputs.learned_images(Path(job["subjects"]["data"])),', ""),
        "tests/components/test_evaluate.py::test_an_image_that_any_set_taught_counts_as_seen_not_those_of_the_asked_set_alone",
    ),
    (
        "a changed gate needs approval",
        ("model/evaluation/gates.py", "    if own == champions_gate:", "    if True:"),
        DECISION + "test_a_gate_that_was_changed_needs_a_place_on_the_approved_list",
    ),
    (
        "preflight refuses a gate that nobody approved",
        (
            "components/preflight/step.py",
            "        approved.refuse_gate(settings, checked.registered_model, checked.promotion, found)\n",
            "        _ = approved\n",
        ),
        GATE + "test_a_gate_that_nobody_approved_is_refused_before_anything_is_trained",
    ),
    (
        "preflight refuses a base model whose licence forbids the purpose",
        ("components/preflight/step.py", "        _licences(checked, log)\n", ""),
        "tests/components/test_preflight.py::test_a_licence_that_forbids_the_purpose_is_told_before_any_gpu",
    ),
    (
        "what is served is what was signed",
        ("components/register/server.py", "    if wrong:", "    if False:"),
        SERVER + "test_what_is_not_what_was_signed_is_refused_and_nothing_of_it_runs[code]",
    ),
    (
        "Python leaves nothing beside what was signed",
        ("components/register/served.py", "leave_no_bytecode(__cached__)\n", ""),
        SERVER + "test_mlflows_reading_of_the_code_leaves_no_bytecode_beside_it",
    ),
    (
        "a version is proved before it is served",
        ("components/register/server.py", "    proof.of_version(book, found.version)\n", "    _ = proof\n"),
        SERVER + "test_a_withdrawn_version_is_not_served",
    ),
    (
        "no request comes back from MLflow's scoring server",
        ("components/register/serving.py", "        quiet.install()\n", "        _ = quiet\n"),
        "tests/components/test_serving.py::test_in_one_process_too_a_refusal_does_not_quote_the_question",
    ),
    (
        "an approval ends",
        ("components/platform/approved.py", " and (one.until is None or day <= one.until)", ""),
        GATE + "test_the_list_of_the_project_can_be_read_and_approvals_begin_and_end",
    ),
    (
        "a licence must allow the purpose",
        (DECIDE, "    if grounds.forbidden:", "    if False:"),
        DECISION + "test_a_licence_that_forbids_the_purpose_is_a_refusal_and_none_at_all_too",
    ),
    (
        "the benchmark is the frozen one",
        (DECIDE, "good = result.items_digest == promotion.frozen_items", "good = True"),
        DECISION + "test_a_report_of_other_items_than_the_frozen_ones_is_a_refusal",
    ),
    (
        "the gate verifies the signatures of the reports",
        (
            "components/promote/gate.py",
            "    signing.verify(store, settings, store.uri(report.folder), report.digest)\n",
            "    _ = settings\n",
        ),
        GATE + "test_the_champions_report_is_verified_too",
    ),
    (
        "only assistants that biovlm makes are registered",
        ("components/register/step.py", "        check_assistant(folder)\n", ""),
        GATE + "test_what_biovlm_does_not_make_is_not_registered",
    ),
    (
        "who signed must be trusted",
        (SIGN, "    if hint not in trusted:", "    if False:"),
        SIGNING + "test_a_bad_signature_is_refused_with_its_own_reason[another key]",
    ),
    (
        "a statement may leave no file out",
        (SIGN, '        raise ValueError("the statement leaves files out")', "        return None"),
        SIGNING + "test_a_statement_that_leaves_files_out_is_refused",
    ),
    (
        "the manifest of a signature is compared",
        (SIGN, '    if (folder / FILE_NAME).read_text(encoding="utf-8") != manifest.as_text(expected):', "    if False:"),
        SIGNING + "test_one_changed_byte_anywhere_is_refused",
    ),
    (
        "the manifest of a subject is signed",
        (SIGN, "return _listed(found) | {FILE_NAME: manifest.sha256_file(folder / FILE_NAME)}", "return _listed(found)"),
        SIGNING + "test_a_manifest_that_was_changed_alone_is_refused",
    ),
    (
        "our own walk sees links",
        (FOLDERS, '        return "a symbolic link"', '        return ""'),
        SIGNING + "test_what_a_signature_does_not_see_is_refused[a link]",
    ),
    (
        "our own walk sees dot files",
        (FOLDERS, '    if entry.name.startswith("."):', "    if False:"),
        SIGNING + "test_what_a_signature_does_not_see_is_refused[.git]",
    ),
    (
        "our own walk sees hard links",
        (FOLDERS, "if status.st_nlink > 1 else", "if False else"),
        SIGNING + "test_what_a_signature_does_not_see_is_refused[a hard link]",
    ),
    (
        "a pickle is seen by its content",
        (FOLDERS, "        if found or zipfile.is_zipfile(path):", "        if False:"),
        SIGNING + "test_a_pickle_by_another_name_is_not_signed[tokenizer.json-\\x80\\x04\\x95]",
    ),
    (
        "a key that others may read does not sign",
        (KEYS, "    if stat.S_IMODE(status.st_mode) & 0o077:", "    if False:"),
        SIGNING + "test_a_key_that_others_may_read_is_refused",
    ),
    (
        "signing is off by its word alone",
        ("components/platform/settings.py", '    if text not in ("on", "off"):', "    if False:"),
        SIGNING + "test_off_only_by_its_word_and_what_was_made_unsigned_is_refused_later",
    ),
)
CONTROLS: tuple[Mutation, ...] = tuple(Mutation(control, *change, test) for control, change, test in ROWS)
