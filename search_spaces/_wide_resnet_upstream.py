"""Model descriptions (YAML) of the authors' repositories.

Their weights are read by :func:`nni_robust.architecture.checkpoint.convert_checkpoint`.

zhichao-lu/robust-residual-network (commit 8c6d2c2) and its copy wdr123/robN2N (RC-NAS, commit
4fd9e25) describe networks in YAML files that leave out the robust block's parameters. Their code
then takes 4, 64, 8 and 16, with which RobustResNet-A1 has 144 million parameters instead of the
published 19 million. ``RL_5g.yaml`` to ``RL_40g.yaml`` of the copy are ``RobustResNet-A1.yaml`` to
``RobustResNet-A4.yaml`` of the original, renamed: no search found them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni_robust.architecture import Architecture
from nni_robust.config import read_yaml
from nni_robust.errors import UserError, nearest

from ._wide_resnet_config import WideResNetConfig

__all__ = ["from_upstream_yaml"]

#: Parameters of the robust block: the published values, and the defaults of the authors' code.
_PUBLISHED = {"scales": 8, "base_width": 10, "cardinality": 4, "se_reduction": 64}
_LEGACY = {"scales": 4, "base_width": 64, "cardinality": 8, "se_reduction": 16}
_BLOCKS = {"basic_block": "basic", "robust_res_block": "robust"}

#: Key of the file -> field of the configuration.
_FIELDS = {
    "num_classes": "num_classes",
    "depth_configs": "depths",
    "stride_config": "strides",
    "stem_stride": "stem_stride",
    "kernel_size_configs": "kernel_size",
    "activations": "activation",
    "normalizations": "normalization",
    **{key: key for key in _PUBLISHED},
}
#: Keys that are read here, or that the authors' code ignores or uses for initial weights only.
_OTHERS = ("name", "channel_configs", "block_types", "pre_process", "use_init")
_IGNORED = ("drop_rate_config", "zero_init_residual")

#: Depths and widths of the family that was scaled by hand, by the end of its name.
_FAMILY = {
    ((14, 14, 7), (5, 7, 3)): "a1",
    ((17, 17, 8), (7, 9, 4)): "a2",
    ((22, 22, 11), (8, 11, 5)): "a3",
    ((27, 28, 13), (10, 14, 6)): "a4",
}


def from_upstream_yaml(
    source: str | Path | Mapping[str, Any], *, legacy_defaults: bool = False
) -> Architecture:
    """Architecture that a model file of the authors' repositories describes.

    Parameters
    ----------
    source
        Path of the file, or its content: a mapping with the key ``model``, or what is below it.
        Settings of training are passed over.
    legacy_defaults
        Take the code's defaults for missing block parameters, and so build literally what the
        repositories would; the published values otherwise.

    Returns
    -------
    Architecture
        In the space ``wide-resnet``, the largest network of the space below it.

    Raises
    ------
    UserError
        If the file is missing or damaged, or describes no such network.

    Warns
    -----
    UserWarning
        If robust blocks' parameters are missing, or something in the file never had an effect.
    """
    value = source if isinstance(source, Mapping) else read_yaml(source)
    where = "upstream model" if isinstance(source, Mapping) else f"'{source}'"
    model = value.get("model", value)
    if not isinstance(model, Mapping) or "depth_configs" not in model:
        raise UserError(f"{where}: no model with depth_configs and channel_configs is in it")
    _check_keys(model, where)
    settings = {field: model[key] for key, field in _FIELDS.items() if key in model}
    settings["blocks"] = [
        _translate(block, where) for block in model.get("block_types", ["basic_block"] * 3)
    ]
    if "robust" in settings["blocks"]:
        settings |= _block_parameters(model, where, legacy_defaults)
    if model.get("pre_process"):
        settings["normalize"] = "cifar10"
    try:
        config = WideResNetConfig(**settings, **_channels(model))
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
    stem = None if isinstance(source, Mapping) else Path(source).stem
    sample: dict[str, Any] = {}
    for index, stage in enumerate(
        zip(_three(config.depths), _three(config.widths), strict=True), 1
    ):
        sample |= {f"stage{index}/depth": stage[0], f"stage{index}/width": stage[1]}
    name, note = _name(config, stem)
    origin = "a mapping" if isinstance(source, Mapping) else Path(source).name
    return Architecture(
        name=name,
        space="wide-resnet",
        space_args=config.arguments(),
        sample=sample,
        provenance={
            "kind": "repository",
            "source": f"{origin}, in the format of zhichao-lu/robust-residual-network",
            **({"note": note} if note else {}),
        },
        num_classes=config.num_classes,
    )


def _check_keys(model: Mapping[str, Any], where: str) -> None:
    known = [*_FIELDS, *_OTHERS, *_IGNORED]
    for key in model:
        if key not in known:
            raise UserError(
                f"{where}: unknown key {key!r} in model{nearest(str(key), known)} "
                f"(allowed: {', '.join(known)})"
            )
    if model.get("name", "PreActResNet") != "PreActResNet":
        raise UserError(f"{where}: model.name: {model['name']!r} is not allowed; PreActResNet is")
    rates = model.get("drop_rate_config", ())
    if any(rates) or model.get("zero_init_residual"):
        warnings.warn(
            f"{where}: drop_rate_config and zero_init_residual have no effect: the authors' code "
            "ignores them, and so does nni-robust",
            stacklevel=3,
        )


def _translate(block: object, where: str) -> str:
    if block not in _BLOCKS:
        raise UserError(
            f"{where}: block_types: {block!r} is not allowed; allowed: {', '.join(_BLOCKS)}"
        )
    return _BLOCKS[str(block)]


def _block_parameters(model: Mapping[str, Any], where: str, legacy: bool) -> dict[str, Any]:
    """Values for the parameters of the robust block that are missing, after a warning."""
    missing = {
        key: (_LEGACY if legacy else _PUBLISHED)[key] for key in _PUBLISHED if key not in model
    }
    if missing:
        taken = ", ".join(f"{key} {value}" for key, value in missing.items())
        other = ", ".join(str((_PUBLISHED if legacy else _LEGACY)[key]) for key in missing)
        if legacy:
            choice = f"the defaults of the authors' code are taken, not the published {other}"
        else:
            choice = (
                f"the published values are taken, not the {other} that the authors' code defaults "
                "to (legacy_defaults=True takes those)"
            )
        warnings.warn(
            f"{where}: parameters of the robust block are missing: {taken}: {choice}", stacklevel=3
        )
    return missing


def _channels(model: Mapping[str, Any]) -> dict[str, Any]:
    """Channels of the stem, and of the stages as factors of 16, 32 and 64 where they are such."""
    channels = model.get("channel_configs")
    if not (
        isinstance(channels, (list, tuple))
        and len(channels) == 4
        and all(type(count) is int and count > 0 for count in channels)
    ):
        raise UserError(
            f"channel_configs: {channels!r} is not allowed; four positive integers (stem "
            "and three stages) are"
        )
    stem, *stages = channels
    base = (16, 32, 64)
    if any(count % unit for count, unit in zip(stages, base, strict=True)):
        return {"stem_channels": stem, "base_channels": stages, "widths": (1, 1, 1)}
    return {
        "stem_channels": stem,
        "widths": [count // unit for count, unit in zip(stages, base, strict=True)],
    }


def _name(config: WideResNetConfig, stem: str | None) -> tuple[str, str]:
    """Name of the network, and a note if the file calls it something else."""
    scale = _FAMILY.get((_three(config.depths), _three(config.widths)))
    family = {"basic": "wrn", "robust": "robustresnet"}.get("-".join(sorted(set(config.blocks))))
    published = family == "wrn" or all(getattr(config, k) == v for k, v in _PUBLISHED.items())
    own = (stem or "wide-resnet").lower().replace("_", "-")
    if scale is None or family is None or not published:
        return own, ""
    name = f"{family}-{scale}"
    if own.startswith("rl-"):
        return name, (
            f"Called {stem} there; the file is that of {name}, which was scaled by hand: no search "
            "found it."
        )
    return name, ""


def _three(values: Any) -> tuple[int, int, int]:
    return values[0], values[1], values[2]
