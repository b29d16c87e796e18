"""Ask an exported assistant about one image: what a server would do, in this process.

1. `Chat(store, settings, uri, digest)` verifies the export's signature and every byte, refuses what could run code and models of
   another kind than biovlm makes, and loads it with transformers alone.
2. `answer(image, question)` decodes the image as training does, refuses control tokens in the question, and decodes greedily.

Each question is asked on its own, as the benchmarks ask it. Imports torch and transformers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from components.platform import signing
from components.platform.settings import Settings
from components.platform.store import Store
from model.data import reserved
from model.data.images import decode
from model.errors import UsageError
from model.folders import check_assistant, refuse_code

MAX_NEW_TOKENS = 64
MAX_QUESTION_CHARS = 2000


class Chat:
    """A loaded assistant."""

    def __init__(self, store: Store, settings: Settings, uri: str, digest: str | None = None) -> None:
        """Load the export at `uri`.

        Raises:
            RefusedError: A signature does not hold, a byte is not what was signed, or the folder holds what biovlm does not load.
            MissingInputError: It is gone, or no key is trusted.
        """
        signing.verify(store, settings, uri, digest)
        export = store.root / uri
        refuse_code(export)
        check_assistant(export)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self._processor = AutoProcessor.from_pretrained(str(export), local_files_only=True)
        self._model = AutoModelForImageTextToText.from_pretrained(str(export), local_files_only=True, use_safetensors=True).eval()
        tokenizer = self._processor.tokenizer
        self._control = tuple(sorted({str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}))

    @torch.inference_mode()
    def answer(self, image: Path | bytes, question: str) -> str:
        """The answer to `question` about an image: a file, or its content.

        Raises:
            MissingInputError: No such image.
            DataError: It cannot be read.
            UsageError: The question is empty, too long, or holds a control token.
        """
        inputs = self._processor(text=self._prompt(question), images=decode(image), return_tensors="pt", add_special_tokens=False)
        output = self._model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)
        new = output[0, inputs["input_ids"].shape[1] :]
        return str(self._processor.tokenizer.decode(new, skip_special_tokens=True)).strip()

    def _prompt(self, question: str) -> str:
        """The question as the model reads it, if it may be asked."""
        text = question.strip()
        if not text or len(text) > MAX_QUESTION_CHARS:
            raise UsageError(
                f"a question has 1 to {MAX_QUESTION_CHARS:,} characters, this one {len(text):,}", "ask something shorter"
            )
        found = reserved.find(text, self._control)
        if found is not None:
            raise UsageError(f"the question holds the control token {found!r}", "write it in other words")
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        return str(self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
