"""The errors of biovlm: one small tree, each class with the exit code it ends a process with.

An error is a short letter: what failed, the values on both sides, the likely cause, what to do. The last part is kept apart
as `hint`, so that every door prints it the same way (`hint: ...`). Messages name ids, fields, files and counts; never the text or
the image of a record.

Codes 64, 65, 66, 77, 78 and 79 describe a fact that a second attempt cannot change: no layer retries them.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every process of biovlm; the numbers below 79 follow BSD's sysexits."""

    DONE = 0
    USAGE = 64
    BAD_DATA = 65
    MISSING_INPUT = 66
    INTERNAL = 70
    CANNOT_WRITE = 73
    PREEMPTED = 75
    REFUSED = 77
    BAD_CONFIG = 78
    DIVERGED = 79


NEVER_RETRIED = frozenset(
    {
        ExitCode.USAGE,
        ExitCode.BAD_DATA,
        ExitCode.MISSING_INPUT,
        ExitCode.REFUSED,
        ExitCode.BAD_CONFIG,
        ExitCode.DIVERGED,
    }
)


class BiovlmError(Exception):
    """Root of the tree. `hint` says the way out in one sentence, without a leading "hint:"."""

    exit_code: ExitCode = ExitCode.INTERNAL

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type[BiovlmError], tuple[str, str]]:
        # Ray and multiprocessing carry errors between processes; the default would drop the hint.
        return type(self), (self.message, self.hint)


class UsageError(BiovlmError):
    """A command that cannot be understood."""

    exit_code = ExitCode.USAGE


class DataError(BiovlmError):
    """A record, image, manifest or data set that is present but wrong."""

    exit_code = ExitCode.BAD_DATA


class MissingInputError(BiovlmError):
    """A file, data set, checkpoint or service that should be there and is not."""

    exit_code = ExitCode.MISSING_INPUT


class CannotWriteError(BiovlmError):
    """The disk is full, or a folder or store does not take writes."""

    exit_code = ExitCode.CANNOT_WRITE


class PreemptedError(BiovlmError):
    """The work was asked to stop; what was learned is saved, and the same command continues it."""

    exit_code = ExitCode.PREEMPTED


class RefusedError(BiovlmError):
    """Refused by policy, licence, signature or digest."""

    exit_code = ExitCode.REFUSED


class ConfigError(BiovlmError):
    """A recipe that is unknown, incomplete or contradicts itself."""

    exit_code = ExitCode.BAD_CONFIG


class DivergedError(BiovlmError):
    """Too many steps could not be taken, or workers that must hold equal weights do not."""

    exit_code = ExitCode.DIVERGED


class InternalError(BiovlmError):
    """A defect of biovlm itself, or of a library in it; worth a bug report."""


def kind_of(code: int) -> type[BiovlmError]:
    """The class that ends a process with `code`; a code that is none of ours is a defect."""
    return next((kind for kind in BiovlmError.__subclasses__() if kind.exit_code == code), InternalError)


def kind_named(name: str) -> type[BiovlmError]:
    """The class of that name, for a letter that came as text from another process."""
    return next((kind for kind in BiovlmError.__subclasses__() if kind.__name__ == name), InternalError)
