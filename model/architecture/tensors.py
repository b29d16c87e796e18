"""Weights in files: safetensors only, and nothing taken on trust.

1. `write` stores named tensors in the order of their names, so equal weights give equal bytes.
2. `read` gives them back; a file that is not safetensors (a ZIP, a pickle, a cut or malformed header) is refused before any byte of
   it is used.
3. `check_names` and `check_finite` compare what came with what is needed; safetensors itself checks neither.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from model.errors import DataError, MissingInputError, RefusedError

SUFFIX = ".safetensors"


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write named tensors of any shape to `path`. Tensors that share memory are stored as copies."""
    # clone: safetensors refuses shared memory, and state dicts of tied weights share it.
    plain = {name: tensors[name].detach().to("cpu").clone().contiguous() for name in sorted(tensors)}
    save_file(plain, str(path))


def read(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of the file, on the CPU.

    Raises:
        MissingInputError: There is no such file.
        RefusedError: The file is not whole safetensors.
    """
    with _opened(path) as stream:
        return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)


def names(path: Path) -> frozenset[str]:
    """Names of the tensors of the file, from its header alone. Errors as `read`."""
    with _opened(path) as stream:
        return frozenset(stream.keys())


def check_names(found: Collection[str], expected: Collection[str], where: str) -> None:
    """DataError unless both hold the same names; the letter counts what is missing and unknown and names three of each."""
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        raise DataError(
            f"{where}: {len(missing)} tensors missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}",
            "the weights belong to another architecture; give the base models and the recipe they were made with",
        )


def check_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """DataError if a weight is NaN or infinite; the letter names the first such tensor and counts its bad values."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise DataError(
                f"{where}: {name} holds {bad:,} of {tensor.numel():,} values that are not finite numbers",
                "the run that wrote it diverged or the file was damaged; take an earlier checkpoint",
            )


def check_shapes(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], where: str) -> None:
    """DataError if names or shapes differ."""
    check_names(found, expected, where)
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise DataError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}",
                "the weights belong to a model of another size; give the base models they were made with",
            )


def _opened(path: Path) -> safe_open:
    if not path.is_file():
        raise MissingInputError(f"no weights at {path}", "check the path; the step that writes them may not have finished")
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except SafetensorError as error:
        raise RefusedError(
            f"{path} is not a safetensors file: {error}",
            "give weights in safetensors; pickled weights (.bin, .pt) run code when they are read and are never opened",
        ) from None
