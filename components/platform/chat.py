"""Ask an exported assistant about one image: what a server would do, in this process.

1. `Chat(export)` verifies the export, byte by byte, and loads it with transformers alone.
2. `answer(image, question)` decodes the image as training does, refuses control tokens in the question, and decodes greedily.

Each question is asked on its own, as the benchmarks ask it. Imports torch and transformers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from model import manifest
from model.data import reserved
from model.data.images import decode
from model.errors import UsageError

MAX_NEW_TOKENS = 64
MAX_QUESTION_CHARS = 2000


class Chat:
    """A loaded assistant."""

    def __init__(self, export: Path) -> None:
        """RefusedError if a byte of `export` is not what its manifest says; MissingInputError if it is gone."""
        manifest.verify(export)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self._processor = AutoProcessor.from_pretrained(str(export), local_files_only=True)
        self._model = AutoModelForImageTextToText.from_pretrained(str(export), local_files_only=True, use_safetensors=True).eval()
        tokenizer = self._processor.tokenizer
        self._control = tuple(sorted({str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}))

    @torch.inference_mode()
    def answer(self, image: Path, question: str) -> str:
        """The answer to `question` about the image at `image`.

        Raises:
            MissingInputError: No such image.
            DataError: It cannot be read.
            UsageError: The question is empty, too long, or holds a control token.
        """
        text = question.strip()
        if not text or len(text) > MAX_QUESTION_CHARS:
            raise UsageError(
                f"a question has 1 to {MAX_QUESTION_CHARS:,} characters, this one {len(text):,}", "ask something shorter"
            )
        found = reserved.find(text, self._control)
        if found is not None:
            raise UsageError(f"the question holds the control token {found!r}", "write it in other words")
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        prompt = self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = self._processor(text=prompt, images=decode(image), return_tensors="pt", add_special_tokens=False)
        output = self._model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)
        new = output[0, inputs["input_ids"].shape[1] :]
        return str(self._processor.tokenizer.decode(new, skip_special_tokens=True)).strip()
