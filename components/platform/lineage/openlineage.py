"""A lineage as events of OpenLineage (openlineage.io, event schema 2-0-2), for catalogues that read them.

1. Every step becomes a START and a COMPLETE event of one run, whose id follows from the step's key: sent twice, it is the same run.
2. What it read and made are its input and output data sets, by kind and name, with their digest as version and their licences.
3. The pipeline run is the parent run. What OpenLineage has no facet for (code, machine, attempts, cost) stands in facets of our own.

Pure.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import uuid
from collections.abc import Iterator
from typing import Any

from components.platform.lineage.graph import Document, Kind, Node
from components.platform.lineage.text import label

SPEC = "https://openlineage.io/spec"
EVENT = f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
OWN = f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunFacet"
FACETS = {
    "parent": "1-0-1/ParentRunFacet.json#/$defs/ParentRunFacet",
    "processing_engine": "1-1-1/ProcessingEngineRunFacet.json#/$defs/ProcessingEngineRunFacet",
    "jobType": "2-0-3/JobTypeJobFacet.json#/$defs/JobTypeJobFacet",
    "version": "1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet",
}
NAMESPACE = "biovlm"
IDS = uuid.UUID("6f1d6f0e-3c0b-5d55-9d0c-6b7a3f6d6b10")
"""The namespace of our run ids."""
READ = ("learned from", "built on", "continues", "asked", "of", "judged by", "compared with", "on")
"""Roles by which an artifact depends on others; its step read those."""


def lines(document: Document) -> str:
    """The events as JSON, one a line, in the order in which they happened."""
    found = sorted(events(document), key=lambda event: (event["eventTime"], event["eventType"] == "COMPLETE"))
    return "".join(json.dumps(event, sort_keys=True) + "\n" for event in found)


def events(document: Document) -> Iterator[dict[str, Any]]:
    """Two events for each step."""
    for step in document.of(Kind.STEP):
        made = [
            node for node in document.nodes if any(e.target == step.id and e.role == "made by" for e in document.out_of(node.id))
        ]
        read = {edge.target for edge in document.out_of(step.id) if edge.role.startswith("read ")}
        read |= {edge.target for node in made for edge in document.out_of(node.id) if edge.role in READ}
        common = {
            "producer": producer(),
            "schemaURL": EVENT,
            "run": {"runId": _id(step.digest), "facets": _run_facets(document, step)},
            "job": {"namespace": NAMESPACE, "name": step.name, "facets": _job_facets()},
            "inputs": [_dataset(document, node) for node in document.nodes if node.id in read],
        }
        began = datetime.datetime.fromisoformat(str(step.facts["started"]).replace("Z", "+00:00"))
        seconds = step.facts.get("seconds")
        ended = began + datetime.timedelta(seconds=float(seconds) if isinstance(seconds, int | float) else 0.0)
        yield {**common, "eventType": "START", "eventTime": began.isoformat(), "outputs": []}
        outputs = [_dataset(document, node) for node in made]
        yield {**common, "eventType": "COMPLETE", "eventTime": ended.isoformat(), "outputs": outputs}


def producer() -> str:
    """Who says this, as a URI."""
    try:
        return f"urn:biovlm:{importlib.metadata.version('biovlm')}"
    except importlib.metadata.PackageNotFoundError:
        return "urn:biovlm:checkout"


def _run_facets(document: Document, step: Node) -> dict[str, Any]:
    beside = {edge.role: target for edge in document.out_of(step.id) if (target := document.node(edge.target))}
    around = {str(target.kind): target for edge in document.out_of(step.id) if (target := document.node(edge.target))}
    run = beside["in"].name
    libraries = around["libraries"].facts
    machine = around["machine"].facts if "machine" in around else {}
    return {
        "parent": _facet("parent", run={"runId": _id(run)}, job={"namespace": NAMESPACE, "name": "pipeline"}),
        "processing_engine": _facet("processing_engine", name="python", version=str(libraries.get("python", "unknown"))),
        "biovlm_step": _own(key=step.digest, run=run, **{k: v for k, v in step.facts.items() if k not in ("identity", "record")}),
        "biovlm_code": _own(code=around["code"].digest, commit=around["commit"].name, libraries=libraries),
        "biovlm_machine": _own(**machine),
    }


def _job_facets() -> dict[str, Any]:
    return {"jobType": _facet("jobType", processingType="BATCH", integration="BIOVLM", jobType="STEP")}


def _dataset(document: Document, node: Node) -> dict[str, Any]:
    under = [document.node(edge.target) for edge in document.out_of(node.id) if edge.role == "under"]
    facets = {"version": _facet("version", datasetVersion=node.digest)}
    if under:
        facets["biovlm_licence"] = _own(licences=sorted(licence.name for licence in under if licence))
    return {"namespace": NAMESPACE, "name": f"{node.kind}/{node.name or label(node)}", "facets": facets}


def _facet(name: str, /, **fields: Any) -> dict[str, Any]:
    return {"_producer": producer(), "_schemaURL": f"{SPEC}/facets/{FACETS[name]}", **fields}


def _own(**fields: Any) -> dict[str, Any]:
    return {"_producer": producer(), "_schemaURL": OWN, **fields}


def _id(name: str) -> str:
    return str(uuid.uuid5(IDS, name))
