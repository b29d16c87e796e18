"""What is proved of a version before it becomes champion again, or for the first time.

1. Its receipt and checkpoint are those of which the ledger tells; the tags of the registry only say where to look.
2. The signatures of its receipt, its report and its export hold, every byte (of the export by its manifest where its bytes are on
   other machines).
3. Neither it nor anything that it was made from is withdrawn (components/platform/impact/marks.py).
4. Every data set and base model that it was made from has a licence, and they are those with which it passed the gate.
"""

from __future__ import annotations

from components.platform import signing
from components.platform.champion import CHECKPOINT_DIGEST, EXPORT, RECEIPT_KEY
from components.platform.impact import marks
from components.platform.ledger.chain import passing
from components.platform.ledger.registry import Book
from components.platform.lineage.licences import Terms, strictest
from components.platform.lineage.version import read
from components.platform.store import Store, open_store
from model.errors import MissingInputError, RefusedError
from model.manifest import digest_of


def of_version(book: Book, version: str) -> dict[str, str]:
    """Prove a version that passed the gate; name -> digest of what was proved.

    Raises:
        RefusedError: A signature, a digest or a licence does not hold. MissingInputError: An artifact or the version is gone.
    """
    tags, told = book.tracking.numbered_tags(book.name, version) or {}, passing(book.entries(), version)
    store, known = open_store(book.settings), told.evidence if told else {}
    for tag in (RECEIPT_KEY, CHECKPOINT_DIGEST, EXPORT):
        if tag not in tags:
            raise MissingInputError(
                f"version {version} of {book.name} has no tag {tag}: biovlm did not register it", "name another"
            )
    uri = f"steps/register/{tags[RECEIPT_KEY]}"
    found = {"receipt": store.manifest_of(uri).digest, "checkpoint": tags[CHECKPOINT_DIGEST]}
    found |= signatures(book, store, tags[RECEIPT_KEY], tags[EXPORT], found["checkpoint"])
    found["licences"] = digest_of(licences(store, tags[RECEIPT_KEY]))
    for name, digest in found.items():
        if known.get(name, digest) != digest:
            raise RefusedError(
                f"the {name} of version {version} is {digest[:12]}, and was {known[name][:12]} when it passed the gate",
                "it was replaced since; bring it back, or name another version",
            )
    return found


def signatures(book: Book, store: Store, receipt: str, export: str, checkpoint: str) -> dict[str, str]:
    """Verify the signatures of receipt, report and export; name -> digest of what they cover.

    Args:
        book: Of the model.
        store: Where they are.
        receipt: Key of the version's receipt.
        export: Place of the export.
        checkpoint: Digest of the checkpoint that it must be made from.

    Raises:
        RefusedError: One does not hold, or what it was made from is withdrawn. MissingInputError: One is gone.
    """
    record = store.record("register", receipt)
    if record is None:
        raise MissingInputError(
            f"there is no record of the receipt {receipt[:12]}", "the store was emptied; run the recipe again"
        )
    report = record.inputs["report"]
    marks.refuse_version(store, receipt)
    found, settings = store.manifest_of(export), book.settings
    if found.parents.get("checkpoint") != checkpoint:
        raise RefusedError(f"{export} is the export of another checkpoint", "remove it, and run the recipe again")
    signing.verify(store, settings, f"steps/register/{receipt}")
    signing.verify(store, settings, report.uri, report.digest)
    if settings.launcher == "process":
        signing.verify(store, settings, export, found.digest)
    else:
        signing.check(store, settings, export, found.digest)
    return {"report": report.digest, "export": found.digest}


def licences(store: Store, receipt: str) -> list[str]:
    """Licences of everything that the weights of the version with this receipt depend on, sorted, as its lineage has them.

    Raises:
        RefusedError: One is not known: what nobody wrote down allows nothing. MissingInputError: The lineage is gone.
    """
    taint = strictest(read(store, receipt))
    if taint.terms is Terms.UNKNOWN:
        names = ", ".join(sorted(name for name, _ in taint.sources)) or "any of its sources"
        raise RefusedError(f"no licence is known of {names}", "write it into the recipe or the data registry")
    return list(taint.licences)
