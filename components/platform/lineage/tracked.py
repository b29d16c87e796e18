"""The lineage of a version in MLflow, where auditors look.

1. `tags(document)` are the version's tags, from its document alone: registration writes them, and `differing` compares them later.
2. `publish` keeps the document with the run that registered the version, its digest as the tag `biovlm.lineage`, and says the MLflow
   way which data sets were learned from and which were asked: as inputs of the run, and as metrics of the LoggedModel, which is how
   `search_logged_models(datasets=[...])` finds it.
3. `differing` and `served_otherwise` say what MLflow holds otherwise: a tag that was edited, a run that was deleted, an artifact that
   is gone, a served file that is another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from components.platform import champion
from components.platform.lineage import licences
from components.platform.lineage.graph import Document, Edge, Kind, Node
from components.platform.lineage.version import FILE_NAME, LINEAGE_TAG
from components.platform.tracking import Tracking

LINEAGE_FILE = f"lineage/{FILE_NAME}"
"""Of a step's document, in the run of the step."""
LEARNED, ASKED = "biovlm.learned_from", "biovlm.asked"
CONTEXTS = {LEARNED: "training", ASKED: "evaluation"}
SHORT = 16


def tags(document: Document) -> dict[str, str]:
    """The tags of a version that its document decides."""
    taint = licences.strictest(document)
    named = {edge.role: edge for edge in document.out_of(document.about)}
    weights, export, recipe = (named[role] for role in ("weights of", "served as", "under"))
    recipe_node = document.node(recipe.target)
    commits = sorted({node.name for node in _learning(document)})
    return {
        champion.CHECKPOINT_DIGEST: _digest(weights),
        champion.CHECKPOINT_PATH: str(weights.facts["uri"]),
        "biovlm.report": _digest(named["judged by"]),
        "biovlm.data": _digest(named["data of"]),
        champion.EXPORT: str(export.facts["uri"]),
        "biovlm.recipe": recipe_node.name if recipe_node else "",
        "biovlm.recipe_digest": _digest(recipe),
        "biovlm.commit": ", ".join(name.removesuffix("+changes") for name in commits),
        "biovlm.dirty": str(any(name.endswith("+changes") for name in commits)).lower(),
        "biovlm.licences": ", ".join(taint.licences),
        "biovlm.strictest_licence": taint.strictest,
        "biovlm.terms": taint.terms.name.lower(),
    }


def publish(tracking: Tracking, model: str, number: str, model_id: str, document: Document) -> None:
    """Let MLflow hold a version's document; the same one any number of times."""
    run = tracking.run_of(model, number)
    tracking.text(run, file_of(document.digest), document.to_bytes().decode())
    for metric, sets in sets_of(document).items():
        tracking.inputs(run, sets, CONTEXTS[metric])
        tracking.saw(run, model_id, {name: str(facts["digest"]) for name, facts in sets.items()}, metric)
    tracking.client.set_model_version_tag(model, number, LINEAGE_TAG, document.digest)


def file_of(digest: str) -> str:
    """Where a version's document is among the artifacts of its run. Registered again for a new report, a version has another one."""
    return f"lineage/{digest[:SHORT]}/{FILE_NAME}"


def sets_of(document: Document) -> dict[str, dict[str, dict[str, str]]]:
    """Metric -> name -> facts of each data set that the weights learned from, and of each that was only asked."""
    learned = {node.id for node in document.ancestors(document.about, licences.LEARNED)}
    asked = {edge.target for edge in document.edges if edge.role == "asked"}
    return {LEARNED: _facts(document, learned), ASKED: _facts(document, asked)}


def differing(
    tracking: Tracking, model: str, number: str, found: Mapping[str, str], document: Document
) -> Iterator[tuple[str, str]]:
    """(place, what is wrong there) of all that MLflow holds of a version otherwise than its document says."""
    for name, value in {**tags(document), LINEAGE_TAG: document.digest}.items():
        if found.get(name) != value:
            yield f"tag {name}", f"it is {found.get(name, 'missing')[:40]!r}, the lineage says {value[:40]!r}"
    run = tracking.run_of(model, number)
    kept = tracking.kept(run, file_of(document.digest)) if run else None
    if kept is None:
        yield f"run {run or 'of the version'}", "the run was deleted, or its artifact with the lineage is missing"
    elif kept.encode() != document.to_bytes():
        yield f"run {run}, {file_of(document.digest)}", "it is not the document of the receipt"


def served_otherwise(tracking: Tracking, model_id: str, said: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(place, what is wrong there) of all that MLflow serves otherwise than the receipt says (file -> SHA-256)."""
    found = tracking.served(model_id)
    if found is None:
        yield f"LoggedModel {model_id}", "it was deleted, or its artifacts are missing"
        return
    for name, words in otherwise(found, said):
        yield f"LoggedModel {model_id}, {name}", f"it {words}"


def otherwise(found: Mapping[str, str], said: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(file, how it differs) between two lists of file -> SHA-256."""
    for name in sorted(found.keys() | said.keys()):
        if found.get(name) != said.get(name):
            yield name, "is missing" if name not in found else "was added" if name not in said else "has another SHA-256"


def _facts(document: Document, ids: set[str]) -> dict[str, dict[str, str]]:
    holds = {edge.target: edge for edge in document.edges if edge.role == "holds"}
    found: dict[str, dict[str, str]] = {}
    for node in document.nodes:
        if node.id in ids and node.kind is Kind.SET:
            known = {key: str(value) for key, value in holds[node.id].facts.items()} if node.id in holds else {}
            found[node.label] = {**known, "digest": node.digest}
    return found


def _learning(document: Document) -> Iterator[Node]:
    """Commits of the code that trained the weights."""
    weights = {node.id for node in document.ancestors(document.about, licences.LEARNED) if node.kind is Kind.CHECKPOINT}
    made = {edge.target for edge in document.edges if edge.source in weights and edge.role == "made by"}
    at = {edge.target for edge in document.edges if edge.source in made and edge.role == "at"}
    return (node for node in document.nodes if node.id in at)


def _digest(edge: Edge) -> str:
    return edge.target.partition(":")[2]
