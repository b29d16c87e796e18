"""The controls of what is asked of a Kubeflow server (see mutations)."""

from __future__ import annotations

from benchmarks._controls_crash import Mutation

CLUSTER, SCHEDULES, COMPILED, DOCTOR = (
    f"tests/pipelines/test_{name}.py::test_" for name in ("cluster", "schedules", "compiled", "doctor_cluster")
)
DOOR = "tests/components/test_door.py::test_"
SERVER, SUBMIT, REAP, PODS = (f"pipelines/{name}.py" for name in ("cluster", "submit", "reap", "pods"))
CONTROLS = (
    Mutation(
        "a run is started once even if the answer is lost",
        SERVER,
        "self._once(self._client.runs.run_service_create_run, run=wanted)",
        "self._ask(self._client.runs.run_service_create_run, run=wanted)",
        f"{CLUSTER}a_run_is_started_once_even_if_the_answer_is_lost",
    ),
    Mutation(
        "an old server is refused",
        SERVER,
        "if number < OLDEST or number[0] > NEWEST_MAJOR:",
        "if number[0] > NEWEST_MAJOR:",
        f"{CLUSTER}a_server_of_an_unsupported_version_is_refused_before_anything_is_uploaded",
    ),
    Mutation(
        "images are named by digest",
        SUBMIT,
        "        if not BY_DIGEST.match(image):",
        "        if not image:",
        f"{CLUSTER}what_cannot_be_done_is_a_letter",
    ),
    Mutation(
        "a package that is older than the code is refused",
        SUBMIT,
        "    if found != (made := read(now.text)):",
        "    if not (made := read(now.text)):",
        f"{CLUSTER}a_package_that_is_older_than_the_code_is_refused",
    ),
    Mutation(
        "a server may be away while a run is waited for",
        SUBMIT,
        "except (AwayError, InternalError) as error:",
        "except AssertionError as error:",
        f"{CLUSTER}a_server_that_is_away_for_a_while_does_not_end_the_waiting",
    ),
    Mutation(
        "what a failed step said is read from its log",
        "pipelines/letters.py",
        "return made(step, statuses[-1], message, hint) if statuses else None",
        "return None",
        f"{CLUSTER}a_failed_run_ends_with_the_letter_and_the_code_that_the_step_wrote",
    ),
    Mutation(
        "stopping deletes the jobs of that run alone",
        REAP,
        "if run_of(job) == run_id]",
        "if run_of(job)]",
        f"{CLUSTER}stop_terminates_the_run_and_deletes_its_ray_jobs_and_no_others",
    ),
    Mutation(
        "a silent server gets no job deleted",
        REAP,
        "    except AwayError:\n        raise\n    except MissingInputError:",
        "    except MissingInputError:",
        f"{CLUSTER}reap_deletes_nothing_while_the_server_does_not_answer",
    ),
    Mutation(
        "jobs of runs that KFP never had are nobody's leftovers",
        REAP,
        "        return str(uuid.UUID(run_id)) == run_id\n    except ValueError:\n        return False",
        "        return True\n    except ValueError:\n        return False",
        f"{CLUSTER}reap_deletes_the_jobs_of_runs_that_are_over_and_of_no_others",
    ),
    Mutation(
        "whoever made a schedule looks again",
        "pipelines/schedule_server.py",
        "    last = schedules.decide(wanted, schedules.found(server.schedules())) if first.make else first\n",
        "    last = schedules.decide(wanted, [*schedules.found(server.schedules())][-1:]) if first.make else first\n",
        f"{SCHEDULES}sixteen_at_once_end_with_one_recurring_run",
    ),
    Mutation(
        "of equal schedules the same one stays for all",
        "pipelines/schedules.py",
        "return min(same, key=lambda one: (one.created, one.identifier), default=None)",
        "return next(iter(same), None)",
        f"{SCHEDULES}of_equal_ones_the_oldest_stays_whoever_looks",
    ),
    Mutation(
        "another file's schedule is not deleted meanwhile",
        "pipelines/schedule_server.py",
        "if one.identifier in superseded or one.spec == wanted.spec:",
        "if one:",
        f"{SCHEDULES}two_files_at_once_never_leave_a_schedule_without_any",
    ),
    Mutation(
        "a paused schedule stays paused",
        "pipelines/schedules.py",
        "    enabled = all(one.enabled for one in mine)\n",
        "    enabled = True\n",
        f"{SCHEDULES}pausing_lasts_over_a_change",
    ),
    Mutation(
        "a moment that never comes is refused",
        "pipelines/cron.py",
        "if any_weekday and not any(",
        "if not any_weekday and not any(",
        f"{SCHEDULES}what_is_no_moment_is_refused",
    ),
    Mutation(
        "retries of all layers together are bounded",
        PODS,
        "RETRIES = MOST_ATTEMPTS - 1",
        "RETRIES = MOST_ATTEMPTS",
        f"{COMPILED}only_the_launchers_of_heavy_work_are_started_again_and_at_most_three_times_in_all",
    ),
    Mutation(
        "no pod of a step is root",
        PODS,
        "run_as_non_root=True)",
        "run_as_non_root=False)",
        f"{COMPILED}every_pod_has_an_end_a_user_that_is_not_root_and_knows_who_it_is",
    ),
    Mutation(
        "a key goes to the steps that sign alone",
        PODS,
        "    if name in KEYS:\n        _keys(task, KEYS[name])\n",
        "    _keys(task, KEYS['register'])\n",
        f"{COMPILED}secrets_are_named_and_hold_what_is_secret_and_nothing_else_does",
    ),
    Mutation(
        "the launcher's own Secrets are not passed on to workers",
        "components/platform/task_config.py",
        "    return secret in LAUNCHERS_OWN\n",
        "    return False\n",
        "tests/components/test_task_config.py::test_the_launchers_own_secrets_stay_with_it",
    ),
    Mutation(
        "a key leaves the environment for a file of its owner",
        "components/platform/door.py",
        'if (text := os.environ.pop(name, ""))}',
        'if (text := os.environ.get(name, ""))}',
        f"{DOOR}a_key_is_a_file_of_its_owner_alone_and_leaves_the_environment",
    ),
    Mutation(
        "a pod makes no key for itself",
        "components/platform/keys.py",
        "    if settings.signing_key is None and settings.pod:",
        "    if settings.signing_key is None and not settings.home:",
        f"{DOOR}a_pod_without_a_key_makes_none",
    ),
    Mutation(
        "before a run the key that will sign must be trusted",
        "components/platform/keys.py",
        "    if signer not in known:",
        "    if not signer:",
        f"{DOOR}before_a_run_the_key_that_will_sign_must_be_trusted",
    ),
    Mutation(
        "no worker gets a Secret of the steps by name",
        "components/platform/kuberay/site.py",
        "if own := sorted({*secrets} & {*task_config.LAUNCHERS_OWN}):",
        "if own := []:",
        "tests/components/test_kuberay_manifest.py::test_a_site_that_cannot_be_is_a_letter",
    ),
    Mutation(
        "a licence that forbids the purpose is told before any GPU",
        "components/preflight/step.py",
        "        _licences(checked)\n",
        "",
        "tests/components/test_preflight.py::test_a_licence_that_forbids_the_purpose_is_told_before_any_gpu",
    ),
    Mutation(
        "what can never fit its queue is told before a run",
        "pipelines/doctor_kubernetes.py",
        "elif why := quota.never_fits(_first_job(ground, site), whole):",
        'elif why := "":',
        "tests/pipelines/test_doctor_kubernetes.py::test_what_the_cluster_lacks_is_named_with_its_remedy",
    ),
    Mutation(
        "trying to write leaves no model behind",
        "components/platform/tracking.py",
        "            client.delete_registered_model(probe)\n",
        "",
        "tests/components/test_tracking.py::test_trying_to_write_leaves_marks_where_a_run_will_write_and_no_model_of_its_own",
    ),
    Mutation(
        "a pod knows its run by its label",
        PODS,
        '    "BIOVLM_KFP_RUN_ID": "metadata.labels[\'pipeline/runid\']",\n',
        "",
        f"{COMPILED}every_pod_has_an_end_a_user_that_is_not_root_and_knows_who_it_is",
    ),
    Mutation(
        "GPUs are not asked for the launcher",
        "components/train/component.py",
        "    dsl.TaskConfigField.RESOURCES,\n",
        "    dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.RESOURCES, apply_to_task=True),\n",
        f"{COMPILED}what_a_worker_asks_for_is_passed_on_and_never_asked_for_the_launcher",
    ),
    Mutation(
        "a stage that cannot meet its deadline is refused",
        "pipelines/estimate.py",
        "    if longest > wanted.deadline_hours:",
        "    if not longest:",
        f"{DOCTOR}a_deadline_shorter_than_the_estimate_and_a_budget_below_it_are_refused",
    ),
)
