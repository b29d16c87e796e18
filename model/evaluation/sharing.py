"""Questions shared among workers: each answers some of them, all get all answers, in the order of the questions.

1. `owners` gives every question a worker. Questions with one key (those of an image, or the same words in the blind control) stay
   together, because what they share is computed once.
2. `answered_together` lets this worker answer its own, and exchanges answers with the others.

A question gets the same answer in any company, so the report does not depend on the number of workers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass

from model.data.records import Record
from model.evaluation.generate import Prediction


def _alone(text: str) -> list[str]:
    return [text]


@dataclass(frozen=True)
class Shard:
    """This worker among those that answer."""

    rank: int = 0
    of: int = 1
    exchange: Callable[[str], list[str]] = _alone
    """Gives this worker's text to all; every worker's text, in rank order. All workers call it equally often."""

    @property
    def leads(self) -> bool:
        """Whether this worker alone writes the report."""
        return self.rank == 0


def owners(keys: Sequence[Hashable], of: int) -> list[int]:
    """Rank that answers each question: groups of one key go, the largest first, to the worker with the fewest questions so far."""
    load, owner = [0] * of, {}
    for key, count in Counter(keys).most_common():  # equal counts in the order of their first question
        owner[key] = min(range(of), key=load.__getitem__)
        load[owner[key]] += count
    return [owner[key] for key in keys]


def answered_together(
    records: Sequence[Record],
    key: Callable[[Record], Hashable],
    answer: Callable[[Sequence[Record]], list[Prediction]],
    shard: Shard,
) -> list[Prediction]:
    """The answers to all records, in their order.

    Args:
        records: The same on every worker.
        key: Records with one key are answered by one worker.
        answer: Answers some of them, in their order.
        shard: This worker.
    """
    if shard.of == 1:
        return answer(records)
    ranks = owners([key(record) for record in records], shard.of)
    mine = [record for record, rank in zip(records, ranks, strict=True) if rank == shard.rank]
    told = shard.exchange(json.dumps([asdict(one) for one in (answer(mine) if mine else [])]))
    answers = [iter(json.loads(text)) for text in told]
    return [Prediction(**next(answers[rank])) for rank in ranks]
