"""Registration: the checkpoint becomes a plain transformers folder and a version of the registered model, with its lineage.

1. The checkpoint is exported (`model.architecture.export`) into the store under the checkpoint's digest; where heavy work is done
   elsewhere, the evaluation did that.
2. What is not an assistant that biovlm makes, or could run code when it is read, is not registered. The export is signed
   (components/platform/signing.py); the report was, by the evaluation.
3. A LoggedModel and a version are made in MLflow, or found again by the checkpoint's digest: the same candidate has one version,
   however often this step runs. MLflow can serve it (components/register/serving.py).
4. The version's tags follow from its lineage (components/platform/lineage): checkpoint, report, data, recipe, commit, licences.
5. The receipt holds `lineage.json`, and the hashes of what MLflow serves; MLflow's run holds the lineage too, and its digest is a tag.
   The receipt is signed as well. With BIOVLM_SIGNING=off, lineage and tags say that nothing is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial

from components.platform import champion, exports, inputs, signing
from components.platform.lineage import tracked, version
from components.platform.lineage.graph import Document
from components.platform.reference import Reference
from components.platform.settings import Settings
from components.platform.signing import Seal
from components.platform.step import Work, run_step
from components.platform.tracking import Tracking
from components.register.registry import Candidate, ensure_version
from model import manifest
from model.config import RegisterSlice
from model.errors import MissingInputError
from model.folders import check_assistant, refuse_code

KIND = "receipt"
USE = "research only: not a medical device, not for clinical decisions"


def run(piece: str, tracking: str, data: str, checkpoint: str, report: str, receipt: str) -> None:
    """Register or find the version of a checkpoint, and write the receipt's reference to the path `receipt`."""
    given = {"data": data, "checkpoint": checkpoint, "report": report}
    settings, asked = Settings.from_environment(), json.loads(piece)
    signed = partial(signing.was_signed, settings)
    run_step("register", "register", asked, given, receipt, _produce, partial(identity, tracking), signed, heavy=True)


def identity(tracking: str, given: Mapping[str, Reference]) -> dict[str, str]:
    """What belongs to the key. A new tracking store has no versions, so its mark belongs to it."""
    return {"checkpoint": given["checkpoint"].digest, "report": given["report"].digest, "tracking": tracking}


def _produce(work: Work) -> None:
    wanted, store = RegisterSlice.model_validate(work.piece), work.store
    exported = _exported(work)
    seals = _sealed(work, exported)
    lineage = version.signed(_lineage(work, wanted, exported), seals)
    seal = seals["export"]
    candidate = Candidate(
        registered_model=wanted.registered_model,
        checkpoint=work.inputs["checkpoint"].digest,
        export=exported,
        export_digest=seal.subject,
        tags={**tracked.tags(lineage), champion.RECEIPT_KEY: work.key, "biovlm.use": USE},
        figures={name: float(value) for name, value in work.inputs["report"].facts.get("figures", {}).items()},
        measured=_measured(work),
        attempt=work.log.attempt,
        versions=_versions(work),
    )
    made = ensure_version(work.settings, candidate)
    document = version.with_number(lineage, made.version)
    tracked.publish(Tracking(work.settings), wanted.registered_model, made.version, made.model_id, document)
    facts = {
        "registered_model": wanted.registered_model,
        "version": made.version,
        "model_id": made.model_id,
        "checkpoint": candidate.checkpoint,
        "export": exported,
        "seals": {name: one.model_dump() for name, one in seals.items()},
        "served": made.served,
        "figures": {"version": made.version},
    }
    with manifest.commit(work.final, KIND, work.parents, facts) as folder:
        (folder / version.FILE_NAME).write_bytes(document.to_bytes())
    signing.ensure(store, work.settings, store.uri(work.final))


def _sealed(work: Work, exported: str) -> dict[str, Seal]:
    """Sign the export, and verify the report's signature, which the evaluation made.

    Raises:
        RefusedError: The export could run code, is another kind of model, or a signature does not hold.
    """
    store, settings, report = work.store, work.settings, work.inputs["report"]
    here = settings.launcher == "process"
    if here:
        folder = store.fetch(exported)
        refuse_code(folder)
        check_assistant(folder)
    return {
        "export": signing.ensure(store, settings, exported, here),
        "report": signing.verify(store, settings, store.uri(report.folder), report.digest),
    }


def _lineage(work: Work, wanted: RegisterSlice, exported: str) -> Document:
    named = {role: work.source(source) for role, source in work.inputs.items()}
    recipe = (wanted.recipe, wanted.recipe_digest)
    return version.of_candidate(work.store, wanted.registered_model, named, exported, recipe, {"use": USE})


def _measured(work: Work) -> tuple[str, str]:
    """Name and digest of the data set of the report's first benchmark, which its figures are of."""
    key = next(iter(work.inputs["report"].facts["benchmarks"]))  # BENCHMARK/SET/SPLIT
    name = str(key).split("/")[1]
    return name, str(work.inputs["data"].facts["sets"][name]["digest"])


def _versions(work: Work) -> dict[str, str]:
    """Libraries with which the report was made."""
    record = work.store.record("evaluate", work.inputs["report"].folder.name)
    return dict(record.versions) if record else {}


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
