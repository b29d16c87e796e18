"""The folder that MLflow serves: a few small files that name the export, and the code that answers.

    MLmodel                                 flavour, signature, what must be installed
    assistant.py                            the model from code; nothing in the folder is pickled
    requirements.txt, python_env.yaml
    input_example.json, serving_input_example.json

1. `write(folder, served)` writes it. It is written here and not by `mlflow.pyfunc.save_model`, which needs pandas, tries the model and
   so would load it; a test compares the two.
2. The weights stay in the store: the model's configuration names the export and its digest, and who serves it verifies its signature
   (components/register/serving.py). So a version of any size is registered at once, and there is one copy to trust.

Which biovlm answers is the one that is installed where it is served; `requirements.txt` says which one registered the version.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import io
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from model.manifest import digest_of, sha256_file

CODE_FILE = "assistant.py"
CODE = '''"""A biovlm assistant. Research use only: not a medical device, not for clinical decisions."""

from mlflow.models import set_model

from components.register.serving import Assistant, leave_no_bytecode

leave_no_bytecode(__cached__)
set_model(Assistant())
'''
EXAMPLE, SERVING_EXAMPLE = "input_example.json", "serving_input_example.json"
INPUTS = (("question", True), ("image", False), ("image_path", False))
"""Column -> whether it must be there. An image comes as base64 of a PNG, JPEG or BMP file, or by its path below the served root."""
OUTPUTS = (("answer", True),)
SAID = ("torch", "transformers", "safetensors", "pillow", "numpy")
"""Libraries of which the version decides about answers."""


@dataclass(frozen=True)
class Served:
    """What the folder says."""

    model_id: str
    run: str
    created_ms: int
    """When the LoggedModel was made, in milliseconds since 1970."""
    export: str
    """Place of the export in the store."""
    digest: str
    """Digest of the export's manifest."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Library -> version with which the model was evaluated."""


def write(folder: Path, served: Served) -> dict[str, str]:
    """Write the folder; file -> SHA-256. The same for the same content, wherever it is written."""
    example = {"columns": ["question", "image"], "data": [["What is shown?", _picture()]]}
    texts = {
        CODE_FILE: CODE,
        EXAMPLE: json.dumps(example),
        SERVING_EXAMPLE: json.dumps({"dataframe_split": example}, indent=2),
        "requirements.txt": "\n".join(_requirements(served)) + "\n",
        "python_env.yaml": yaml.safe_dump(
            {"python": _python(served), "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}, sort_keys=False
        ),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    model = _mlmodel(served, sum(len(text.encode()) for text in texts.values()))
    (folder / "MLmodel").write_text(yaml.safe_dump(model), encoding="utf-8")
    return {name: sha256_file(folder / name) for name in sorted([*texts, "MLmodel"])}


def _mlmodel(served: Served, size_bytes: int) -> dict[str, Any]:
    """The content of the file `MLmodel`, in MLflow's layout."""
    flavour = {
        "cloudpickle_version": None,
        "code": None,
        "config": {"export": served.export, "digest": served.digest},
        "env": {"virtualenv": "python_env.yaml"},
        "loader_module": "mlflow.pyfunc.loaders.code_model",
        "model_code_path": CODE_FILE,
        "python_version": _python(served),
        "streamable": False,
    }
    return {
        "flavors": {"python_function": flavour},
        "is_signature_from_type_hint": False,
        "mlflow_version": importlib.metadata.version("mlflow-skinny"),
        "model_id": served.model_id,
        "model_size_bytes": size_bytes,
        "model_uuid": digest_of([served.model_id, served.digest])[:32],
        "prompts": None,
        "run_id": served.run,
        "saved_input_example_info": {
            "artifact_path": EXAMPLE,
            "pandas_orient": "split",
            "serving_input_path": SERVING_EXAMPLE,
            "type": "dataframe",
        },
        "signature": {"inputs": _columns(INPUTS), "outputs": _columns(OUTPUTS), "params": None},
        "type_hint_from_example": False,
        "utc_time_created": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(served.created_ms / 1000)),
    }


def _columns(columns: tuple[tuple[str, bool], ...]) -> str:
    return json.dumps([{"type": "string", "name": name, "required": needed} for name, needed in columns])


def _requirements(served: Served) -> list[str]:
    """What must be installed; versions of a build for a kind of processor (`+cpu`) are those of its release."""
    lines = [f"mlflow=={importlib.metadata.version('mlflow-skinny')}"]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # code that lies beside its image
        lines.append(f"biovlm[train,platform]=={importlib.metadata.version('biovlm')}")
    return lines + [f"{name}=={served.versions[name].partition('+')[0]}" for name in SAID if name in served.versions]


def _python(served: Served) -> str:
    return served.versions.get("python", platform.python_version())


def _picture() -> str:
    """A small grey picture that belongs to nobody, as base64 of a PNG file."""
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
