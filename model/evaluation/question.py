"""A question as token ids, cut into the prefix that all questions of an image share and the rest; and questions in batches.

1. `question_of` renders a record by the model's template and cuts behind the last image placeholder.
2. `batches` keeps the questions of a prefix together: a prefix is computed once, whatever the size of a batch. Questions of like
   lengths stand together, so that little is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from model.data.records import Record, Role, Turn
from model.data.templates import Prompter
from model.errors import ConfigError, DataError


@dataclass(frozen=True)
class Question:
    """What is asked. Equal questions are asked once."""

    images: tuple[str, ...]
    prefix: tuple[int, ...]
    """Up to and with the last image placeholder; of a question without an image, its first token."""
    rest: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Length of the whole prompt, image tokens included."""
        return len(self.prefix) + len(self.rest)


def question_of(record: Record, prompter: Prompter, worded: Callable[[str], str]) -> Question:
    """The first question of a record.

    Args:
        record: Its first user turn is the question.
        prompter: Tokenizer and template.
        worded: Wording around the question (`BenchmarkFile.worded`).

    Raises:
        DataError: Placeholders and images do not agree. ConfigError: The template cannot ask a question.
    """
    turn = Turn(role=Role.USER, text=worded(record.question))
    ids = prompter.prompt([turn], len(record.images), record.id)
    places = [place for place, token in enumerate(ids) if token == prompter.image_token_id]
    expected = len(record.images) * prompter.image_tokens
    if len(places) != expected:
        raise DataError(
            f"record {record.id!r}: {len(places)} image placeholders, its images need {expected}", "check the template"
        )
    cut = places[-1] + 1 if places else 1
    if cut >= len(ids):
        raise ConfigError(
            f"the template `{prompter.template}` puts nothing behind the image: it cannot ask a question",
            "set model.template to the template of a conversation",
        )
    return Question(record.images, tuple(ids[:cut]), tuple(ids[cut:]))


def batches(questions: Iterable[Question], size: int) -> Iterator[list[Question]]:
    """Batches of at most `size` questions. The questions of a prefix are in one batch or, where they are more than `size`, in batches
    that follow each other."""
    of_prefix: dict[tuple[tuple[str, ...], tuple[int, ...]], list[Question]] = {}
    for question in questions:
        of_prefix.setdefault((question.images, question.prefix), []).append(question)
    groups = [sorted(group, key=lambda q: (len(q.rest), q.rest)) for group in of_prefix.values()]
    groups.sort(key=lambda group: (len(group[0].prefix), len(group), group[-1].num_tokens, group[0].images, group[0].prefix))
    batch: list[Question] = []
    for group in groups:
        if len(batch) + len(group) > size and batch:
            yield batch
            batch = []
        whole = (len(group) - 1) // size * size
        yield from (group[start : start + size] for start in range(0, whole, size))
        batch += group[whole:]
    if batch:
        yield batch
