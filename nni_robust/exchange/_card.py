"""The model card: what somebody must know before using a network, from its records alone.

What the records do not say is said to be unknown; nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nni_robust.cost import Cost
from nni_robust.threat import eps_label

from ._folder import CONFIG, RESULTS, WEIGHTS
from ._records import Trained

__all__ = ["card"]

_UNKNOWN = "unknown"

#: Settings of a recipe that the card names, in this order.
_RECIPE = ("loss", "epochs", "batch_size", "optimizer", "lr", "schedule", "weight_decay", "attack")


def card(trained: Trained, cost: Cost, config: Mapping[str, Any], files: list[str]) -> str:
    """Markdown with the head that model hubs read.

    Parameters
    ----------
    trained
        The network and its records.
    cost
        Its parameters and MACs.
    config
        What ``config.json`` says.
    files
        Files beside the usual ones, with what each is.
    """
    architecture = trained.architecture
    name = _line(architecture.name)
    channels, height, width = architecture.input_shape
    parts = [
        "---",
        "license: unknown  # fill in before you publish: of the weights and of the training data",
        "library_name: nni-robust",
        "pipeline_tag: image-classification",
        "tags: [adversarial-robustness, neural-architecture-search, pytorch]",
        "---",
        "",
        f"# {name}",
        "",
        f"A network of the space `{_line(architecture.space)}` for pictures of {channels} x "
        f"{height} x {width} and {architecture.num_classes} classes: {cost.params:,} parameters, "
        f"{cost.macs:,} MACs (multiply-accumulates) per picture.",
        "",
        *_provenance(architecture.provenance),
        "",
        "## Use",
        "",
        "```python",
        "import nni_robust",
        "",
        "model = nni_robust.load(FOLDER)  # a plain nn.Module in evaluation mode; works offline",
        "```",
        "",
        f"Input: {config['normalization']}. `{CONFIG}` holds the architecture and the sha256 of "
        f"`{WEIGHTS}`, which is checked on loading; `{RESULTS}` holds the figures below and the "
        "training curve.",
        *(["", *(f"- {file}" for file in files)] if files else []),
        "",
        "## Training",
        "",
        *_training(trained.training),
        "",
        "## Robustness",
        "",
        *_robustness(trained),
        "",
        "## Limits",
        "",
        "Figures hold for the pictures, threat and attacks named, and for no others. An attack "
        "that was not run may do better; a short PGD is an upper bound of robust accuracy.",
        "",
        "## Licence",
        "",
        "Unknown. nni-robust is MIT; that says nothing of these weights, nor of the training data.",
        "",
        "## Versions",
        "",
        f"- Of the training: {_versions((trained.training or {}).get('versions'))}",
        f"- That wrote this folder: {_versions(config['versions'])}",
    ]
    return "\n".join(parts) + "\n"


def _line(value: Any) -> str:
    """One line without what Markdown and HTML would read as theirs."""
    text = str(value)
    for sign in "<>|`[]":
        text = text.replace(sign, " ")
    return " ".join(text.split())


def _provenance(provenance: Mapping[str, str]) -> list[str]:
    kinds = {
        "published": "printed in a paper",
        "repository": "read from its authors' code",
        "figure": "decoded from a drawing",
        "found": "found by a search, or written by hand",
    }
    lines = [f"- Where the architecture comes from: {kinds.get(provenance['kind'], _UNKNOWN)}."]
    lines += [f"- Source: {_line(provenance['source'])}"] if provenance.get("source") else []
    lines += [f"- Note: {_line(provenance['note'])}"] if provenance.get("note") else []
    return lines


def _training(training: Mapping[str, Any] | None) -> list[str]:
    if training is None:
        return ["Unknown: the weights came without a record of their training."]
    data = training.get("data") or {}
    recipe = training.get("recipe") or {}
    named = [f"{key} {_line(json.dumps(recipe[key]))}" for key in _RECIPE if recipe.get(key)]
    counts = [
        f"{_line(data[key])} {what}"
        for key, what in (
            ("train", "training pictures"),
            ("train_limit", "training pictures at most"),
            ("validation", "(pictures or share) for validation"),
        )
        if data.get(key) is not None
    ]
    if training.get("kept_epoch") and recipe.get("keep") == "best":
        named.append(f"kept epoch {training['kept_epoch']}, the best by robust validation accuracy")
    seconds = training.get("seconds")
    return [
        f"- Data: {', '.join([_known(data.get('name')), *counts])}",
        f"- Threat: {_threat(training.get('threat'))}",
        f"- Recipe: {', '.join(named) if named else _UNKNOWN}; all of it in `{RESULTS}`",
        f"- Teacher: {_known(training.get('teacher'), 'none recorded')}",
        f"- Seed: {_known(training.get('seed'))}",
        f"- Time: {_UNKNOWN if seconds is None else f'{seconds:,} seconds'}, on "
        f"{_machine(training.get('machine'))}",
    ]


def _known(value: Any, otherwise: str = _UNKNOWN) -> str:
    return otherwise if value is None else _line(value)


def _machine(machine: Any) -> str:
    if not isinstance(machine, Mapping):
        return "an unknown machine"
    gpus = machine.get("gpus") or []
    gpu = f"GPUs: {', '.join(map(_line, gpus))}" if gpus else "no GPU"
    cores = f"{machine['cores']} cores of " if machine.get("cores") else ""
    return f"{cores}{_known(machine.get('processor'))}, {gpu}"


def _versions(versions: Any) -> str:
    if not isinstance(versions, Mapping):
        return _UNKNOWN
    return ", ".join(f"{key} {_line(value)}" for key, value in versions.items())


def _threat(threat: Any) -> str:
    if not isinstance(threat, Mapping) or not isinstance(threat.get("eps"), (int, float)):
        return _UNKNOWN
    return f"{_line(threat.get('norm'))}, eps {eps_label(threat['eps'])} in pixel units"


def _robustness(trained: Trained) -> list[str]:
    if not trained.evaluations:
        return [
            "Unknown: no figures came with the weights. `nni-robust evaluate FOLDER --json` "
            "measures some, and `nni-robust export --results` adds them.",
        ]
    lines: list[str] = []
    for evaluation in trained.evaluations:
        lines += [
            f"{_known(evaluation.get('pictures'))} {_known(evaluation.get('split'))} pictures of "
            f"{_known(evaluation.get('dataset'))}, threat {_threat(evaluation.get('threat'))} (by "
            f"{_known(evaluation.get('source'))}):",
            "",
            "| attack | accuracy |",
            "|---|---|",
            *(f"| {_line(key)} | {value:.2%} |" for key, value in evaluation["metrics"].items()),
            "",
            *_flags(evaluation.get("flags")),
            "",
        ]
    return lines[:-1]


def _flags(flags: list[str] | None) -> list[str]:
    if flags is None:
        return ["Reliability checks: unknown, the record has none."]
    if not flags:
        return ["Reliability checks: none of those that ran raised a flag."]
    return [f"**UNRELIABLE**: {_line(flag)}" for flag in flags]
