"""MLflow's scoring server, without the request in its refusals.

A request that cannot be parsed, or does not fit the signature, never reaches our `predict`: MLflow refuses it, with the data of the
request in the message, and a trace beside it. One setting leaves it out of one of those messages; none of the others. So the one function
through which every request goes is wrapped, once a process, when an assistant is loaded:

1. What our own code refused (`Refused`) passes: its words hold nothing of the request.
2. Every other refusal keeps its status and gets words of its own; any other error becomes one, so that no trace reaches the log.

A test sends such requests over HTTP and looks for their text in answers and log, so that a new MLflow that has another way is found.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

WORDS = (
    "the request is not what the model's signature says (hint: JSON with `dataframe_records`, a list of rows with `question` and `image`, "
    "all of them texts)"
)
SCHEMA_DETAILS = "MLFLOW_DISABLE_SCHEMA_DETAILS"


class Refused(MlflowException):
    """A letter for whoever asked; MLflow cannot put the data of the request before it."""

    def __init__(self, message: str, code: int) -> None:
        self._words = message
        super().__init__(message, error_code=code)

    @property
    def message(self) -> str:
        """The letter."""
        return self._words

    @message.setter
    def message(self, _: str) -> None:
        """The words stay."""


def install() -> None:
    """Wrap the scoring server of this process; a second time changes nothing."""
    from mlflow.pyfunc import scoring_server

    os.environ[SCHEMA_DETAILS] = "true"  # for `load_model(...).predict`, which no server stands before
    if not hasattr(scoring_server.invocations, "__wrapped__"):
        scoring_server.invocations = _quiet(scoring_server.invocations)


def _quiet(invocations: Any) -> Any:
    @functools.wraps(invocations)
    def answer(*args: Any, **options: Any) -> Any:
        try:
            return invocations(*args, **options)
        except Refused:
            raise
        except Exception:  # noqa: BLE001 (its text may quote the request)
            raise Refused(WORDS, INVALID_PARAMETER_VALUE) from None

    return answer
