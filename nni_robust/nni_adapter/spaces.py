"""What a trial is sent, in a form that NNI's web UI can show.

NNI 3.0 sends ``{'status', 'model_symbol', …, 'sample': {…}}`` as a trial's parameters, which the UI
draws as ``[object Object]`` (compare https://github.com/microsoft/nni/issues/5686). The UI still
honours NNI 2's key ``mutation_summary``; with it the parameters tab and the table show the
architecture.
"""

from __future__ import annotations

from typing import Any

from nni.nas.space import SimplifiedModelSpace

__all__ = ["ReadableModelSpace", "shown_space", "space_class", "summary"]

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
        shown.update({_shown_label(label): value for label, value in model.sample.items()})
    return shown


def shown_space(space: Any) -> dict[str, Any]:
    """A model space's choices as NNI's web UI shows and filters them, named as in :func:`summary`.

    Parameters
    ----------
    space
        NNI model space.

    Returns
    -------
    NNI's search space; empty where the trials show a code instead of the labels.
    """
    choices = space.simplify()
    if len(choices) > _MOST_LABELS and hasattr(space, "encode"):
        return {}
    return {
        _shown_label(label): {"_type": "choice", "_value": list(choice.values)}
        for label, choice in choices.items()
        if all(isinstance(v, (str, int, float)) for v in getattr(choice, "values", [None]))
    }


def _shown_label(label: Any) -> str:
    """The UI cuts a column's title at the second slash: "cell/0-2" and "cell/1-2" look alike."""
    return str(label).replace("/", ".")


class ReadableModelSpace(SimplifiedModelSpace):
    """NNI's simplified model space plus the key that its web UI reads."""

    def _dump(self) -> dict[str, Any]:
        dumped: dict[str, Any] = super()._dump()
        if self.sample is not None:
            dumped["mutation_summary"] = summary(self)
            if hasattr(self.evaluator, "key"):
                dumped["stored_key"] = self.evaluator.key(self)
        return dumped

    @classmethod
    def _load(cls, **attributes: Any) -> Any:
        attributes.pop("mutation_summary", None)
        key = attributes.pop("stored_key", None)
        model = super()._load(**attributes)
        if key is not None:
            model.stored_key = key  # of the trial's result in the store
        return model
