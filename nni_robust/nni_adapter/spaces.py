"""What a trial is sent, in a form that NNI's web UI can show.

NNI 3.0 sends ``{'status', 'model_symbol', …, 'sample': {…}}`` as a trial's parameters, which the UI
draws as ``[object Object]`` (compare https://github.com/microsoft/nni/issues/5686). The UI still
honours NNI 2's key ``mutation_summary``; with it the parameters tab and the table show the
architecture.
"""

from __future__ import annotations

from typing import Any

from nni.nas.space import SimplifiedModelSpace

__all__ = ["ReadableModelSpace", "space_class", "summary"]

#: More labels than this are shown as the space's short code instead of one column each.
_MOST_LABELS = 40


def space_class(model: Any) -> Any:
    """The model space's class behind an executable model, without NNI's tracing wrapper."""
    symbol = model.model.trace_symbol
    return getattr(symbol, "__wrapped__", symbol)


def summary(model: Any) -> dict[str, Any]:
    """Readable parameters of one trial: its phase, the space's short code, the labels."""
    shown: dict[str, Any] = {"phase": getattr(model.evaluator, "phase", "candidate")}
    if not getattr(model.evaluator, "uses_sample", True) or not model.sample:
        return shown
    encode = getattr(space_class(model), "encode", None)
    if encode is not None:
        code = encode(model.sample)
        shown["code"] = code if isinstance(code, str) else " ".join(map(str, code))
    if len(model.sample) <= _MOST_LABELS or encode is None:
        # The UI cuts a column's title at the second slash: "cell/0-2" and "cell/1-2" look alike.
        shown.update({str(k).replace("/", "."): value for k, value in model.sample.items()})
    return shown


class ReadableModelSpace(SimplifiedModelSpace):
    """NNI's simplified model space plus the key that its web UI reads."""

    def _dump(self) -> dict[str, Any]:
        dumped: dict[str, Any] = super()._dump()
        if self.sample is not None:
            dumped["mutation_summary"] = summary(self)
        return dumped

    @classmethod
    def _load(cls, **attributes: Any) -> Any:
        attributes.pop("mutation_summary", None)
        return super()._load(**attributes)
