"""NNI's TPE strategy with three repairs: it maximises, takes choices of inputs, and does not sleep.

NNI 3.0's own hands its tuner the metric without a word on its direction, and the tuner minimises
unless it is told otherwise: a search for robust networks looks for the weakest. On spaces with an
``InputChoice``, such as DARTS' cells, it ends in ``NotImplementedError: as_legacy_dict``
(https://github.com/microsoft/nni/issues/5656 has both). And it sleeps a second after every model,
also where workers wait.
"""

from __future__ import annotations

from typing import Any

import nni
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
        # NNI's loop asks the choices in its middle, where those of inputs have no answer, and
        # sleeps a second after every model.
        choices = {label: _as_choice(m) for label, m in self.model_space.simplify().items()}
        with self._thread_lock:
            self.tuner.update_search_space(choices)
        while self.wait_for_resource():
            with self._thread_lock:
                try:
                    sample = self.tuner.generate_parameters(self._model_count)
                except nni.NoMoreTrialError:
                    return
                model = self.model_space.freeze(sample)
                self._model_to_id[model] = self._model_count
                self._model_count += 1
            self.engine.submit_models(model)


def _as_choice(mutable: Any) -> Any:
    """The tuner's form of a choice; one of several inputs is a choice of lists, as in a sample."""
    if isinstance(mutable, CategoricalMultiple):
        return {"_type": "choice", "_value": [[value] for value in mutable.values]}
    return mutable.as_legacy_dict()
