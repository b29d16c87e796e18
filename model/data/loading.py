"""From a data set to batches: the names that training and evaluation use, in the order in which they use them.

1. `open_dataset(folder)` verifies the files; `DataSet.records(split)` reads strictly (model/data/dataset.py).
2. `Prompter` makes tokens and targets of conversations (model/data/templates.py).
3. `examples(mixtures, ...)` tokenises what a stage learns from (model/data/examples.py).
4. `Plan(metadata, ...)` says which examples stand in which step, on which worker, in which forward pass (model/data/sampling.py,
   model/data/packing.py).
5. `collate` and `packed` make a `Batch` (model/data/collate.py); `PixelSource` reads the images (model/data/pixels.py).

`check(dataset)` is the one pass over all records and images that comes before (model/data/check.py).
"""

from model.data.check import CheckReport, check
from model.data.collate import collate, packed
from model.data.dataset import DataSet, Finding, open_dataset
from model.data.examples import Example, Examples, examples
from model.data.packing import Metadata, check_rows
from model.data.pixels import PixelSource
from model.data.sampling import Plan, Rules, Step, divided, packed_tokens
from model.data.templates import Prompter, chat_template

__all__ = [
    "open_dataset",
    "DataSet",
    "Finding",
    "Prompter",
    "chat_template",
    "examples",
    "Example",
    "Examples",
    "Metadata",
    "Plan",
    "Rules",
    "Step",
    "check_rows",
    "divided",
    "packed_tokens",
    "collate",
    "packed",
    "PixelSource",
    "check",
    "CheckReport",
]
