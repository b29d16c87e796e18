"""How a worker's error reaches the step: as a small file, so that Ray neither retries it nor wraps it.

1. A worker that meets a BiovlmError calls `write`: exit code, message and hint, in the step's scratch folder.
2. The step calls `raise_letter` when Ray is done, and the error goes on as if there had been no Ray in between.
"""

from __future__ import annotations

import json
from pathlib import Path

from model import errors, manifest

NAME = "letter.json"


def write(scratch: Path, error: errors.BiovlmError) -> None:
    """Keep the first letter; with several workers, the others fail because of the first."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with (scratch / NAME).open("x", encoding="utf-8") as stream:
            json.dump({"type": type(error).__name__, "message": error.message, "hint": error.hint}, stream)
    except FileExistsError:
        return
    except OSError as failure:
        raise manifest.cannot_write(scratch / NAME, failure) from failure


def raise_letter(scratch: Path) -> None:
    """Raise what a worker wrote; do nothing if none did."""
    try:
        content = json.loads((scratch / NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return
    raise errors.kind_named(content["type"])(content["message"], content["hint"]) from None
