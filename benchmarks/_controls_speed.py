"""The controls of packing, the loss, cheaper layers and the feature cache (see mutations)."""

from __future__ import annotations

from benchmarks._controls_crash import Mutation

PACKED, HEAD, FUSED, KERNEL, FEATURES, CACHE = (
    f"tests/model/architecture/test_{name}.py::test_"
    for name in ("packed", "head", "fused", "kernels", "features", "feature_cache")
)
SAMPLING, PACKING, COLLATE, EXAMPLES = (
    f"tests/model/data/test_{name}.py::test_" for name in ("sampling", "packing", "collate", "examples")
)
STAGE = "tests/model/training/test_packed_stage.py::test_"
ATTENTION, KERNELS, COLUMNS = "model/architecture/packed.py", "model/architecture/kernels/attention.py", "model/data/examples.py"
CONTROLS = (
    Mutation(
        "a branch does not see its sisters",
        ATTENTION,
        "    own = (branch[:, None] == branch[None, :]).tril()\n",
        "    own = torch.ones(tokens, tokens, dtype=torch.bool).tril()\n",
        f"{PACKED}no_branch_and_no_document_feels_another",
    ),
    Mutation(
        "on a GPU a document does not see another",
        ATTENTION,
        "return (row >= column) & (document[row] == document[column]) & own",
        "return (row >= column) & own",
        f"{PACKED}flex_attention_is_given_the_same_mask",
    ),
    Mutation(
        "on a GPU a branch does not see its sisters",
        ATTENTION,
        "        own = (branch[column] == 0) | (branch[column] == branch[row])\n        return",
        "        own = branch[column] >= 0\n        return",
        f"{PACKED}flex_attention_is_given_the_same_mask",
    ),
    Mutation(
        "positions of a branch go on from its trunk",
        "model/data/collate.py",
        "        self.positions.append(np.arange(position, position + len(ids)))\n",
        "        self.positions.append(np.arange(self._end, self._end + len(ids)))\n",
        f"{COLLATE}examples_that_share_an_image_become_a_trunk_with_branches",
    ),
    Mutation(
        "the first token of a branch is predicted from the trunk",
        "model/data/collate.py",
        "np.where(places == first, start + first - 1, sources)",
        "sources",
        f"{PACKED}loss_and_gradients_are_those_of_the_examples_alone[a bare caption-shared image]",
    ),
    Mutation(
        "only examples that begin alike share a trunk",
        "model/data/collate.py",
        "        _check_alike(examples)\n",
        "",
        f"{COLLATE}examples_that_do_not_begin_alike_are_never_packed_as_one[another image]",
    ),
    Mutation(
        "a model with a short window is not packed",
        ATTENTION,
        "and window < context_tokens:",
        "and window < 0:",
        f"{PACKED}a_model_that_looks_back_less_far_than_an_example_is_long_is_not_packed",
    ),
    Mutation(
        "no dense mask on an unknown device",
        ATTENTION,
        "    if device.type not in DEVICES:\n",
        "    if False:\n",
        f"{PACKED}packing_is_refused_on_a_device_without_a_kernel_for_it",
    ),
    Mutation(
        "placeholders are counted in every document of a row",
        "model/architecture/joint.py",
        "        if count != images * image_tokens:\n",
        "        if sum(found) != sum(batch.image_counts) * image_tokens:\n",
        f"{PACKED}placeholders_of_a_packed_row_are_counted_document_by_document",
    ),
    Mutation(
        "a leak ends the run before its first step",
        "model/training/isolation.py",
        "    if leaked:\n",
        "    if False:\n",
        f"{STAGE}a_leak_between_documents_ends_the_run_before_its_first_step",
    ),
    Mutation(
        "the first batch is looked at",
        "model/training/stage.py",
        "    material.audit(objective, steps, ranks.rank, prompter.end_token_id, reporter)\n",
        "",
        f"{STAGE}the_first_batch_is_audited_and_the_result_told[rows]",
    ),
    Mutation(
        "an example longer than a row is refused",
        "model/training/material.py",
        "        check_rows(learned.metadata, learned.names, micro, stage.pack_images)\n",
        "",
        f"{STAGE}a_row_shorter_than_an_example_is_refused_before_the_first_step",
    ),
    Mutation(
        "a row keeps to its budget of images",
        "model/data/packing.py",
        "    return min(rows.tokens // tokens, rows.images // images if images else rows.tokens)\n",
        "    return rows.tokens // tokens\n",
        f"{PACKING}every_document_stands_in_one_row_and_no_row_is_over_budget",
    ),
    Mutation(
        "a group longer than a row is divided",
        "model/data/packing.py",
        "    long = trunk[first] + sums[ends] - sums[first] > row_tokens\n",
        "    long = np.zeros(len(first), bool)\n",
        f"{SAMPLING}a_group_longer_than_a_row_becomes_several_documents",
    ),
    Mutation(
        "rows are shuffled by seed and epoch",
        "model/data/sampling.py",
        "    generator = np.random.default_rng([_ROWS, seed, epoch])\n",
        "    generator = np.random.default_rng([_ROWS, 0, 0])\n",
        f"{SAMPLING}packed_plans_depend_on_seed_and_epoch[rows]",
    ),
    Mutation(
        "all of the loss lies on text",
        COLUMNS,
        "    if placeholders or not len(targets):\n",
        "    if False:\n",
        f"{EXAMPLES}a_record_whose_loss_is_not_on_text_is_refused[no target]",
    ),
    Mutation(
        "what is too long is refused where the recipe says so",
        COLUMNS,
        "        if too_long is TooLong.REFUSE and set_aside[name]:\n",
        "        if False:\n",
        f"{EXAMPLES}a_record_that_is_too_long_can_end_the_run",
    ),
    Mutation(
        "part of a dialogue that is too long is never cut",
        COLUMNS,
        "                if len(part.input_ids) <= context_tokens:\n",
        "                if part.input_ids:\n",
        f"{EXAMPLES}a_dialogue_that_is_too_long_is_split_between_turns_with_its_image",
    ),
    Mutation(
        "the loss in chunks takes the target from the logits",
        "model/architecture/head.py",
        "            logits.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=logits.dtype))\n",
        "",
        f"{HEAD}loss_and_gradient_in_chunks_are_those_of_all_logits_at_once[5]",
    ),
    Mutation(
        "layers with dropout are not merged",
        "model/architecture/lora_products.py",
        " or not isinstance(layer.lora_dropout[ADAPTER], nn.Identity)",
        "",
        f"{FUSED}layers_that_would_not_be_the_same_are_left_alone[dropout]",
    ),
    Mutation(
        "an update is not merged into bfloat16",
        "model/architecture/lora_products.py",
        "        and base.weight.dtype is torch.float32\n",
        "",
        f"{FUSED}layers_that_would_not_be_the_same_are_left_alone[bfloat16]",
    ),
    Mutation(
        "cheaper attention obeys a mask",
        "model/architecture/fused.py",
        "    if attention_mask is not None or goes_on or layout_is_due or dropped:\n",
        "    if goes_on or layout_is_due or dropped:\n",
        f"{FUSED}whole_models_with_the_layers_of_ours_say_the_same[llama-masked]",
    ),
    Mutation(
        "a packed model reads no batch without a layout",
        "model/architecture/fused.py",
        " or layout_is_due or dropped:\n",
        " or dropped:\n",
        f"{FUSED}a_packed_model_refuses_a_batch_without_a_layout",
    ),
    Mutation(
        "cheaper attention drops nothing in silence",
        "model/architecture/fused.py",
        " or layout_is_due or dropped:\n",
        " or layout_is_due:\n",
        f"{FUSED}attention_with_dropout_is_left_to_transformers",
    ),
    Mutation(
        "cheaper attention looks at the keys of a cache",
        "model/architecture/fused.py",
        "    if attention_mask is not None or goes_on or layout_is_due or dropped:\n",
        "    if attention_mask is not None or layout_is_due or dropped:\n",
        f"{FUSED}a_cache_is_filled_and_read_as_transformers_does_it[llama]",
    ),
    Mutation(
        "what nobody sees in a row is a number",
        "model/evaluation/rows.py",
        "        room[row, :, prefix.shape[1] : longest] = 0.0\n",
        "",
        "tests/model/evaluation/test_generate.py::test_memory_that_nobody_wrote_changes_no_answer",
    ),
    Mutation(
        "the kernel's branches do not see each other",
        KERNELS,
        "    low = max(begin, opens[start + row] - start) if own else begin\n",
        "    low = begin\n",
        f"{KERNEL}no_gradient_passes_between_documents_and_branches",
    ),
    Mutation(
        "the kernel's rows do not see what comes behind them",
        KERNELS,
        "    return low - begin, max(low, min(behind, row + 1)) - begin\n",
        "    return low - begin, behind - begin\n",
        f"{KERNEL}attention_and_its_gradients_are_those_of_the_formula[longer than two blocks of keys-shared keys]",
    ),
    Mutation(
        "the kernel reads nothing beside its batch",
        "model/architecture/heads.py",
        "    if not covered == documents[-1].end == len(asking):\n",
        "    if False:\n",
        f"{KERNEL}documents_that_do_not_cover_the_batch_are_refused",
    ),
    Mutation(
        "kernels do not hide NaN",
        "model/architecture/kernels/pointwise.py",
        "    x = LEAST if x < LEAST else x\n",
        "    x = x if x > LEAST else LEAST\n",
        f"{KERNEL}what_is_not_finite_is_seen_in_its_document_and_in_no_other[nan]",
    ),
    Mutation(
        "the kernel's blocks leave nothing in the rows behind them",
        KERNELS,
        "    grads[end - top : whole_tiles(end - top), :around] = F0\n",
        "",
        f"{KERNEL}attention_and_its_gradients_are_those_of_the_formula[branches over blocks of rows and of keys-shared keys]",
    ),
    Mutation(
        "the kernel's blocks leave nothing in the keys behind them",
        KERNELS,
        "        line[last:around], given[last:around] = F0, F0\n",
        "        line[last : behind - begin], given[last : behind - begin] = F0, F0\n",
        f"{KERNEL}attention_and_its_gradients_are_those_of_the_formula[branches over blocks of rows and of keys-shared keys]",
    ),
    Mutation(
        "machine code of other kernels is not used",
        "model/architecture/kernels/compiling.py",
        '    function.__qualname__ += f"-{_sources()}"\n',
        "",
        f"{KERNEL}code_kept_of_kernels_that_have_changed_is_not_used",
    ),
    Mutation(
        "a cached feature's bytes are compared with its checksum",
        "model/architecture/feature_cache.py",
        "                checksum = zlib.crc32(content[HEADER_BYTES:], zlib.crc32(expected))\n",
        "                checksum = int.from_bytes(stored[len(expected) : len(expected) + 4], 'little')\n",
        f"{CACHE}no_cut_and_no_changed_byte_goes_unseen",
    ),
    Mutation(
        "no feature of a tower that learns is kept",
        "model/architecture/features.py",
        "self.fixed = not augmented and not _learns(assistant)",
        "self.fixed = not augmented",
        f"{FEATURES}where_features_are_not_fixed_nothing_is_kept_or_believed[the tower learns]",
    ),
)
