"""Copy a run's events into MLflow: one process does it, and steps never import MLflow for it.

1. On a laptop `pipelines.local` pumps a `Mirror` while the steps run. Elsewhere each step calls `copy_once` when it ends.
2. `run_started` opens the root run. A step's first number, or its end, opens its child run.
3. `progress` becomes points of curves; after a worker died and repeated some steps, only new points are kept.
4. `finished` adds parameters, the data sets that were read, the lineage with its digest as a tag, figures and small files; `reused`
   makes a child that names the run which made the result; `failed` closes the child with the exit code.

What goes wrong here does not stop a run: training is worth more than its picture. The caller is told, and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.platform.events import Event, EventType, Follower
from components.platform.lineage import steps
from components.platform.lineage.tracked import LINEAGE_FILE, LINEAGE_TAG
from components.platform.settings import Settings
from components.platform.store import StepRecord, open_store
from components.platform.tracking import KEY_TAG, REUSED_TAG, Tracking
from model.errors import BiovlmError

SMALL_FILE_BYTES = 256 * 1024
KEPT_SUFFIXES = frozenset({".json", ".html", ".txt", ".yaml"})
CONTEXTS = {"train": "training", "evaluate": "evaluation"}


class Mirror:
    """Follows one event log."""

    def __init__(self, settings: Settings, follower: Follower | None = None) -> None:
        self._settings = settings
        self._follower = follower or Follower(settings.events)
        self._store = open_store(settings)
        self._tracking: Tracking | None = None
        self._children: dict[tuple[str, int], str] = {}
        self._newest: dict[str, int] = {}

    def pump(self) -> None:
        """Copy what was appended since the last call."""
        points: dict[str, list[tuple[int, float, dict[str, float]]]] = {}
        for event in self._follower.new():
            if event.type is EventType.PROGRESS:
                self._collect(event, points)
            else:
                self._copy(event)
        for child, curve in points.items():
            self._open().curves(child, curve)

    def _open(self) -> Tracking:
        if self._tracking is None:
            self._tracking = Tracking(self._settings)
        return self._tracking

    def _child(self, event: Event) -> str:
        at = (event.step, event.attempt)
        if at not in self._children:
            self._children[at] = self._open().child(self._settings.run_id, event.step, event.attempt)
        return self._children[at]

    def _collect(self, event: Event, points: dict[str, list[tuple[int, float, dict[str, float]]]]) -> None:
        if not event.metrics or event.done is None or event.done <= self._newest.get(event.step, -1):
            return
        self._newest[event.step] = event.done
        points.setdefault(self._child(event), []).append((event.done, event.time, event.metrics))

    def _copy(self, event: Event) -> None:
        tracking = self._open()
        if event.type is EventType.RUN_STARTED:
            root = tracking.root(self._settings.run_id, {k: str(v) for k, v in event.facts.items() if not isinstance(v, list)})
            tracking.files(root, [p for p in (self._settings.recipe_file,) if p.is_file()])
        elif event.type is EventType.FINISHED:
            self._finished(event)
        elif event.type is EventType.REUSED:
            self._reused(event)
        elif event.type is EventType.FAILED:
            words = {"biovlm.message": event.message[:500], "biovlm.hint": event.hint[:500]}
            tracking.tags(self._child(event), {"biovlm.exit_code": str(event.exit_code), **words})
            tracking.finish(self._child(event), "FAILED", event.time)
        elif event.type is EventType.RUN_FINISHED:
            status = {0: "FINISHED", 75: "KILLED"}.get(event.exit_code or 0, "FAILED")
            tracking.finish(tracking.root(self._settings.run_id), status, event.time)

    def _finished(self, event: Event) -> None:
        if "folder" in event.facts:  # preflight leaves no artifact
            self._result(event, Path(event.facts["folder"]))
        self._open().finish(self._child(event), "FINISHED", event.time)

    def _result(self, event: Event, folder: Path) -> None:
        tracking, child = self._open(), self._child(event)
        kind, key = event.facts["kind"], event.facts["key"]
        record = self._store.record(kind, key)
        tags = {KEY_TAG: key, REUSED_TAG: "false", "biovlm.kind": kind, "biovlm.digest": event.facts["digest"]}
        if record is not None:
            tags |= {"biovlm.code": record.code} | {f"biovlm.{k}": str(v) for k, v in record.revision.items()}
            tracking.params(child, record.piece)
            tracking.inputs(child, self._sets_read(record), CONTEXTS.get(kind, kind))
        said = self._store.small(steps.name_of(kind, key))
        if said is not None:
            tracking.text(child, LINEAGE_FILE, said.decode())
            tags[LINEAGE_TAG] = steps.parse(said, steps.name_of(kind, key)).digest
        tracking.tags(child, tags)
        if event.facts.get("figures"):
            tracking.curves(child, [(0, event.time, _numbers(event.facts["figures"]))])
        if event.facts.get("cost"):
            tracking.curves(child, [(0, event.time, _numbers({f"cost.{k}": v for k, v in event.facts["cost"].items()}))])
        tracking.files(child, [p for p in sorted(folder.glob("*")) if _is_small(p)], "artifact")

    def _sets_read(self, record: StepRecord) -> dict[str, dict[str, Any]]:
        """Facts of the data sets that belong to the step's key."""
        source = record.inputs.get("data")
        facts = self._store.manifest_of(source.uri).facts if source else {}
        return {name: entry for name, entry in facts.get("sets", {}).items() if name in record.identity}

    def _reused(self, event: Event) -> None:
        tracking, child = self._open(), self._child(event)
        key = event.facts.get("key", "")
        maker = tracking.find({KEY_TAG: key, REUSED_TAG: "false"}, newest=True) if key else None
        tracking.tags(child, {KEY_TAG: key, REUSED_TAG: "true", "biovlm.made_by": maker or "unknown"})
        tracking.finish(child, "FINISHED", event.time)


def copy_once(settings: Settings) -> None:
    """Copy what no process has copied yet; for a step that is alone in its pod. How far it came is kept beside the log."""
    mark = settings.events.with_suffix(".mirrored")
    follower = Follower(settings.events, int(mark.read_text(encoding="utf-8")) if mark.is_file() else 0)
    try:
        Mirror(settings, follower).pump()
        mark.write_text(str(follower.offset), encoding="utf-8")
    except (BiovlmError, OSError):
        return  # the step's own result stands; a store that it needs is asked for by the step itself


def _is_small(path: Path) -> bool:
    return path.is_file() and path.suffix in KEPT_SUFFIXES and path.stat().st_size <= SMALL_FILE_BYTES


def _numbers(figures: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
