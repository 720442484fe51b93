"""Sections of an experiment file with settings of their own: ``final`` and ``nni``."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from nni_robust.config import strict
from nni_robust.errors import UserError
from nni_robust.training import Recipe
from nni_robust.training._recipe_parts import number

__all__ = ["Final", "NniSettings"]


@dataclasses.dataclass(frozen=True)
class Final:
    """What happens after the search: the winner and its rivals are trained and tested.

    Parameters
    ----------
    train
        Recipe of the final training, from scratch.
    attacks
        Attacks on the test split.
    limit
        Test pictures used; None is all.
    eps_factors
        Strengths of the accuracy-versus-eps curve, as multiples of the task's eps; in L∞ those
        above 1 become 1, the whole range of pixels.
    steps
        Numbers of steps of PGD for the accuracy-versus-steps curve; empty for none.
    corruptions
        Common corruptions of the test pictures: names, or ``[standard]`` (the fifteen of
        CIFAR-10-C) or ``[all]``; empty for none.
    examples
        Attacked test pictures that each final network keeps for the report, by the last of the
        attacks; 0 for none.
    rivals
        ``random``: a random architecture of equal budget (nearest in MACs among `rival_draws`),
        same recipe. ``undefended``: the winner trained on clean pictures.
    rival_draws
        Random architectures among which the one of equal budget is chosen; all others of the
        space where it has fewer.
    """

    train: Recipe = dataclasses.field(default_factory=Recipe)
    attacks: list[Any] = dataclasses.field(default_factory=lambda: ["fgsm", "pgd20"])
    limit: int | None = None
    eps_factors: list[float] = dataclasses.field(
        default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0]
    )
    steps: list[int] = dataclasses.field(default_factory=lambda: [1, 2, 5, 10, 20, 50])
    corruptions: list[str] = dataclasses.field(default_factory=list)
    examples: int = 8
    rivals: list[Literal["random", "undefended"]] = dataclasses.field(
        default_factory=lambda: ["random", "undefended"]
    )
    rival_draws: int = 100

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        if not self.attacks:
            raise UserError(
                "final.attacks: at least one attack is needed, such as pgd20 (or clean for none)"
            )
        for factor in self.eps_factors:
            number("final.eps_factors", factor, 0)
        for steps in self.steps:
            number("final.steps", steps, 1, whole=True)
        if self.corruptions:
            from nni_robust.corruptions import names_of

            try:
                names_of(self.corruptions)
            except UserError as e:
                raise UserError(f"final.{e}") from None
        if self.limit is not None:
            number("final.limit", self.limit, 1, whole=True)
        number("final.examples", self.examples, 0, whole=True)
        number("final.rival_draws", self.rival_draws, 1, whole=True)
        if len(set(self.rivals)) < len(self.rivals):
            raise UserError(f"final.rivals: {self.rivals!r} is not allowed; each once")


@dataclasses.dataclass(frozen=True)
class NniSettings:
    """How NNI runs the trials.

    Parameters
    ----------
    engine
        ``ts``: trials are processes under NNI's training service, with the web UI. ``sequential``:
        one after the other in this process, no UI.
    concurrency
        Trials at a time.
    port
        Port of NNI's web server (it listens on all interfaces, without a password).
    trials
        Most trials of a strategy that does not say itself how many it needs.
    trial_gpus
        GPUs of one trial; 0 hides them.
    trial_threads
        CPU threads of one trial; None shares the cores evenly.
    training_service
        NNI's training-service settings, such as ``{platform: local}``. A value ``${NAME}`` is taken
        from the environment, so that a password need not be in the file.
    fork_trials
        Fork local and remote trials from a process that has imported torch and NNI, which saves
        seconds for each; see :mod:`nni_robust.nni_adapter.warm`.
    trial_python
        Interpreter of the trials, a path on their machines; None: this one for local trials, that
        of ``pythonPath`` on remote machines.
    store
        How trials reach the run's store: as ``files`` (local trials, or a file system that all
        machines have at the same path) or over ``http``. ``auto``: files for local trials only.
    store_port
        Port of the store's server, where there is one.
    manager_ip
        Address under which other machines reach this one; None: that of the way to the first one.
    log
        Where every training of a trial also writes its curve: ``tensorboard``, ``mlflow``, see
        :func:`nni_robust.training.open_logs`.
    """

    engine: Literal["ts", "sequential"] = "ts"
    concurrency: int = 1
    port: int = 8080
    trials: int | None = None
    trial_gpus: int = 0
    trial_threads: int | None = None
    training_service: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"platform": "local"}
    )
    fork_trials: bool = True
    trial_python: str | None = None
    store: Literal["auto", "files", "http"] = "auto"
    store_port: int = 8082
    manager_ip: str | None = None
    log: list[Literal["tensorboard", "mlflow"]] = dataclasses.field(default_factory=list)

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        for name, low, high in (
            ("concurrency", 1, 1000),
            ("port", 1, 65535),
            ("store_port", 1, 65535),
            ("trial_gpus", 0, 64),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"nni.{name}: {value} is not allowed; {low} to {high} is")
        if self.trials is not None and self.trials < 1:
            raise UserError(f"nni.trials: {self.trials} is not allowed; at least 1 is")
        if self.log and self.engine == "sequential":
            raise UserError("nni.log is not allowed with engine 'sequential', which has no trials")
