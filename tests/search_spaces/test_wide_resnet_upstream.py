"""The authors' files: what they mean, what they lack, and weights in their names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nni_robust.architecture import Architecture, load_architecture
from nni_robust.architecture.checkpoint import convert_checkpoint
from nni_robust.errors import UserError
from nni_robust.search_spaces import WideResNet, WideResNetConfig
from nni_robust.search_spaces.wide_resnet import from_upstream_yaml
from nni_robust.training import load_weights


def model(**changes: Any) -> dict[str, Any]:
    """The content of RobustResNet-A1.yaml, with the keys of all 24 files."""
    return {
        "name": "PreActResNet",
        "channel_configs": [16, 80, 224, 192],
        "depth_configs": [14, 14, 7],
        "drop_rate_config": [0.0, 0.0, 0.0],
        "num_classes": 10,
        "stride_config": [1, 2, 2],
        "zero_init_residual": False,
        "block_types": ["robust_res_block"] * 3,
        "activations": ["ReLU"] * 3,
        "kernel_size_configs": [3, 3, 3],
        "normalizations": ["BatchNorm"] * 3,
        **changes,
    }


BASIC = model(block_types=["basic_block"] * 3)


def test_missing_block_parameters_are_told_and_the_published_ones_taken(tmp_path: Path) -> None:
    path = tmp_path / "RL_5g.yaml"
    path.write_text(yaml.safe_dump({"num_classes": 10, "epochs": 100, "model": model()}))
    with pytest.warns(
        UserWarning,
        match="RL_5g.yaml': parameters of the robust block are missing: scales 8, base_width 10, "
        "cardinality 4, se_reduction 64: the published values are taken, not the 4, 64, 8, 16 that",
    ) as record:
        architecture = from_upstream_yaml(path)
    assert record[0].filename == __file__
    assert architecture.name == "robustresnet-a1"  # what it is, whatever the file is called
    assert "Called RL_5g there" in architecture.provenance["note"]
    assert architecture.provenance["kind"] == "repository"
    assert architecture.provenance["source"].startswith("RL_5g.yaml, in the format of")
    assert architecture.cost().params == 19_222_738
    published = load_architecture("robustresnet-a1")
    assert architecture.space_args == published.space_args
    assert architecture.sample == published.sample
    architecture.check()


def test_legacy_defaults_are_what_the_authors_code_builds() -> None:
    with pytest.warns(UserWarning, match="scales 4, base_width 64, .* not the published 8, 10"):
        architecture = from_upstream_yaml(model(), legacy_defaults=True)
    assert (architecture.cost().params, architecture.cost().macs) == (144_344_330, 39_746_689_536)
    assert architecture.name == "wide-resnet"


def test_nothing_is_missing_where_nothing_matters() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        basic = from_upstream_yaml({"model": BASIC})
        given = from_upstream_yaml(
            model(scales=8, base_width=10, cardinality=4, se_reduction=64, stem_stride=2)
        )
    assert basic.name == "wrn-a1"
    assert basic.cost().params == 18_707_930
    assert given.space_args["stem_stride"] == 2


def test_only_what_is_missing_is_taken() -> None:
    with pytest.warns(
        UserWarning, match="missing: se_reduction 64: the published values .* the 16"
    ):
        architecture = from_upstream_yaml(model(scales=4, base_width=64, cardinality=8))
    assert architecture.space_args["scales"] == 4
    assert "se_reduction" not in architecture.space_args  # the default of the space


def test_other_fields() -> None:
    architecture = from_upstream_yaml(
        {
            **BASIC,
            "num_classes": 100,
            "activations": ["SiLU"] * 3,
            "pre_process": True,
            "channel_configs": [12, 20, 40, 60],
            "depth_configs": [1, 2, 1],
        }
    )
    assert architecture.num_classes == 100
    assert architecture.space_args == {
        "depths": [1, 2, 1],
        "widths": [1, 1, 1],
        "activation": "SiLU",
        "stem_channels": 12,
        "base_channels": [20, 40, 60],
        "normalize": "cifar10",
    }
    network = architecture.build()
    assert isinstance(network, WideResNet)
    assert [s.channels for s in network.config.stages()] == [20, 40, 60]


@pytest.mark.parametrize(
    "changes", [{"drop_rate_config": [0.0, 0.3, 0.0]}, {"zero_init_residual": True}]
)
def test_fields_that_the_authors_code_ignores(changes: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="drop_rate_config and zero_init_residual have no effect"):
        from_upstream_yaml({**BASIC, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth_config": [1, 1, 1]}, "unknown key 'depth_config' .* did you mean 'depth_configs'"),
        ({"name": "RobNet"}, "model.name: 'RobNet' is not allowed; PreActResNet is"),
        ({"block_types": ["basic_block", "se_block", "basic_block"]}, "block_types: 'se_block'"),
        ({"channel_configs": [5, 7, 3]}, r"channel_configs: \[5, 7, 3\] is not allowed; four"),
        ({"activations": ["Swish"] * 3}, "upstream model: activation: 'Swish' is not allowed"),
        ({"depth_configs": [0, 1, 1]}, "upstream model: depths: 0 is not allowed"),
    ],
)
def test_wrong_files_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_upstream_yaml({**BASIC, **changes})


def test_a_file_without_a_model(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("epochs: 100\n")
    with pytest.raises(UserError, match=r"other.yaml': no model with depth_configs"):
        from_upstream_yaml(path)
    with pytest.raises(UserError, match="no file"):
        from_upstream_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_weights(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    config = WideResNetConfig(depths=1, widths=1, activation="SiLU", normalize="cifar10")
    theirs, ours = WideResNet(config), WideResNet(config)
    state = {
        prefix + name: value
        for name, value in theirs.state_dict().items()
        if name not in ("mu", "sigma")  # the file that RobustBench offers lacks them
    }
    path = tmp_path / "weights.pt"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    x = torch.rand(2, 3, 8, 8)
    expected = theirs.eval()(x)
    load_weights(ours, path)
    assert torch.equal(ours.eval()(x), expected)
    architecture = Architecture(
        **{"name": "small", "space": "wide-resnet", "space_args": config.arguments()},
        sample={f"stage{i}/{what}": 1 for i in (1, 2, 3) for what in ("depth", "width")},
    )
    convert_checkpoint(path, architecture, tmp_path / "small.yaml")
    converted = load_architecture(tmp_path / "small.yaml").build()
    assert torch.equal(converted.eval()(x), expected)
    wide = WideResNet(WideResNetConfig(depths=1, widths=2))
    with pytest.raises(UserError, match=r"'blocks.0.layer.0.conv1.weight' has shape"):
        load_weights(wide, path)


def test_only_constants_may_be_missing(tmp_path: Path) -> None:
    config = WideResNetConfig(depths=1, widths=1, normalize="cifar10")
    network = WideResNet(config)
    state = dict(network.state_dict())
    del state["norm1.running_mean"]
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"it has no 'norm1\.running_mean'"):
        load_weights(network, tmp_path / "weights.pt")
