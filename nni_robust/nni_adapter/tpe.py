"""NNI's TPE strategy with two repairs: it maximises, and it takes choices of inputs.

NNI 3.0's own hands its tuner the metric without a word on its direction, and the tuner minimises
unless it is told otherwise: a search for robust networks looks for the weakest. On spaces with an
``InputChoice``, such as DARTS' cells, it ends in ``NotImplementedError: as_legacy_dict``
(https://github.com/microsoft/nni/issues/5656 has both).
"""

from __future__ import annotations

from typing import Any

from nni.mutable import CategoricalMultiple, MutableAnnotation
from nni.nas.strategy import TPE as NniTPE

from nni_robust.errors import UserError

__all__ = ["TPE"]


class TPE(NniTPE):
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), NNI's tuner.

    Parameters
    ----------
    optimize_mode
        ``"maximize"`` or ``"minimize"`` the metric ``default``.
    seed
        Of the draws.
    tpe_args
        Settings of the estimator, see :class:`nni.algorithms.hpo.tpe_tuner.TpeTuner`.

    Raises
    ------
    UserError
        Before any work, if the space has a choice that is not of one value, or a constraint, which
        the tuner would not keep.
    """

    def __init__(
        self,
        *,
        optimize_mode: str = "maximize",
        seed: int | None = None,
        tpe_args: dict[str, Any] | None = None,
    ) -> None:
        if optimize_mode not in ("maximize", "minimize"):
            raise UserError(
                f"strategy.optimize_mode: {optimize_mode!r} is not allowed; allowed: maximize, "
                "minimize"
            )
        super().__init__(optimize_mode=optimize_mode, seed=seed, tpe_args=tpe_args)

    def _initialize(self, model_space: Any, engine: Any) -> Any:
        for label, mutable in model_space.simplify().items():
            single = not isinstance(mutable, CategoricalMultiple) or mutable.n_chosen == 1
            if not single or isinstance(mutable, MutableAnnotation):
                kind = "choice" if not single else "constraint"
                raise UserError(
                    f"strategy tpe cannot search this space: the {kind} '{label}' "
                    f"({type(mutable).__name__}) does not pick one value; random and "
                    "regularized-evolution can"
                )
        initialized: Any = super()._initialize(model_space, engine)
        return initialized

    def _run(self) -> None:
        # NNI asks the choices in the middle of its loop, and those of inputs have no answer.
        own = CategoricalMultiple.__dict__.get("as_legacy_dict")
        CategoricalMultiple.as_legacy_dict = _as_choice
        try:
            super()._run()
        finally:
            if own is None:
                del CategoricalMultiple.as_legacy_dict
            else:
                CategoricalMultiple.as_legacy_dict = own


def _as_choice(mutable: Any) -> dict[str, Any]:
    """One of several inputs as a choice of lists, which is how a sample has it."""
    return {"_type": "choice", "_value": [[value] for value in mutable.values]}
