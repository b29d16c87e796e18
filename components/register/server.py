"""`biovlm serve`: a version is proved before anything of it runs, and then answers over HTTP as behind `mlflow models serve`.

1. `proved(settings, address, folder)`: the ledger says which version the alias means. Its receipt, report and export must verify, with
   every byte; it must not be withdrawn, and be what passed the gate (components/platform/ledger/proof.py).
2. What MLflow holds of it is laid into a private folder and hashed: exactly the files that the signed receipt names. So the few lines of
   code in it (`assistant.py`) run only after the signature that covers them held, and are the bytes that were hashed.
3. `serve` loads that folder, and answers with MLflow's own scoring server: `POST /invocations`, `GET /ping`.

`mlflow models serve` on the version's address reads the same folder without step 2: whoever can write into MLflow's artifacts chooses
what it runs, before any signature is looked at. What loads then verifies the weights; the code beside them it cannot. Who serves a
hospital uses `biovlm serve`. It asks nobody who they are: it listens on this machine alone unless it is told otherwise, and a proxy that
knows the staff belongs before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from components.platform import champion, versions
from components.platform.ledger import proof
from components.platform.ledger.registry import Book
from components.platform.lineage import tracked
from components.platform.settings import Settings
from components.platform.store import open_store
from components.platform.versions import Version
from model.errors import MissingInputError, RefusedError


class Proved(NamedTuple):
    """A version that may be served."""

    version: Version
    folder: Path
    """What MLflow serves of it, as the receipt names it."""


def proved(settings: Settings, address: str, below: Path) -> Proved:
    """Prove the version at `address`, and lay what MLflow serves of it below a folder.

    Args:
        settings: Where store, registry and keys are.
        address: models:/NAME@ALIAS or models:/NAME/NUMBER.
        below: Empty, and of this process alone.

    Raises:
        RefusedError: A signature does not hold, the version is withdrawn, or MLflow holds other files than the receipt names.
        MissingInputError: The version, or something it needs, is gone.
    """
    found = versions.find(settings, address)
    book, receipt = Book(settings, found.name), found.tag(champion.RECEIPT_KEY)
    proof.of_version(book, found.version)
    facts = open_store(settings).manifest_of(f"steps/register/{receipt}").facts
    laid = book.tracking.laid(str(facts["model_id"]), below)
    if laid is None:
        raise MissingInputError(
            f"what MLflow serves of version {found.version} of {found.name} is gone", "run its recipe again: it registers it anew"
        )
    wrong = [f"{name} {words}" for name, words in tracked.otherwise(laid.files, facts.get("served", {}))]
    if wrong:
        raise RefusedError(
            f"what MLflow serves of version {found.version} of {found.name} is not what was signed: {'; '.join(wrong)}",
            "somebody changed the artifacts in MLflow: bring them back; nothing of them was run",
        )
    return Proved(found, laid.folder)


def serve(settings: Settings, folder: Path, host: str, port: int) -> None:
    """Answer until this process is told to end.

    Args:
        settings: Of this process.
        folder: What `proved` laid.
        host: Address to listen on.
        port: Port to listen on.
    """
    import mlflow
    import uvicorn
    from mlflow.pyfunc import scoring_server

    mlflow.set_tracking_uri(settings.tracking_uri)
    model = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
    uvicorn.run(scoring_server.init(model), host=host, port=port, log_level="warning")
