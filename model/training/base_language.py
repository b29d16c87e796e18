"""The tiny language model: a Llama with a byte-level tokenizer of its own, trained on the words of a data set.

1. The tokenizer learns its merges from the split `train`. It can spell every text: what was not merged falls back to bytes.
2. The model learns the answers of dialogues and captions in the Llama-3 format. Where an assistant will see the image stands what
   is said about it elsewhere, so the model learns to look up answers in what stands before the question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from model.config import Kind, Template
from model.data.loading import DataSet, Example, Metadata, Plan, Prompter, Rules, collate
from model.data.records import Record, Role, Turn
from model.training.base_lesson import Lesson
from model.training.loop import Micro, StepPlan

VOCABULARY = 1024  # at most; a small data set has fewer pairs to merge
CONTROL = (
    *("<pad>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|im_start|>", "<|im_end|>", "<image>", "[INST]", "[/INST]", "<s>", "</s>"),
)
# One token each, but ordinary text: users may write them, answers hold them.
MARKS = ("<ref>", "</ref>", "<box>", "</box>")
# Words with the blank before them, single digits, signs, line ends: as Llama 3 cuts text.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FORMAT = ("user", "assistant", "\n\n")  # texts of the chat format, to be one token each
FORMAT_COUNT = 1000

WIDTH, LAYERS, HEADS, CONTEXT = 96, 3, 4, 2048
# Ten weights of 0.02 add up to nothing; at this width the usual value costs a third of the training.
INITIAL_STD = 0.08
STEPS, BATCH_TOKENS = 1200, 768
# Looking things up in what was said before is learned in jumps, and at twice this rate some of them never come.
RATE = 1.2e-3


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the merges of `texts`, and the control tokens of all chat templates."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKS),
        special_tokens=list(CONTROL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator([*FORMAT * FORMAT_COUNT, *texts], trainer)
    inner.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


class NextTokenObjective:
    """Cross-entropy of the assistant's text, given everything before it.

    Args:
        language: Learns.
        examples: What the plan's indices mean; without images.
    """

    def __init__(self, language: LlamaForCausalLM, examples: Sequence[Example]) -> None:
        self._language = language
        self._examples = examples

    def num_targets(self, micro: Micro) -> int:
        """Tokens of the assistant."""
        return sum(self._examples[index].num_targets for index in micro)

    def loss_sum(self, micro: Micro) -> torch.Tensor:
        """Sum of the cross-entropy over the targets."""
        batch = collate([self._examples[index] for index in micro], _no_pixels)
        hidden = self._language.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        logits = self._language.lm_head(hidden.flatten(0, 1)[batch.sources])
        return functional.cross_entropy(logits, batch.targets, reduction="sum")

    def names(self, micro: Micro) -> list[str]:
        """Ids of the records."""
        return [self._examples[index].record_id for index in micro]

    def measures(self, step: StepPlan) -> Mapping[str, float]:
        """`tokens` of the step, without padding."""
        return {"tokens": float(sum(self._examples[index].num_tokens for passes in step for micro in passes for index in micro))}


def build_language(dataset: DataSet, seed: int, steps: int | None) -> Lesson:
    """Everything to train the language model; weights are drawn from torch's present random state."""
    records = dataset.records("train", (Kind.CAPTION, Kind.DIALOGUE, Kind.QUESTION, Kind.GROUNDING))
    tokenizer = make_tokenizer([turn.text for record in records for turn in record.turns])
    language = LlamaForCausalLM(_config(tokenizer))
    prompter = Prompter(tokenizer, Template.LLAMA3, system="", image_tokens=1)
    learned = [_example(record, turns, prompter) for record, turns in _texts(records)]

    def write(folder: Path) -> None:
        language.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))

    objective = NextTokenObjective(language, learned)
    steps_planned = _plan([example.num_tokens for example in learned], steps or STEPS, seed)
    return Lesson(objective, steps_planned, dict(language.named_parameters()), RATE, write)


def _config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        initializer_range=INITIAL_STD,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _texts(records: Sequence[Record]) -> list[tuple[Record, tuple[Turn, ...]]]:
    """Dialogues with the caption of their image in front of the first question, and captions with the dialogue's summary.

    So nearly every target can be read off what stands before it; a bare caption would be a guess, and its noise as loud as the rest.
    """
    captions = {record.group: record.answer for record in records if record.kind is Kind.CAPTION}
    summaries = {record.group: record.turns[-1].text for record in records if record.kind is Kind.DIALOGUE}
    sources = {Kind.CAPTION: summaries, Kind.DIALOGUE: captions}
    found = []
    for record in records:
        source = sources.get(record.kind, {}).get(record.group)
        if source is not None:
            first = Turn(role=Role.USER, text=f"{source}\n{record.question}")
            found.append((record, (first, *record.turns[1:])))
    return found


def _example(record: Record, turns: Sequence[Turn], prompter: Prompter) -> Example:
    rendered = prompter.render(turns, 0, record.id)
    return Example(record.id, np.asarray(rendered.input_ids, np.int32), np.asarray(rendered.labels, np.int32), ())


def _plan(lengths: Sequence[int], steps: int, seed: int) -> list[StepPlan]:
    """As many epochs as `steps` steps need."""
    sizes = np.asarray(lengths)
    metadata = Metadata(sizes, *(np.zeros_like(sizes) for _ in range(3)))
    rules = Rules(BATCH_TOKENS, 2 * BATCH_TOKENS)
    epochs = math.ceil(steps / len(Plan(metadata, rules, 1, seed))) + 1
    return list(Plan(metadata, rules, 1, seed, epochs)[:steps])


def _no_pixels(paths: Sequence[Path]) -> torch.Tensor:
    """Text has no images: (0,)."""
    return torch.zeros(len(paths))
