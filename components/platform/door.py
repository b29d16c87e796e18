"""What a step's door does before the step: what KFP gave this process goes where the rest of biovlm looks for it.

1. Who or what began the run is a parameter of the pipeline; it becomes BIOVLM_TRIGGER, and with it a fact of the lineage.
2. What KFP passed on for the Ray workers is kept (components/platform/task_config.py).
3. Keys come as variables from Secrets: KFP gives mounted Secrets no owner and mode, and those of a heavy step to its workers instead of
   its own pod. They are written into files of the home that their owner alone may read, the files are named instead, and the
   values leave the environment, so that no child inherits one.

On this machine nobody gives anything, and nothing happens.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from components.platform import task_config as tasks
from components.platform.settings import Settings
from model.manifest import cannot_write

KEYS = {
    "BIOVLM_SIGNING_KEY_PEM": "BIOVLM_SIGNING_KEY",
    "BIOVLM_SIGNER_PEM": "BIOVLM_SIGNER",
    "BIOVLM_TRUSTED_KEYS_PEM": "BIOVLM_TRUSTED_KEYS",
}
"""Variable with the text of keys -> variable with their place: one key is a file, several are a folder of files."""
BLOCK = re.compile(r"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----", re.S)


def enter(trigger: str = "", task_config: object = None) -> None:
    """Prepare this process for its step.

    Args:
        trigger: Who or what began the run; empty leaves what the environment says.
        task_config: What KFP passed on for the workers; only heavy steps get it.

    Raises:
        CannotWriteError: The home takes no files.
    """
    if trigger:
        os.environ["BIOVLM_TRIGGER"] = trigger
    tasks.keep(task_config)
    given = {place: text for name, place in KEYS.items() if (text := os.environ.pop(name, ""))}
    for variable, text in given.items():
        os.environ[variable] = str(_lay(Settings.from_environment().home / "keys" / variable.lower(), text))


def _lay(folder: Path, text: str) -> Path:
    """Write keys into files that their owner alone may read; the file, or the folder of several."""
    blocks = BLOCK.findall(text) or [text]  # what holds no key is for its reader to refuse
    files = [folder / f"{number}.pem" for number in range(len(blocks))]
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        for path, block in zip(files, blocks, strict=True):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
                stream.write(f"{block}\n")
    except OSError as error:
        raise cannot_write(folder, error) from error
    return files[0] if len(files) == 1 else folder
