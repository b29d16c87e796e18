"""Controls of retraining and reproduction: when nothing is trained, what counts once, and what passes as the same."""

from __future__ import annotations

from benchmarks._controls_crash import Mutation

RULES, LOOK, ANCESTRY = (f"tests/components/test_{name}.py::test_" for name in ("retraining", "look", "ancestry"))
POLICY, SCHEDULES = (f"tests/pipelines/test_{name}.py::test_" for name in ("retraining", "schedules"))
CONTROLS: tuple[Mutation, ...] = (
    Mutation(
        "the cool-down",
        "components/platform/retraining/decision.py",
        "if begun and (ready",
        "if False and begun and (ready",
        RULES + "a_training_too_soon_after_the_last_waits_for_the_cool_down",
    ),
    Mutation(
        "the budget of a run",
        "components/platform/retraining/decision.py",
        "    if cost > budget.gpu_hours:",
        "    if False:",
        RULES + "what_costs_more_than_the_budget_is_not_begun",
    ),
    Mutation(
        "the budget of thirty days",
        "components/platform/retraining/decision.py",
        "if most is not None and spent + cost > most",
        "if most is not None and False",
        RULES + "what_costs_more_than_the_budget_is_not_begun",
    ),
    Mutation(
        "a cost that nobody knows is refused",
        "components/platform/retraining/decision.py",
        "against = budget.if_unknown is UnknownCost.SKIP",
        "against = False",
        RULES + "a_cost_that_nobody_knows_is_refused_unless_the_policy_takes_the_risk",
    ),
    Mutation(
        "what cannot succeed is not tried again",
        "components/platform/retraining/decision.py",
        "elif same and same[-1].exit_code in NEVER_RETRIED:",
        "elif False:",
        RULES + "what_cannot_succeed_is_not_tried_again_until_something_changes",
    ),
    Mutation(
        "three tries without a word",
        "components/platform/retraining/decision.py",
        "elif broken is not None and len(same) >= MOST_TRIES:",
        "elif False:",
        RULES + "what_ended_three_times_without_a_word_waits_for_a_person",
    ),
    Mutation(
        "what was trained already is not trained again",
        "components/platform/retraining/decision.py",
        "if same and same[-1].exit_code == ExitCode.DONE:",
        "if False:",
        RULES + "data_that_went_back_to_what_was_trained_before_is_not_trained_again",
    ),
    Mutation(
        "a release is a clean checkout",
        "components/platform/retraining/decision.py",
        "released = bool(state.tags) and not state.dirty",
        "released = bool(state.tags)",
        RULES + "each_reason_counts_where_the_policy_says_so_and_is_told_where_not",
    ),
    Mutation(
        "a look in time",
        "components/platform/retraining/decision.py",
        "    if not due:",
        "    if False:",
        RULES + "it_is_looked_at_when_the_cron_expression_has_come_and_once",
    ),
    Mutation(
        "drift is no chance",
        "components/platform/retraining/drift.py",
        "self.index > above and self.chance < chance",
        "self.index > above",
        RULES + "a_handful_of_records_is_no_drift_although_its_index_is_large",
    ),
    Mutation(
        "one look has a number",
        "components/platform/places.py",
        "os.link(aside, path)",
        "os.replace(aside, path)",
        RULES + "of_two_looks_at_once_one_is_written",
    ),
    Mutation(
        "a history without gaps",
        "components/platform/retraining/journal.py",
        "if numbers != list(range(1, len(numbers) + 1)):",
        "if False:",
        RULES + "a_history_with_a_gap_or_a_changed_look_is_refused",
    ),
    Mutation(
        "feedback only grows",
        "components/platform/retraining/feedback.py",
        "if number == counted.lines and found.digest != counted.digest:",
        "if False:",
        RULES + "lines_are_counted_and_those_counted_before_must_still_be_there",
    ),
    Mutation(
        "a correction counts once",
        "components/platform/retraining/feedback.py",
        "if correction.id in known:",
        "if False:",
        RULES + "a_bad_line_is_named_by_its_number_and_never_quoted",
    ),
    Mutation(
        "a run that is skipped is skipped by every step",
        "components/platform/step.py",
        'or next((ref.skipped for ref in given.values() if ref.skipped), "")',
        'or ""',
        LOOK + "a_run_that_is_skipped_is_skipped_by_every_step",
    ),
    Mutation(
        "a run looks once",
        "components/data/look.py",
        "if asked.history and asked.history[-1].run_id == settings.run_id:",
        "if False:",
        LOOK + "a_look_is_kept_once_and_more_of_the_same_mix_is_no_drift",
    ),
    Mutation(
        "corrections of a test split are not learned",
        "components/data/corrections.py",
        "for mixture in wanted.uses} - asked",
        "for mixture in wanted.uses} | asked",
        POLICY + "enough_corrections_become_a_data_set_that_the_task_stage_learns_from_and_none_of_the_test_split",
    ),
    Mutation(
        "a schedule that costs too much is not applied",
        "pipelines/cli_schedule.py",
        "        estimate.refuse(recipe, budget, Settings.from_environment())",
        "        pass",
        SCHEDULES + "a_schedule_whose_runs_cost_more_than_its_budget_is_not_applied",
    ),
    Mutation(
        "other bytes on the same kind of machine are refused",
        "pipelines/reproduce.py",
        "    if not other_machine:",
        "    if False:",
        ANCESTRY + "equal_bytes_are_said_so_and_others_only_pass_on_another_kind_of_machine_and_within_the_tolerance",
    ),
    Mutation(
        "key figures agree within the tolerance",
        "pipelines/reproduce.py",
        "    if beyond:",
        "    if False:",
        ANCESTRY + "equal_bytes_are_said_so_and_others_only_pass_on_another_kind_of_machine_and_within_the_tolerance",
    ),
    Mutation(
        "a reproduction that is killed takes its run with it",
        "pipelines/reproduce.py",
        "    command = (*bound(signal.SIGTERM), sys.executable,",
        "    command = (sys.executable,",
        "tests/pipelines/test_children.py::test_a_reproduction_that_is_killed_leaves_no_run_behind",
    ),
)
