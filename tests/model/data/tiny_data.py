"""Small real things for tests: a byte-level BPE tokenizer with the control tokens of all templates, and records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CONTROL = (
    *("<s>", "</s>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|im_start|>", "<|im_end|>", "<image>", "<pad>"),
)
CORPUS = (
    "USER: What is shown? ASSISTANT: A liver. USER: Is it large? ASSISTANT: Yes [INST] [/INST] Be brief. user system assistant\n"
)
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tokenizer(words: str = "llama3", bos: str | None = "<s>", without: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer that knows each word of CORPUS as one token; `words` is how text is cut into words.

    llama3 and gpt2 are byte-level; metaspace is the way of Llama 2 and Mistral, where a word carries the space in front of it.
    """
    inner = Tokenizer(models.BPE())
    if words == "llama3":
        cut = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    elif words == "gpt2":
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=words.removeprefix("metaspace-"))
    inner.decoder = decoders.Metaspace() if words.startswith("metaspace") else decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=[token for token in CONTROL if token not in without],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The words with and without a space in front, and line breaks.
    inner.train_from_iterator([CORPUS, CORPUS, *CORPUS.split() * 2, "\n\n", "\n\n"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, pad_token="<pad>")


def question(name: str, image: str | None = "images/a.png", **changes: Any) -> dict[str, Any]:
    """A good question record as JSON; `changes` replace fields."""
    record = {
        "id": name,
        "group": "g",
        "kind": "question",
        "images": [image] if image else [],
        "turns": [{"role": "user", "text": "What is shown?"}, {"role": "assistant", "text": "A liver."}],
        "answer_type": "open",
    }
    return record | changes
