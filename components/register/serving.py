"""What answers behind `mlflow models serve` and `mlflow.pyfunc.load_model`: the same assistant as `biovlm chat`, with its refusals.

1. `load_context` finds the export in the store of this machine (BIOVLM_HOME, or BIOVLM_STORE in a cluster), verifies its signature and
   every byte, and loads it. A version that does not verify is not served.
2. `predict` takes rows of `question` with `image` (base64 of a PNG, JPEG or BMP file) or `image_path` (below BIOVLM_SERVE_ROOT, which
   alone is read; without it no path is), and gives rows of `answer`, in order.
3. What biovlm would refuse is refused, with its letter: 400 for a question, image or path that is wrong, 403 for a path that leaves the
   root. All or nothing: one bad row, no answer.

MLflow puts the request's data into the message of an exception, and the trace of any other one into the response: `quiet` keeps both
out, so neither a question nor an image comes back or into a log. Answers are computed one after the other.

Behind `mlflow models serve`, step 1 proves the weights and not these lines, which MLflow has run by then; `biovlm serve`
(components/register/server.py) proves first.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, PERMISSION_DENIED
from mlflow.pyfunc import PythonModel

from components.platform.chat import Chat
from components.platform.settings import Settings
from components.platform.store import open_store
from components.register import quiet
from components.register.quiet import Refused
from model.errors import BiovlmError, DataError, ExitCode, MissingInputError, RefusedError, UsageError
from model.manifest import safe_join

MAX_ROWS = 64
MAX_IMAGE_BYTES = 64 * 2**20
CODES = {
    ExitCode.USAGE: INVALID_PARAMETER_VALUE,
    ExitCode.BAD_DATA: INVALID_PARAMETER_VALUE,
    ExitCode.MISSING_INPUT: INVALID_PARAMETER_VALUE,
    ExitCode.REFUSED: PERMISSION_DENIED,
}


def leave_no_bytecode(cached: str) -> None:
    """Remove what Python wrote beside the model's code when it read it: artifacts of a folder are read where they lie, and a file
    there that was not signed is refused by `biovlm serve` and named by `biovlm lineage verify`.

    Args:
        cached: `__cached__` of the code.
    """
    with contextlib.suppress(OSError):  # a place where nothing can be written holds no bytecode either
        Path(cached).unlink(missing_ok=True)
        Path(cached).parent.rmdir()


class Assistant(PythonModel):
    """One registered version."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chat: Chat | None = None
        self._root: Path | None = None

    def load_context(self, context: Any) -> None:
        """Load the export that the model's configuration names. Errors as `Chat`."""
        quiet.install()
        where, settings = context.model_config, Settings.from_environment()
        self._root = settings.serve_root
        self._chat = Chat(open_store(settings), settings, str(where["export"]), str(where["digest"]))

    def predict(self, context: Any, model_input: pandas.DataFrame, params: Any = None) -> pandas.DataFrame:
        """A table with a column `answer` from one with `question`, and `image` or `image_path`. Refused: see the module."""
        try:
            rows = model_input.to_dict(orient="records")
            answers = [self._answer(*asked) for asked in self._checked(rows)]
        except BiovlmError as error:
            raise Refused(str(error), CODES.get(error.exit_code, INTERNAL_ERROR)) from None
        except Exception as error:  # noqa: BLE001 (its text may quote the request)
            raise Refused(f"the assistant failed: {type(error).__name__}", INTERNAL_ERROR) from None
        return pandas.DataFrame({"answer": answers})

    def _checked(self, rows: list[Mapping[str, Any]]) -> list[tuple[Path | bytes, str]]:
        """Image and question of each row, before the first of them is answered."""
        if not 1 <= len(rows) <= MAX_ROWS:
            raise UsageError(f"{len(rows)} questions in one request, 1 to {MAX_ROWS} are answered", "ask in several requests")
        return [(self._image(row), _text(row, "question") or "") for row in rows]

    def _image(self, row: Mapping[str, Any]) -> Path | bytes:
        content, path = _text(row, "image"), _text(row, "image_path")
        if (content is None) == (path is None):
            raise UsageError("a question needs an image in one way", "give `image` (base64) or `image_path`, and not both")
        return _decoded(content) if content is not None else self._found(path or "")

    def _found(self, path: str) -> Path:
        """The file at a path of a request."""
        if self._root is None:
            raise RefusedError("no images are read by path here", "send the image as base64, or set BIOVLM_SERVE_ROOT")
        try:
            found = safe_join(self._root, path)
        except RefusedError:
            raise RefusedError("the image's path leaves the served folder", "give a path relative to it") from None
        if not found.is_file():
            raise MissingInputError("there is no image at that path", "give the path of a file, relative to the served folder")
        _refuse_big(found.stat().st_size)
        return found

    def _answer(self, image: Path | bytes, question: str) -> str:
        if self._chat is None:
            raise RefusedError("no assistant was loaded", "load the model with MLflow")
        with self._lock:
            try:
                return self._chat.answer(image, question)
            except (DataError, MissingInputError) as error:
                # The letter of a file names its path on this machine.
                words = error.message.replace(str(self._root), "").lstrip("/") if self._root else error.message
                raise type(error)(words, error.hint) from None


def _text(row: Mapping[str, Any], name: str) -> str | None:
    """A text of a row; None if the row has none (pandas writes NaN there)."""
    value = row.get(name)
    if value is None or (isinstance(value, float) and value != value):
        return None
    if not isinstance(value, str):
        raise UsageError(f"`{name}` is no text", "send question, image and image_path as texts")
    return value


def _decoded(content: str) -> bytes:
    _refuse_big(len(content) * 3 // 4)
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("`image` is not base64", "encode the bytes of a PNG, JPEG or BMP file, without line breaks") from None


def _refuse_big(size: int) -> None:
    if size > MAX_IMAGE_BYTES:
        raise DataError(
            f"the image has {size / 2**20:,.0f} MiB, the limit is {MAX_IMAGE_BYTES / 2**20:,.0f} MiB", "scale the image down"
        )
