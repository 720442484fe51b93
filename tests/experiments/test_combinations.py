"""Every cell of docs/combinations.md: strategies on spaces with evaluators, ours and NNI's."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.hub.pytorch import (
    DARTS,
    AutoFormer,
    MobileNetV3Space,
    NasBench201,
    NASNet,
    ProxylessNAS,
    ShuffleNetSpace,
)
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.space import SimplifiedModelSpace, model_context
from nni.nas.strategy import GridSearch, Random, RegularizedEvolution
from nni.tools.nnictl.config_utils import Experiments
from torch import Tensor, nn

from nni_robust.errors import UserError
from nni_robust.evaluators import AdversarialTraining, TabularEvaluator
from nni_robust.nni_adapter.tpe import TPE
from nni_robust.registry import search_spaces, strategies
from nni_robust.sampling import draw
from nni_robust.search_spaces import (
    BaselineSpace,
    DartsSpace,
    InvertedResidualSpace,
    RobNetSpace,
    WideResNetSpace,
)
from nni_robust.store import content_key, read_json
from nni_robust.strategies import (
    CrossLayerDistillation,
    RLCompressor,
    RobustOneShot,
    WideSpectrumSearch,
)
from nni_robust.supernet import build_supernet, inherit, set_path
from nni_robust.task import Task
from nni_robust.trial import StoredEvaluator

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "combinations.md").read_text(encoding="utf-8")
OURS = ("robust-one-shot", "rl-compressor", "cross-layer-distillation", "wide-spectrum")

_spec = importlib.util.spec_from_file_location(
    "their_space", ROOT / "experiments" / "examples" / "their_project" / "space.py"
)
assert _spec is not None
assert _spec.loader is not None
their_space = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(their_space)

STAGES = [{"blocks": 1, "widths": [4, 2]}, {"blocks": 2, "widths": [6, 3], "stride": 2}]
SPACES: dict[str, Callable[[], Any]] = {
    "baseline": lambda: BaselineSpace(10),
    "darts": lambda: DartsSpace(10, width=2, cells=3),
    "inverted-residual": lambda: InvertedResidualSpace(
        10, preset=None, stages=STAGES, stem_channels=4, stem_stride=1
    ),
    "robnet": lambda: RobNetSpace(10, init_channels=2, cells=3),
    "wide-resnet": lambda: WideResNetSpace(
        10, depths=2, widths=2, stem_channels=4, base_channels=(4, 4, 8)
    ),
    "DARTS": lambda: DARTS(width=4, num_cells=3, dataset="cifar"),
    "NasBench201": lambda: NasBench201(stem_out_channels=4, num_modules_per_stack=1, num_labels=10),
    "MobileNetV3": lambda: MobileNetV3Space(
        num_labels=10,
        base_widths=(8,) * 5,
        width_multipliers=(0.5, 1.0),
        expand_ratios=(1.0, 2.0),
        squeeze_excite=("none", "optional"),
        depth_range=(1, 2),
        stride=(1, 1, 2, 2, 1),
        activation=("hswish", "relu", "relu", "hswish", "hswish"),
    ),
    "ProxylessNAS": lambda: ProxylessNAS(num_labels=10, base_widths=(8,) * 9),
    "ShuffleNet": lambda: ShuffleNetSpace(num_labels=10),
    "AutoFormer": lambda: AutoFormer(num_labels=10, img_size=8, patch_size=4),
    "own": lambda: their_space.SmallSpace(10),
}

CLEAN: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 16,
    "lr": 0.01,
    "loss": "clean",
    "validation_attack": None,
}
TRAIN: dict[str, Any] = {**CLEAN, "loss": "madry", "attack": {"steps": 1}}
TASK: dict[str, Any] = {"threat": {"eps": 0.1}, "train_limit": 32, "validation_limit": 16}
TEACHER: dict[str, Any] = {"architecture": "wrn-16-1", "train": CLEAN}
STRATEGIES: dict[str, Callable[[], Any]] = {
    "robust-one-shot": lambda: RobustOneShot(candidates=2),
    "rl-compressor": lambda: RLCompressor(updates=1, rollouts=2),
    "cross-layer-distillation": lambda: CrossLayerDistillation(
        search={"weights": {"epochs": 1, "batch_size": 12, "lr": 0.05}, "maps": {"size": 4}}
    ),
    "wide-spectrum": lambda: WideSpectrumSearch(
        candidates=1,
        epochs=1,
        warmup={"archs": 2},
        objective={"strengths": [0.05, 0.1], "weights": [1, 2]},
        measure={"steps": 1, "pictures": 8, "recalibrate_batches": 1},
        finalists=1,
    ),
    "random": lambda: Random(seed=1),
    "regularized-evolution": lambda: RegularizedEvolution(
        population_size=2, sample_size=1, mutation_prob=0.5, seed=1
    ),
    "tpe": lambda: TPE(seed=1),
    "grid-search": lambda: GridSearch(shuffle=False, seed=1),
}
PHASES = {
    "robust-one-shot": ["supernet", "candidate", "candidate"],
    "rl-compressor": ["candidate", "candidate"],
    "cross-layer-distillation": ["teacher", "search", "candidate"],
    "wide-spectrum": ["search", "candidate"],
}


def tables() -> dict[str, dict[tuple[str, str], str]]:
    """Evaluator to (strategy, space) to what the page says."""
    found = {}
    for title, text in re.findall(r"^## (\S+)\n\n((?:\|.*\n)+)", PAGE, flags=re.MULTILINE):
        header, _, *rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
        ]
        found[title] = {
            (row[0], space): said
            for row in rows
            for space, said in zip(header[1:], row[1:], strict=True)
        }
    return found


TABLES = tables()


def cells(*verdicts: str) -> list[Any]:
    return [
        pytest.param(evaluator, strategy, space, id=f"{strategy}-{space}-{evaluator}",
                     marks=[pytest.mark.slow] if said == "slow" else [])
        for evaluator, table in TABLES.items()
        for (strategy, space), said in table.items()
        if said in verdicts
    ]  # fmt: skip


def test_the_page_is_complete() -> None:
    assert set(TABLES) == {"adversarial-training", "tabular", "FunctionalEvaluator"}
    for table in TABLES.values():
        assert set(table) == {(strategy, space) for strategy in STRATEGIES for space in SPACES}
        assert set(table.values()) <= {"works", "slow", "refused"}
    assert set(STRATEGIES) == {n for n in strategies.names() if n in STRATEGIES or "." not in n}
    assert {name for name in SPACES if name.islower()} - {"own"} == set(search_spaces.names())


def count(model: nn.Module) -> None:
    """A user's evaluation function: thousands of parameters."""
    import nni

    model.eval()
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    nni.report_final_result(sum(p.numel() for p in model.parameters()) / 1000)


def formula(sample: Any) -> float:
    return int(content_key(dict(sample))[:6], 16) / 16**6


class Formula(StoredEvaluator):
    """A score for every sample; what it is asked for becomes a table."""

    def __init__(self) -> None:
        self.task = Task()

    def variant(self, **changes: Any) -> Formula:
        return self

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        return {"metrics": {"default": formula(model.sample)}}


def run(space: Any, evaluator: Any, strategy: Any) -> list[Any]:
    """NNI's plain experiment, in this process; all its models."""
    config = NasExperimentConfig("sequential", "simplified", "local")
    config.trial_concurrency = 1
    config.max_trial_number = getattr(strategy, "trials", 2)
    experiment = NasExperiment(space, evaluator, strategy, config)
    try:
        experiment.run(port=None)
        return list(experiment._engine.list_models())
    finally:
        experiment.stop()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NNI's folders go into the test's; its TPE strategy does not pause after every model."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    # NNI looks for the list of all experiments when it is imported; by then it was another home.
    monkeypatch.setattr(Experiments.__init__, "__defaults__", (str(home),))
    monkeypatch.setattr("nni.nas.strategy.hpo.time", SimpleNamespace(sleep=lambda seconds: None))
    torch.manual_seed(0)


def make_evaluator(name: str, strategy: str, folder: Path) -> Any:
    store = str(folder / "store")
    if name == "FunctionalEvaluator":
        return FunctionalEvaluator(count)
    if name == "tabular":
        return TabularEvaluator(store=store)
    distils = strategy == "cross-layer-distillation"
    return AdversarialTraining(
        task={**TASK, "teacher": TEACHER} if distils else TASK,
        train=CLEAN if distils else TRAIN,
        attacks=["fgsm"],
        store=store,
        recalibrate_batches=1,
    )


@pytest.mark.parametrize(("evaluator", "strategy", "space"), cells("works", "slow"))
def test_works(evaluator: str, strategy: str, space: str, tmp_path: Path) -> None:
    if evaluator == "tabular":
        table_repeats_a_search(strategy, space, tmp_path)
        return
    searcher = STRATEGIES[strategy]()
    models = run(SPACES[space](), make_evaluator(evaluator, strategy, tmp_path), searcher)
    if strategy in OURS:
        assert [model.evaluator.phase for model in models] == PHASES[strategy]
    else:
        assert len(models) == (1 if space == "baseline" else 2)
    results = list(searcher.list_models())
    assert 0 < len(results) <= 2
    fresh = SPACES[space]()
    for model in results:
        assert fresh.contains(model.sample)
        with torch.random.fork_rng():
            size = sum(p.numel() for p in fresh.freeze(model.sample).parameters())
        if evaluator == "FunctionalEvaluator":
            assert model.metric == size / 1000
            continue
        path = tmp_path / "store" / model.evaluator.key(model) / "record.json"
        metrics = read_json(path)["metrics"]
        assert metrics["params"] == size
        assert model.metric == metrics["default"] == metrics["fgsm@0.1"]
        assert 0 <= metrics["default"] <= 1
        assert 0 <= metrics["clean"] <= 1


def weightless(space: str) -> Any:
    """A space for look-ups; NNI's AutoFormer cannot be made without weights."""
    with torch.device("cpu" if space == "AutoFormer" else "meta"):
        return SPACES[space]()


def table_repeats_a_search(strategy: str, space: str, folder: Path) -> None:
    """A search of a formula, and the same search of a table with what the formula said."""
    first = run(weightless(space), Formula(), STRATEGIES[strategy]())
    samples = {content_key(dict(m.sample)): dict(m.sample) for m in first}.values()
    lines = [json.dumps({"sample": s, "metrics": {"default": formula(s)}}) for s in samples]
    (folder / "table.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = TabularEvaluator(table=str(folder / "table.jsonl"))
    again = run(weightless(space), table, STRATEGIES[strategy]())
    assert [m.sample for m in again] == [m.sample for m in first]
    assert [m.metric for m in again] == [formula(m.sample) for m in first]


def reason(evaluator: str, strategy: str, space: str) -> str:
    """What the refusal has to name."""
    if evaluator != "adversarial-training" and strategy != "rl-compressor":
        lacks = {"FunctionalEvaluator": "task", "tabular": "(supernet|teacher)"}[evaluator]
        kind = evaluator.replace("tabular", "TabularEvaluator")
        return f"strategy {strategy} needs an evaluator with '{lacks}', such as .*; {kind} has none"
    if evaluator == "FunctionalEvaluator":
        return "strategy rl-compressor needs an evaluator with 'task'"
    if strategy == "rl-compressor":
        return "has no choice" if space == "baseline" else "'normal/input_2_0' is a Categorical"
    if space == "baseline":
        return "space BaselineSpace has no choices"
    if strategy == "cross-layer-distillation":
        return "space (WideResNetSpace|AutoFormer) cannot be relaxed: .* strategy.widths random"
    return "space (WideResNetSpace|InvertedResidualSpace) cannot become a supernet"


@pytest.mark.parametrize(("evaluator", "strategy", "space"), cells("refused"))
def test_refused(evaluator: str, strategy: str, space: str, tmp_path: Path) -> None:
    judge = make_evaluator(evaluator, strategy, tmp_path)
    engine = SequentialExecutionEngine()
    with pytest.raises(UserError, match=reason(evaluator, strategy, space)) as refusal:
        STRATEGIES[strategy]()(SimplifiedModelSpace.from_model(weightless(space), judge), engine)
    assert not list(engine.list_models())
    sentence = str(refusal.value)
    assert "\n" not in sentence
    assert 30 < len(sentence) < 400
    assert not list((tmp_path / "store").glob("*"))


@pytest.mark.parametrize(
    "space",
    [
        "own",
        "NasBench201",
        "MobileNetV3",
        pytest.param("DARTS", marks=pytest.mark.slow),
        pytest.param("ProxylessNAS", marks=pytest.mark.slow),
        pytest.param("ShuffleNet", marks=pytest.mark.slow),
        pytest.param("AutoFormer", marks=pytest.mark.slow),
    ],
)
def test_sub_networks_compute_what_their_path_does(space: str) -> None:
    whole = SPACES[space]()
    mutables = whole.simplify()
    supernet = build_supernet(whole)
    sample = draw(mutables, np.random.RandomState(3))
    set_path(supernet, sample)
    supernet.train()(torch.rand(8, 3, 8, 8))  # statistics of norms that no new network has
    supernet.eval()
    network = inherit(supernet, sample).eval()
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(network(x), supernet(x))


class Rebuilt(ModelSpace):
    """Its freeze makes a new network, as NNI's manual has it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = their_space.SmallSpace(10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out

    def freeze(self, sample: Any) -> Any:
        with model_context(sample):
            return Rebuilt()


@pytest.mark.parametrize(
    ("space", "strategy"),
    [
        (Rebuilt, "robust-one-shot"),
        (Rebuilt, "wide-spectrum"),
        (lambda: DARTS(width=[4, 8], num_cells=3), "robust-one-shot"),
        pytest.param(lambda: NASNet(width=4, num_cells=3), "wide-spectrum", marks=pytest.mark.slow),
    ],
    ids=["own-robust-one-shot", "own-wide-spectrum", "widths", "NASNet"],
)
def test_nothing_is_searched_that_could_not_be_inherited(
    space: Any, strategy: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="cannot hand over a supernet's weights"):
        run(space(), make_evaluator("adversarial-training", strategy, tmp_path),
            STRATEGIES[strategy]())  # fmt: skip
    assert not list((tmp_path / "store").glob("*"))
