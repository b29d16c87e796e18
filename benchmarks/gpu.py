"""One GPU: packed attention, a LoRA step of an 8B shape with its tower, the tax of a frozen tower, one image with many questions.

    python -m benchmarks.gpu [g1 g2 g4 shared] [--out FILE] [--dry]        or `python -m benchmarks gpu`

Needs torch >= 2.11, transformers >= 5.17 and peft, and nothing of this project but the folder onegpu/. TRL with datasets, if importable,
is measured beside. Random weights: speed does not look at them. `--dry` runs tiny shapes on a CPU in float32.

1. g1: one layer's attention over a packed row of the radiology mix, forward and backward: varlen_attn, FlexAttention with a document
   mask, dense mask, documents padded one a row; error against float64 document by document; gradient across documents (must be 0);
   and FlexAttention with the shared-image mask against the same questions as separate documents.
2. g2: tokens/s, supervised tokens/s, MFU (formula in `step_flops`; of 989 TFLOP/s, attention counted as isolated documents) and peak
   GiB of our form of a step: frozen tower without autograd, flex, blocks compiled one by one, head on supervised positions; against
   transformers' own forward on padded batches (what its Trainer runs) without and with checkpointing, and TRL's trainer.
3. g4: the same for a small language model, where the tower weighs: checkpointed default, none, no autograd in the tower, cached
   features from pinned memory.
4. shared: 11 questions an image: branches on one trunk, packed documents, padded batch; questions a second.

Not run so far: anything on a GPU. A dry run reaches every line but CUDA's timers and memory, varlen_attn, compiled flex, TRL.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.onegpu.attention import g1
from benchmarks.onegpu.parts import g2, g4, shared
from benchmarks.onegpu.shapes import DRY, Sizes

PARTS: dict[str, Callable[[Sizes], dict[str, Any]]] = {"g1": g1, "g2": g2, "g4": g4, "shared": shared}


def run(parts: Sequence[str], sizes: Sizes) -> dict[str, Any]:
    """The parts in turn; one that fails leaves its reason, and the memory to the next."""
    found: dict[str, Any] = {}
    for part in parts:
        print(f"{part} ...", file=sys.stderr, flush=True)
        try:
            found[part] = PARTS[part](sizes)
        except Exception as error:
            if sizes.device != "cuda":
                raise
            found[part] = f"failed: {type(error).__name__}: {error}"
        gc.collect()
        if sizes.device == "cuda":
            torch.cuda.empty_cache()
    return found


def measure() -> dict[str, float]:
    """All parts, flat; nothing, with the reason said, where there is no GPU."""
    if not torch.cuda.is_available():
        print("gpu: skipped, there is no CUDA device (`python -m benchmarks.gpu --dry` runs tiny shapes)", file=sys.stderr)
        return {}
    return dict(_flat(run(list(PARTS), Sizes())))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name} {key}".strip())
    elif isinstance(value, int | float):
        yield name, float(value)


def main() -> None:
    """From the command line; JSON to the file, or to stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    sizes = DRY if given.dry else Sizes()
    about = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if sizes.device == "cuda" else "cpu"}
    text = json.dumps({**about, **run(given.parts or list(PARTS), sizes)}, indent=1)
    if given.out:
        given.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
