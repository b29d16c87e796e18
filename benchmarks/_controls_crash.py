"""The controls of checkpoints, stops and faults, how to take each away, and the test that must turn red then (see mutations)."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """A control, and how to take it away."""

    control: str
    file: str
    before: str
    """Stands exactly once in the file."""
    after: str
    test: str
    """The test that must fail then, as pytest names it."""


TESTS = "tests/model/training"
RESUME, LOOP, FAULTS, RANKS, JUDGE = (
    f"{TESTS}/test_{name}.py::test_" for name in ("resume", "loop", "faults", "rank_faults", "judge")
)
BUCKET, RETRIES = (f"tests/components/test_{name}.py::test_" for name in ("bucket", "retries"))
CONTROLS = (
    Mutation(
        "a checkpoint's bytes are verified before it is loaded",
        "model/training/resume.py",
        "            record = manifest.verify(folder)\n",
        "            record = manifest.read(folder)\n",
        f"{RESUME}a_bad_checkpoint_goes_to_the_quarantine_and_the_one_before_is_used[one bit flipped]",
    ),
    Mutation(
        "a checkpoint is that of its step",
        "model/training/resume.py",
        'or record.facts.get("step") != entry.step',
        "",
        f"{RESUME}a_bad_checkpoint_goes_to_the_quarantine_and_the_one_before_is_used[of another step]",
    ),
    Mutation(
        "weights and moments are finite when they are loaded",
        "model/training/resume.py",
        '                tensors.check_finite(values, f"{entry.name}/{name}")\n',
        "                pass\n",
        f"{RESUME}a_bad_checkpoint_goes_to_the_quarantine_and_the_one_before_is_used[moments not finite]",
    ),
    Mutation(
        "with only bad checkpoints nothing starts from zero",
        "model/training/resume.py",
        "        if reasons and not calm:\n",
        "        if False:\n",
        f"{RESUME}with_only_bad_checkpoints_nothing_starts_from_zero_and_nothing_is_deleted",
    ),
    Mutation(
        "what was set aside before still counts",
        "model/training/resume.py",
        "        reasons = self.place.set_aside_before()\n",
        "        reasons: list[str] = []\n",
        f"{RESUME}with_only_bad_checkpoints_nothing_starts_from_zero_and_nothing_is_deleted",
    ),
    Mutation(
        "another configuration is refused",
        "model/training/resume.py",
        "            self._check_configuration(found)\n",
        "",
        f"{RESUME}another_configuration_is_refused_field_by_field",
    ),
    Mutation(
        "the state is copied at the step's boundary",
        "model/training/resume.py",
        'tensor.detach().to("cpu", copy=True)',
        'tensor.detach().to("cpu")',
        f"{RESUME}a_checkpoint_holds_the_state_at_its_boundary_though_steps_go_on",
    ),
    Mutation(
        "at most one checkpoint is in flight",
        "model/training/resume.py",
        "        self._writer.settle()  # before the copy: memory holds one\n",
        "",
        f"{RESUME}at_most_one_checkpoint_is_in_flight",
    ),
    Mutation(
        "a wait for the store has an end",
        "model/training/writer.py",
        "        self._thread.join(self._patience_seconds)\n",
        "        self._thread.join()\n",
        f"{RESUME}a_store_that_does_not_answer_ends_the_wait",
    ),
    Mutation(
        "a failure of the writer reaches the steps",
        "model/training/loop.py",
        "    message[2] = float(failing)\n",
        "",
        f"{LOOP}a_checkpoint_that_cannot_be_written_ends_the_run_at_a_step_boundary",
    ),
    Mutation(
        "a short file is seen before it counts",
        "model/training/resume.py",
        "                if tensors.names(folder / name) != values.keys():",
        "                if False:",
        f"{RESUME}a_file_that_came_out_shorter_is_seen_before_it_counts",
    ),
    Mutation(
        "a place is written to before the first step",
        "model/training/places.py",
        '                manifest.write_durably(probe, b"\\0" * 4096)\n',
        "                probe.touch()\n",
        f"{RESUME}a_place_that_takes_no_bytes_is_found_out_before_the_first_step",
    ),
    Mutation(
        "an attempt that was asleep commits nothing",
        "model/training/places.py",
        "            self._check(entry.attempt)\n",
        "",
        f"{RESUME}an_attempt_that_was_asleep_can_neither_commit_nor_purge",
    ),
    Mutation(
        "an attempt that was asleep purges nothing",
        "model/training/places.py",
        "            self._check(attempt)\n",
        "",
        f"{RESUME}an_attempt_that_was_asleep_can_neither_commit_nor_purge",
    ),
    Mutation(
        "an old checkpoint goes after the newer one is whole",
        "model/training/resume.py",
        "        with self.place.stage(entry) as folder:\n",
        "        self._remove(self.place.entries())\n        with self.place.stage(entry) as folder:\n",
        f"{RESUME}a_verified_checkpoint_exists_at_every_instant",
    ),
    Mutation(
        "the calm checkpoint is kept to roll back to",
        "model/training/resume.py",
        "*([self._calm] if self._calm else [])",
        "",
        f"{RESUME}one_rolls_back_to_a_calm_checkpoint_before_the_step_and_forgets_what_came_after",
    ),
    Mutation(
        "what cannot be removed is a note",
        "model/training/resume.py",
        "            except (OSError, CannotWriteError, InternalError) as error:\n",
        "            except ZeroDivisionError as error:\n",
        f"{RESUME}what_cannot_be_removed_is_a_note_and_no_failure",
    ),
    Mutation(
        "the manifest is written last",
        "model/training/resume.py",
        "        with self.place.stage(entry) as folder:\n",
        "        with self.place.stage(entry) as folder:\n            manifest.seal(folder, KIND, facts=facts)\n"
        "            self.place.commit(folder, entry)\n            folder = self.place.root / entry.name\n",
        f"{FAULTS}a_process_killed_anywhere_in_a_save_leaves_checkpoints_that_verify[write optimizer]",
    ),
    Mutation(
        "random numbers are restored",
        "model/training/resume.py",
        "            _set_random_state(state)\n",
        "            pass\n",
        f"{RESUME}weights_moments_journal_and_random_numbers_come_back",
    ),
    Mutation(
        "a new rank's random numbers are derived",
        "model/training/resume.py",
        "            torch.manual_seed(int(seed[:15], 16))\n",
        "            pass\n",
        f"{RESUME}another_number_of_workers_goes_on_and_is_told",
    ),
    Mutation(
        "what the judge knew travels in the checkpoint",
        "model/training/loop.py",
        '{"judge": self._judge.state()}',
        "{}",
        f"{LOOP}a_run_that_is_resumed_before_or_after_it_went_round_ends_the_same[10]",
    ),
    Mutation(
        "a step that is not finite is not taken",
        "model/training/sharing.py",
        "        if accept(values[0]) and math.isfinite(length):\n",
        "        if True:\n",
        f"{LOOP}no_trace_of_a_step_remains_in_the_gradients",
    ),
    Mutation(
        "the gradients of such a step are thrown away",
        "model/training/sharing.py",
        "            self.optimizer.discard()\n",
        "            pass\n",
        f"{LOOP}no_trace_of_a_step_remains_in_the_gradients",
    ),
    Mutation(
        "the window ignores what was not accepted",
        "model/training/judge.py",
        "        if not why:\n            self._window =",
        "        self._window = [*self._window, loss]\n        if not why:\n            self._window =",
        f"{JUDGE}the_window_ignores_what_is_not_finite_and_the_next_good_step_is_taken",
    ),
    Mutation(
        "equal losses divide by nothing",
        "model/training/judge.py",
        "max(SIGMA_OF_MAD * deviation, LEAST_SPREAD * abs(median), 1e-12)",
        "SIGMA_OF_MAD * deviation",
        f"{JUDGE}equal_losses_divide_by_nothing_and_a_little_more_is_no_spike",
    ),
    Mutation(
        "a spike is not taken",
        "model/training/judge.py",
        "        if distance <= self._limits.spike:\n",
        "        if True:\n",
        f"{JUDGE}a_spike_is_not_taken_and_not_remembered_as_normal",
    ),
    Mutation(
        "the run goes round bad data once, not for ever",
        "model/training/judge.py",
        "        return Verdict.GIVE_UP if self.jumped else Verdict.ROLL_BACK\n",
        "        return Verdict.ROLL_BACK\n",
        f"{JUDGE}too_many_skips_roll_back_once_and_then_give_up",
    ),
    Mutation(
        "the bad stretch is gone round",
        "model/training/loop.py",
        "        self._judge.jump(first, number + 1)\n",
        "        self._judge.jump(first, first)\n",
        f"{LOOP}after_too_many_bad_steps_the_run_goes_round_them_once",
    ),
    Mutation(
        "the other ranks are told of a stop",
        "model/training/loop.py",
        "    message[1] = float(stop)\n",
        "    message[1] = float(stop and ranks.leads)\n",
        f"{RANKS}a_stop_of_one_rank_stops_all_at_the_same_step_and_nothing_is_changed[1]",
    ),
    Mutation(
        "a stop waits for its checkpoint",
        "model/training/loop.py",
        "        if stopping:\n            training.store.settle()\n",
        "        if stopping:\n",
        f"{FAULTS}a_stop_whose_checkpoint_cannot_be_written_does_not_say_that_it_was",
    ),
    Mutation(
        "a signal only sets a flag",
        "model/training/stops.py",
        "        stop.set()\n",
        "        raise SystemExit(75)\n",
        f"{FAULTS}a_stop_saves_the_step_that_is_done_and_ends_with_75[6-sigterm]",
    ),
    Mutation(
        "the workers' weights are compared",
        "model/training/loop.py",
        "    if odd:\n",
        "    if False:\n",
        f"{RANKS}a_bit_that_flips_in_one_ranks_memory_ends_both_with_79_before_a_checkpoint_takes_it",
    ),
    Mutation(
        "nobody waits for a rank for ever",
        "model/training/ranks.py",
        "                if look > began + self.patience_seconds:\n",
        "                if False:\n",
        f"{RANKS}a_rank_that_stands_still_is_ended_and_the_other_does_not_wait_for_ever",
    ),
    Mutation(
        "a rank that stands still is ended",
        "model/training/watchdog.py",
        "            self._end(letter)\n",
        "",
        "tests/model/training/test_watchdog.py::test_beats_keep_it_quiet_and_leaving_ends_it",
    ),
    Mutation(
        "a rank whose peer died says so",
        "model/training/ranks.py",
        '            raise InternalError(\n                f"rank {self.rank} lost',
        '            raise OSError(\n                f"rank {self.rank} lost',
        f"{RANKS}a_rank_that_dies_ends_the_other_soon_with_70[1]",
    ),
    Mutation(
        "in a bucket the manifest comes last",
        "components/platform/bucket.py",
        '        return sorted((entry for name in self.names("attempt-") if (entry := _committed(name))), reverse=True)\n',
        "        return sorted({Entry(int(n.split('/')[1][5:]), int(n[8:14])) for n in self.names('attempt-') if n.count('/') > 1}, "
        "reverse=True)\n",
        f"{BUCKET}files_without_a_manifest_are_no_checkpoint_and_later_attempts_remove_them",
    ),
    Mutation(
        "in a bucket nothing is put over a manifest",
        "components/platform/objects.py",
        ', IfNoneMatch="*")',
        ")",
        f"{BUCKET}a_manifest_is_never_put_over_another",
    ),
    Mutation(
        "an attempt tidies up after older ones only",
        "components/platform/bucket.py",
        "0 < _writer(name) < attempt and",
        "0 < _writer(name) != attempt and",
        f"{BUCKET}an_attempt_that_fell_asleep_at_its_claim_tidies_nothing_of_a_newer_one_when_it_wakes",
    ),
    Mutation(
        "a lost store does not condemn its checkpoints",
        "model/training/resume.py",
        "            except InternalError:\n                raise",
        "            except ZeroDivisionError:\n                raise",
        f"{BUCKET}a_store_that_is_lost_while_a_checkpoint_is_read_condemns_none",
    ),
    Mutation(
        "attempts are bounded over all layers",
        "components/platform/retries.py",
        "    return code == ExitCode.PREEMPTED or attempts < MOST_ATTEMPTS\n",
        "    return True\n",
        f"{RETRIES}a_process_that_vanishes_counts_like_one_that_fails",
    ),
    Mutation(
        "no attempt begins when none is left",
        "components/platform/retries.py",
        "        self.check()\n",
        "",
        f"{RETRIES}a_new_run_of_the_pipeline_counts_anew_and_a_used_up_one_begins_no_more",
    ),
    Mutation(
        "what cannot change is tried once",
        "components/platform/retries.py",
        "    if code == ExitCode.DONE or code in NEVER_RETRIED:\n",
        "    if code == ExitCode.DONE:\n",
        f"{RETRIES}what_cannot_change_is_tried_once",
    ),
)
