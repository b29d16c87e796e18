"""Errors keep their hint and their exit code on every road."""

from __future__ import annotations

import copy

import pytest

from model import errors


def subclasses(cls: type[errors.BiovlmError]) -> list[type[errors.BiovlmError]]:
    return [cls, *(sub for child in cls.__subclasses__() for sub in subclasses(child))]


@pytest.mark.parametrize("cls", subclasses(errors.BiovlmError))
def test_an_error_survives_the_way_between_processes(cls: type[errors.BiovlmError]) -> None:
    sent = cls("a failed", "do b")
    received = copy.copy(sent)  # copy goes through __reduce__, as Ray's and multiprocessing's transports do
    assert (type(received), received.message, received.hint) == (cls, "a failed", "do b")
    assert str(received) == "a failed\nhint: do b"


def test_every_exit_code_of_the_house_belongs_to_one_error() -> None:
    owned = {cls.exit_code for cls in subclasses(errors.BiovlmError)}
    assert owned == set(errors.ExitCode) - {errors.ExitCode.DONE}


def test_facts_that_a_second_attempt_cannot_change_are_never_retried() -> None:
    assert {64, 65, 66, 77, 78, 79} == errors.NEVER_RETRIED
