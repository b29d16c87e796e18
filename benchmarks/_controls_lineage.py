"""Controls of the lineage: what `lineage verify` hashes, compares and demands."""

from __future__ import annotations

from benchmarks._controls_crash import Mutation

LINEAGE, GRAPH = (f"tests/components/test_{name}.py::" for name in ("lineage", "lineage_graph"))
PLATFORM = "components/platform/lineage"
CONTROLS: tuple[Mutation, ...] = (
    Mutation(
        "every file behind a version is hashed again",
        "model/manifest.py",
        "elif (found := sha256_file(path)) != entry.sha256:",
        "elif False:",
        LINEAGE + "test_a_changed_byte_is_found_wherever_it_is_and_its_place_is_named",
    ),
    Mutation(
        "a manifest has one form, to the byte",
        f"{PLATFORM}/proof.py",
        "if not found and content != manifest.as_text(said).encode():",
        "if False:",
        LINEAGE + "test_a_manifest_that_says_the_same_in_other_bytes_is_found",
    ),
    Mutation(
        "a step's lineage is made again from its record",
        f"{PLATFORM}/proof.py",
        'problems = list(_differences(said, now, "the record and the result"))',
        "problems: list[str] = []",
        LINEAGE + "test_a_step_s_lineage_that_tells_other_facts_than_its_record_is_found_with_the_fact",
    ),
    Mutation(
        "a version's lineage is the union of its steps'",
        f"{PLATFORM}/proof.py",
        'problems = list(_differences(stored, union(about, [*bare, *parts], own), "the steps"))',
        "problems: list[str] = []",
        LINEAGE + "test_an_edge_that_is_left_out_is_found_also_if_whoever_did_it_sealed_the_receipt_anew",
    ),
    Mutation(
        "a lineage is complete",
        f"{PLATFORM}/proof.py",
        'proof.note("completeness", list(complete.gaps(stored)))',
        'proof.note("completeness", [])',
        LINEAGE + "test_a_lineage_that_does_not_say_on_which_machine_a_step_ran_is_incomplete",
    ),
    Mutation(
        "signatures are verified with the lineage",
        f"{PLATFORM}/auditing.py",
        "            signing.verify(store, settings, uri, digest)\n",
        "",
        LINEAGE + "test_a_version_whose_signature_was_taken_away_is_found",
    ),
    Mutation(
        "the ledger's end is the one that the registry remembers",
        f"{PLATFORM}/auditing.py",
        '        chain.against(entries, facts.tags.get(registry.ANCHOR, ""))\n',
        "",
        LINEAGE + "test_a_ledger_that_lost_its_end_is_found",
    ),
    Mutation(
        "tags of a version say what its lineage says",
        f"{PLATFORM}/tracked.py",
        "if found.get(name) != value:",
        "if False:",
        LINEAGE + "test_an_edited_tag_and_a_lost_artifact_are_found_and_named",
    ),
    Mutation(
        "a deleted run is no run",
        "components/platform/tracking.py",
        'if self.client.get_run(run).info.lifecycle_stage != "active":',
        "if False:",
        LINEAGE + "test_a_deleted_run_is_found_and_named",
    ),
    Mutation(
        "an alias that was moved by hand is named",
        f"{PLATFORM}/auditing.py",
        "in registry.drifted(chain.state(entries), facts.aliases) if entries else ():",
        "in ():",
        LINEAGE + "test_an_alias_that_was_moved_by_hand_is_found_and_named",
    ),
    Mutation(
        "a receipt is that of its version",
        f"{PLATFORM}/auditing.py",
        'if stored.about != f"version:{name}":',
        "if False:",
        LINEAGE + "test_a_receipt_of_another_version_is_refused",
    ),
    Mutation(
        "lineages that contradict each other are an error",
        f"{PLATFORM}/graph.py",
        "if differing:",
        "if False:",
        GRAPH + "test_two_lineages_add_up_and_a_contradiction_is_an_error",
    ),
    Mutation(
        "an unknown licence allows nothing",
        f"{PLATFORM}/licences.py",
        "if re.fullmatch(pattern, name)), Terms.UNKNOWN)",
        "if re.fullmatch(pattern, name)), Terms.FREE)",
        LINEAGE + "test_a_licence_is_read_by_its_name_and_an_unknown_one_allows_nothing",
    ),
)
