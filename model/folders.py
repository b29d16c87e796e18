"""What must not be in a folder of weights or of results, whoever made it. Needs no torch.

1. `refuse_hidden` walks a folder itself and refuses what a signature or a manifest may not see: links, files with a second name,
   devices and pipes, names that begin with a dot. model-signing leaves `.git` and its kin out of what it signs.
2. `refuse_code` refuses what can run when it is read: by ending, by content (a pickle that calls itself something else), and by
   what a JSON file asks for (`auto_map`, `trust_remote_code`).
3. `check_type` and `check_assistant` compare `model_type` with what is understood.
"""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from model import manifest
from model.errors import DataError, MissingInputError, RefusedError

TOWER_TYPES = ("clip", "clip_vision_model")
LANGUAGE_TYPES = ("llama", "mistral", "qwen2")
ASSISTANT_TYPES = ("llava",)
UNSAFE_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack", ".py"}
)
UNSAFE_STARTS = {b"\x80\x02": "a pickle", b"\x80\x03": "a pickle", b"\x80\x04": "a pickle", b"\x80\x05": "a pickle"} | {
    b"PK\x03\x04": "a ZIP archive",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF\r\n": "an HDF5 file",
}
WEIGHTS = ".safetensors"


def refuse_hidden(folder: Path) -> None:
    """RefusedError if something below `folder` is no plain, visible file with one name, or no plain folder."""
    for entry in _walk(folder):
        what = _hidden(entry)
        if what:
            raise RefusedError(
                f"{Path(entry.path).relative_to(folder).as_posix()!r} in {folder} is {what}: a signature does not see all of it",
                "an artifact holds plain files only; remove what was added, or run the command again",
            )


def refuse_code(folder: Path, pickles_refused: bool = True) -> None:
    """RefusedError if something in the folder could run code when it is read."""
    if pickles_refused:
        unsafe = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in UNSAFE_SUFFIXES)
        if unsafe:
            raise RefusedError(
                f"{folder} holds {len(unsafe)} files that can run code when they are read: {unsafe[:3]}",
                "keep only config, tokenizer and .safetensors files; convert other weights in a sandbox first",
            )
    for path in sorted(folder.glob("*.json")):
        if path.name not in ("tokenizer.json", manifest.FILE_NAME):
            _refuse_remote_code(read_json(path), path)


def refuse_disguised(folder: Path) -> None:
    """RefusedError if a file is a pickle, an archive or an array by its content, or calls itself safetensors and is not."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            start = stream.read(8)
        if path.suffix.lower() == WEIGHTS:
            _refuse_bad_weights(path)
            continue
        found = next((name for magic, name in UNSAFE_STARTS.items() if start.startswith(magic)), "")
        if found or zipfile.is_zipfile(path):  # an archive is found by its end, whatever stands before it
            raise RefusedError(
                f"{path} is {found or 'a ZIP archive'} by its content, whatever its name says",
                "keep only config, tokenizer and .safetensors files; convert other weights in a sandbox first",
            )


def check_assistant(folder: Path) -> None:
    """RefusedError unless `config.json` is that of an assistant that biovlm makes: LLaVA over an understood tower and language model."""
    path = folder / "config.json"
    content = read_json(path)
    check_type(content, ASSISTANT_TYPES, str(path))
    for part, allowed in (("vision_config", TOWER_TYPES), ("text_config", LANGUAGE_TYPES)):
        inner = content.get(part)
        check_type(inner if isinstance(inner, dict) else {}, allowed, f"{part} of {path}")


def check_type(content: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    """RefusedError unless the `model_type` is allowed."""
    found = content.get("model_type")
    if found not in allowed:
        raise RefusedError(f"{where} has model_type {found!r}, understood are {', '.join(allowed)}", "choose one of these models")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. MissingInputError: there is none. DataError: it is no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingInputError(f"no {path.name} in {path.parent}", "give a folder in the layout of transformers") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {type(error).__name__}", "fetch the file again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds {type(value).__name__}, expected an object", "fetch the file again")
    return value


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Every entry below `folder`; no link is followed."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))


def _hidden(entry: os.DirEntry[str]) -> str:
    """What makes an entry unfit for an artifact; empty if nothing does."""
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        return "a symbolic link"
    if entry.name.startswith("."):
        return "hidden by its name"
    if stat.S_ISDIR(status.st_mode):
        return ""
    if not stat.S_ISREG(status.st_mode):
        return "a device, pipe or socket"
    return "a file with a second name elsewhere (a hard link)" if status.st_nlink > 1 else ""


def _refuse_bad_weights(path: Path) -> None:
    try:
        with safe_open(str(path), framework="numpy"):
            return
    except SafetensorError as error:
        raise RefusedError(
            f"{path} is not a safetensors file: {error}", "write the weights again with safetensors; it was changed or cut"
        ) from None


def _refuse_remote_code(content: dict[str, Any], path: Path) -> None:
    for holder in _objects(content):
        if holder.get("auto_map") or holder.get("trust_remote_code") or holder.get("custom_pipelines"):
            raise RefusedError(
                f"{path} asks for code of its own (auto_map, custom_pipelines or trust_remote_code)",
                "biovlm never runs code that comes with weights; take a model that transformers knows itself",
            )


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """`value` and everything inside it that is a JSON object."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _objects(inner)
