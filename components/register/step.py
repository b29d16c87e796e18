"""Registration: the checkpoint becomes a plain transformers folder and a version of the registered model, with its lineage.

1. The checkpoint is exported (`model.architecture.export`) into the store under the checkpoint's digest; where heavy work is done
   elsewhere, the evaluation did that.
2. A LoggedModel and a version are made in MLflow, or found again by the checkpoint's digest: the same candidate has one version,
   however often this step runs.
3. The version's tags follow from its lineage (components/platform/lineage): checkpoint, report, data, recipe, commit, licences.
4. The receipt holds `lineage.json`; MLflow's run holds it too, and its digest is a tag.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial

from components.platform import champion, exports, inputs
from components.platform.lineage import tracked, version
from components.platform.reference import Reference
from components.platform.step import Work, run_step
from components.platform.tracking import Tracking
from components.register.registry import Candidate, ensure_version
from model import manifest
from model.config import RegisterSlice
from model.errors import MissingInputError

KIND = "receipt"
USE = "research only: not a medical device, not for clinical decisions"


def run(piece: str, tracking: str, data: str, checkpoint: str, report: str, receipt: str) -> None:
    """Register or find the version of a checkpoint, and write the receipt's reference to the path `receipt`."""
    given = {"data": data, "checkpoint": checkpoint, "report": report}
    run_step("register", "register", json.loads(piece), given, receipt, _produce, partial(identity, tracking), heavy=True)


def identity(tracking: str, given: Mapping[str, Reference]) -> dict[str, str]:
    """What belongs to the key. A new tracking store has no versions, so its mark belongs to it."""
    return {"checkpoint": given["checkpoint"].digest, "report": given["report"].digest, "tracking": tracking}


def _produce(work: Work) -> None:
    wanted, store = RegisterSlice.model_validate(work.piece), work.store
    checkpoint, report = work.inputs["checkpoint"], work.inputs["report"]
    exported = _exported(work)
    named = {role: work.source(source) for role, source in work.inputs.items()}
    recipe = (wanted.recipe, wanted.recipe_digest)
    lineage = version.of_candidate(store, wanted.registered_model, named, exported, recipe, {"use": USE})
    candidate = Candidate(
        registered_model=wanted.registered_model,
        checkpoint=checkpoint.digest,
        source=store.address(exported),
        tags={**tracked.tags(lineage), champion.RECEIPT_KEY: work.key, "biovlm.use": USE},
        figures={name: float(value) for name, value in report.facts.get("figures", {}).items()},
        sets=work.inputs["data"].facts["sets"],
        attempt=work.log.attempt,
    )
    number, model_id = ensure_version(work.settings, candidate)
    document = version.with_number(lineage, number)
    tracked.publish(Tracking(work.settings), wanted.registered_model, number, model_id, document)
    facts = {
        "registered_model": wanted.registered_model,
        "version": number,
        "model_id": model_id,
        "checkpoint": checkpoint.digest,
        "export": exported,
        "figures": {"version": number},
    }
    with manifest.commit(work.final, KIND, work.parents, facts) as folder:
        (folder / version.FILE_NAME).write_bytes(document.to_bytes())


def _exported(work: Work) -> str:
    """Place of the checkpoint's export in the store, where it is after this.

    Raises:
        MissingInputError: Heavy work is done elsewhere, so this machine may have no torch, and the evaluation left no export.
    """
    checkpoint, store = work.inputs["checkpoint"], work.store
    if work.settings.launcher == "process":
        exports.ensure(checkpoint, lambda: inputs.verified(work.inputs["data"], store)["bases"], store)
    elif not exports.is_there(checkpoint, store):
        raise MissingInputError(
            f"the export of checkpoint {checkpoint.digest[:12]} is not in {work.settings.shared_store}",
            f"the evaluation makes it: remove {store.uri(work.inputs['report'].folder)} from the store, and run again",
        )
    return exports.uri_of(checkpoint)
