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


def test_a_letter_from_another_process_gets_its_class_back_by_code_or_name() -> None:
    class Narrower(errors.BiovlmError):
        """As code further up defines some; it ends a process with 70, too."""

    for code in set(errors.ExitCode) - {errors.ExitCode.DONE}:
        kind = errors.kind_of(int(code))
        assert kind.exit_code == code
        assert errors.kind_named(kind.__name__) is kind
    assert errors.kind_of(70) is errors.kind_of(1) is errors.kind_named("KeyError") is errors.InternalError
    assert errors.kind_named("Narrower") is Narrower
