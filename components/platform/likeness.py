"""How alike two artifacts are that should be the same: to the bit, or how far apart their numbers lie."""

from __future__ import annotations

from pathlib import Path

from model.manifest import Manifest


def differing_files(was: Manifest, made: Manifest) -> list[str]:
    """Paths of the files that are not the same in both, sorted."""
    old, new = ({entry.path: entry.sha256 for entry in one.files} for one in (was, made))
    return sorted(path for path in {*old, *new} if old.get(path) != new.get(path))


def weights_apart(was: Path, made: Path) -> float | None:
    """The largest difference of a weight, as a share of the largest weight of its tensor; None if the folders hold other tensors.

    Args:
        was: A checkpoint.
        made: Another one.
    """
    from safetensors.torch import load_file  # torch: only where bytes are not equal

    worst = 0.0
    names = [sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")) for folder in (was, made)]
    if names[0] != names[1]:
        return None
    for name in names[0]:
        old, new = load_file(was / name), load_file(made / name)
        if {key: value.shape for key, value in old.items()} != {key: value.shape for key, value in new.items()}:
            return None
        for key, value in old.items():
            largest = max(float(value.double().abs().max()), 1e-12)
            worst = max(worst, float((value.double() - new[key].double()).abs().max()) / largest)
    return worst
