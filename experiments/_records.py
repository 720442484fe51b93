"""One line per finished trial in ``candidates.jsonl``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nni.nas.space import ModelStatus

from nni_robust.nni_adapter.spaces import summary
from nni_robust.store import Store, append_record, mend_records, read_records

__all__ = ["Recorder"]

#: Phases whose metric is robust accuracy; that of the others is a score of their own.
_ACCURACY = ("candidate", "supernet", "screening")


class Recorder:
    """Listens to an engine and appends a record when a trial has ended.

    Parameters
    ----------
    run
        The run folder.
    store
        Where the trials keep their results.
    report
        Takes one line of progress.
    total
        Candidates expected, for the progress lines.
    before
        Trials before the first candidate, such as a supernet's.
    attributes
        Counts of a sample's topology, where the space offers them.
    """

    def __init__(
        self,
        run: Path,
        store: Store,
        report: Callable[[str], None],
        total: int | None,
        before: int = 0,
        attributes: Callable[[Mapping[str, Any]], dict[str, float]] | None = None,
    ) -> None:
        self.path = run / "candidates.jsonl"
        self.store, self.report, self.attributes = store, report, attributes
        self.total, self.before = total, before
        mend_records(self.path)  # what is taken out comes again when the past is replayed
        self.done = {
            r["key"] for r in read_records(self.path) if r.get("status") == "ok" and r.get("key")
        }
        self._metrics: dict[int, Any] = {}  # of evaluators that keep no record, by ordinal

    def listen(self, engine: Any) -> None:
        """Register with an engine."""
        engine.register_model_event_callback("final_metric", self._on_metric)
        engine.register_model_event_callback("training_end", self._on_end)

    def _on_metric(self, event: Any) -> None:
        metric = event.metric if isinstance(event.metric, dict) else {"default": event.metric}
        self._metrics[event.model.ordinal] = metric

    def _on_end(self, event: Any) -> None:
        model, evaluator = event.model, event.model.evaluator
        if event.status == ModelStatus.Interrupted:
            return  # by Ctrl-C; a resumed run does it
        key = evaluator.key(model) if hasattr(evaluator, "key") else None
        if key is not None and key in self.done:
            return
        kept = self.store.result(key) if key is not None else None
        damage = (kept or {}).get("warnings", [])
        phase = str(getattr(evaluator, "phase", "candidate"))
        for warning in damage:
            self.report(f"warning: {phase}: {warning}")
        if phase.startswith("final"):
            return
        metrics = (kept or {}).get("metrics") or self._metrics.get(model.ordinal)
        failed = event.status != ModelStatus.Trained or metrics is None
        sample = dict(model.sample) if getattr(evaluator, "uses_sample", True) else {}
        record = {
            "phase": phase,
            "index": model.ordinal,
            "key": key,
            "trial": (kept or {}).get("trial"),
            "sample": sample,
            "code": summary(model).get("code"),
            "attributes": self.attributes(sample) if sample and self.attributes else {},
            "metrics": {} if failed else metrics,
            "history": (kept or {}).get("history", []),
            "status": "failed" if failed else "ok",
            "error": self._error(key) if failed else None,
        }
        for more in ("fsp", "reliability"):
            if kept is not None and more in kept:
                record[more] = kept[more]
        if kept is None and not failed and hasattr(evaluator, "reliability_of"):
            record |= evaluator.reliability_of(model.sample)  # answered without a trial
        if damage:
            record["warnings"] = damage
        append_record(self.path, record)
        if not failed and key is not None:
            self.done.add(key)
        self.report(_line(record, self.total, self.before))

    def _error(self, key: str | None) -> str:
        why = self.store.failure(key) if key else None
        return why or "the trial ended without a result; its log is in NNI's web UI"


def _line(record: dict[str, Any], total: int | None, before: int) -> str:
    name = record["phase"]
    if name == "candidate":
        name = f"candidate {record['index'] - before + 1}" + (f" of {total}" if total else "")
        # Its number in tables and in candidates.jsonl, where a supernet counts, too.
        name += f" (trial {record['index']})"
    if record["status"] != "ok":
        return f"{name}: failed: {record['error']}"
    metrics = record["metrics"]
    accuracy = record["phase"] in _ACCURACY
    shown = [f"robust {metrics['default']:.1%}" if accuracy else f"score {metrics['default']:.3g}"]
    if "clean" in metrics:
        shown.insert(0, f"clean {metrics['clean']:.1%}")
    if "macs" in metrics:
        shown.append(f"{metrics['macs'] / 1e6:.2f} M MACs")
    if "seconds" in metrics:
        shown.append(f"{metrics['seconds']:.0f} s")
    unreliable = (record.get("reliability") or {}).get("unreliable")
    return f"{name}: " + ", ".join(shown) + (" (UNRELIABLE)" if unreliable else "")
