"""Conversations to tokens, and which of them are targets.

The journey of a conversation:
1. `layouts` lists it as pieces: control tokens, placeholders of images, and text; each piece is a target or not.
2. `Prompter` gives control tokens and placeholders their ids directly. Text is tokenised by itself, piece by piece between
   control tokens, and must not yield a control id: text that would is refused. So no text can end a turn or fake an image.
3. Labels are the ids of target pieces and IGNORE elsewhere: right by construction, nothing is searched for afterwards.

What learns is the assistant's text and the token that ends it. Text is trimmed at both ends. If the tokenizer has a
beginning-of-text token, it stands first in every template. The ids of a prompt equal those of the whole prompt tokenised at once,
which is what a server does with the exported `chat_template`; a tokenizer for which that does not hold is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from transformers import PreTrainedTokenizerBase

from model.batch import IGNORE
from model.config import Template
from model.data import reserved
from model.data.layouts import IMAGE, Piece, chat_jinja, end_text, pieces
from model.data.records import Role, Turn
from model.errors import ConfigError, DataError

CACHED_TEXTS = 8_192
"""About 6 MiB of questions that come again."""


@dataclass(frozen=True)
class Rendered:
    """T tokens of one conversation."""

    input_ids: list[int]
    """T ids; every image stands as `image_tokens` placeholders in a row."""
    labels: list[int]
    """T ids; the token itself where it is a target, else IGNORE. Not shifted."""


@dataclass(frozen=True, eq=False)
class Prompter:
    """One tokenizer with one template.

    Raises:
        ConfigError: The tokenizer lacks a token of the template or `<image>`; the system text holds a reserved token; or prompts
            are not tokenised piece by piece as they are at once.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    system: str
    """System text in front of every conversation; empty for none."""
    image_tokens: int
    """Placeholders an image."""

    def __post_init__(self) -> None:
        found = reserved.find(self.system, self.reserved_tokens)
        if found is not None:
            raise ConfigError(f"model.system holds the reserved token {found!r}", "write the system text without control tokens")
        for needed in {IMAGE, end_text(self.template)}:
            self._control_id(needed)
        self._check_like_a_server()

    @cached_property
    def image_token_id(self) -> int:
        """Id of the placeholder `<image>`."""
        return self._control_id(IMAGE)

    @cached_property
    def end_token_id(self) -> int:
        """Id of the token that ends an answer: generation stops there."""
        return self._control_id(end_text(self.template))

    @cached_property
    def pad_token_id(self) -> int:
        """Id for padding; masked everywhere, so any id but the image placeholder's is right."""
        pad = self.tokenizer.pad_token_id
        return self.end_token_id if pad is None or pad == self.image_token_id else int(pad)

    @cached_property
    def reserved_tokens(self) -> tuple[str, ...]:
        """Control tokens of this tokenizer, which no text may hold."""
        special = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return tuple(sorted(special | set(self.tokenizer.all_special_tokens) | {IMAGE}))

    def render(self, turns: Sequence[Turn], num_images: int, record_id: str = "") -> Rendered:
        """A whole conversation with its targets.

        Args:
            turns: User and assistant in turn, ending with the assistant.
            num_images: Images of the conversation; they stand first in the first user turn.
            record_id: For messages.

        Raises:
            DataError: A turn holds a reserved token (id and turn are named), or the turns do not fit the template.
        """
        if not turns or turns[-1].role is not Role.ASSISTANT:
            raise DataError(f"record {record_id!r}: a conversation to learn from ends with the assistant", "mend the record")
        ids, labels = self._tokens(turns, num_images, record_id)
        return Rendered(ids, labels)

    def prompt(self, turns: Sequence[Turn], num_images: int, record_id: str = "") -> list[int]:
        """Ids after which the model writes the next answer. `turns` end with the user; else as `render`."""
        if not turns or turns[-1].role is not Role.USER:
            raise DataError(f"record {record_id!r}: a prompt ends with the user", "leave out the last answer")
        return self._tokens(turns, num_images, record_id)[0]

    def _tokens(self, turns: Sequence[Turn], num_images: int, record_id: str) -> tuple[list[int], list[int]]:
        self._refuse_reserved(turns, record_id)
        if self.template is Template.PLAIN and len(turns) > 2:
            raise DataError(
                f"record {record_id!r} has {len(turns)} turns; the template `plain` takes one caption",
                "choose `kinds: [caption]` for the stage, or another template",
            )
        ids: list[int] = []
        labels: list[int] = []
        for run in _runs(pieces(self.template, self.system, turns, num_images, self.tokenizer.bos_token)):
            for piece, piece_ids in zip(run, self._ids_of_run(run, follows=bool(ids)), strict=True):
                ids += piece_ids
                labels += piece_ids if piece.target else [IGNORE] * len(piece_ids)
        return ids, labels

    def _refuse_reserved(self, turns: Sequence[Turn], record_id: str) -> None:
        for number, turn in enumerate(turns):
            found = reserved.find(turn.text, self.reserved_tokens)
            if found is not None:
                raise DataError(
                    f"record {record_id!r}, turn {number}: the text holds the reserved token {found!r}",
                    "escape it where the data set is imported (model.data.reserved.escape)",
                )

    def _ids_of_run(self, run: Sequence[Piece], follows: bool) -> list[list[int]]:
        """Ids of each piece of a run: one control piece, or text pieces that nothing stands between.

        A question and the answer after it are tokenised together if the question's ids stay what they are without the answer;
        otherwise apart, so that the model always learns to go on from exactly the prompt that it will get.
        """
        if run[0].control:
            return [[self._control_id(run[0].text)] * (self.image_tokens if run[0].text == IMAGE else 1)]
        result: list[list[int]] = []
        before = ""
        known: tuple[int, ...] = ()
        for piece in run:
            joined = self._text_ids(before + piece.text, follows)
            if joined[: len(known)] == known:
                result.append(list(joined[len(known) :]))
                before, known = before + piece.text, joined
            else:
                result.append(list(self._text_ids(piece.text, follows=True)))
                before, known = piece.text, tuple(result[-1])
        return result

    def _text_ids(self, text: str, follows: bool) -> tuple[int, ...]:
        """Ids of text; `follows` says whether a token stands before it, which some tokenizers write differently."""
        ids = self._tokenise(text, follows)
        if not self._control_ids.isdisjoint(ids):
            # `reserved.find` comes first; this holds even if a tokenizer normalises text in a way that it does not foresee.
            raise DataError("a text yields a control token of the tokenizer", "escape it where the data set is imported")
        return ids

    @cached_property
    def _tokenise(self) -> Callable[[str, bool], tuple[int, ...]]:
        anchor = end_text(self.template) if self.template is not Template.PLAIN else IMAGE

        @lru_cache(maxsize=CACHED_TEXTS)
        def tokenise(text: str, follows: bool) -> tuple[int, ...]:
            if not follows:
                return tuple(self.tokenizer.encode(text, add_special_tokens=False))
            return tuple(self.tokenizer.encode(anchor + text, add_special_tokens=False)[1:])

        return tokenise

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        ids = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        # A byte-level tokenizer has no unknown text; others write `unk` for a character they lack, and that is no control token.
        return frozenset(ids | set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}) | {self.image_token_id}

    @cached_property
    def _control_id(self) -> Callable[[str], int]:
        return lru_cache(maxsize=None)(self._find_control_id)  # asked for several times a conversation

    def _find_control_id(self, text: str) -> int:
        if text == "\n":
            # The end of an answer in `plain`; some tokenizers write a space in front of it.
            return self._text_ids(text, follows=True)[-1]
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1 or self.tokenizer.convert_ids_to_tokens(ids[0]) != text:
            raise ConfigError(
                f"the tokenizer has no token {text!r}, which the template `{self.template}` needs",
                "choose another `template`, or a tokenizer that has it",
            )
        return int(ids[0])

    def _check_like_a_server(self) -> None:
        """Compare the ids of a probe with those of its whole text, as the exported `chat_template` would give it."""
        turns = (Turn(role=Role.USER, text="What is shown (2 x 3)?"),)
        for num_images in (0, 1):
            ids = self.prompt(turns, num_images)
            listed = pieces(self.template, self.system, turns, num_images, self.tokenizer.bos_token)
            whole = "".join(p.text * (self.image_tokens if p.text == IMAGE else 1) for p in listed)
            if ids != self.tokenizer.encode(whole, add_special_tokens=False):
                raise ConfigError(
                    f"the tokenizer writes a prompt of the template `{self.template}` differently in pieces and at once",
                    "choose another `template`; a server would see other tokens than the model learned from",
                )


def chat_template(template: Template, system: str) -> str:
    """The Jinja template to save with an exported processor: the same ids through `processor.apply_chat_template`.

    Messages are those of transformers: `content` is a string, or a list of `{"type": "image"}` and `{"type": "text", "text": .}`.
    Images stand first in their turn. `system` is used unless the first message has the role `system`.
    """
    return chat_jinja(template, system)


def _runs(listed: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Control pieces alone; neighbouring text pieces together, joined where both are targets or both are not."""
    run: list[Piece] = []
    for piece in listed:
        if piece.control:
            if run:
                yield run
            run = []
            yield [piece]
        elif run and run[-1].target == piece.target:
            run[-1] = Piece(run[-1].text + piece.text, piece.target)
        elif piece.text:
            run.append(piece)
    if run:
        yield run
