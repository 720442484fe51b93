"""The plain network: names, values and initial weights against the authors' code, and messages.

Digests and logits were computed once with the code of zhichao-lu/robust-residual-network at commit
8c6d2c2, and of RobustBench at commit 78fcc9e.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import torch
from torch import nn

from nni_robust.architecture import load_architecture
from nni_robust.errors import UserError
from nni_robust.search_spaces import WideResNet, WideResNetConfig
from nni_robust.search_spaces._wide_resnet_layers import RobustBlock, make_norm

LEGACY: dict[str, Any] = {"scales": 4, "base_width": 64, "cardinality": 8, "se_reduction": 16}

#: Number of entries of the state dict, and digest of their names and shapes.
STATE_DICTS = {
    "wrn-a1": (431, "789b05e0c4b53de7"),
    "wrn-a2": (515, "b6c313c46aa087c2"),
    "wrn-a3": (671, "53e6259ffb970809"),
    "wrn-a4": (827, "0ec2e052341fcf50"),
    "wrn-a4-robustbench": (829, "21711b5137d3a09d"),
    "robustresnet-a1": (2146, "b1fea434016fa679"),
    "robustresnet-a2": (2573, "957a1145a719223d"),
    "robustresnet-a3": (3366, "5b4cd9ac4bb352fc"),
    "robustresnet-a4": (4159, "953b538138c14d2a"),
}

#: Configuration, and the authors' logits of two pictures with the weights of `fill`.
LOGITS: list[tuple[dict[str, Any], list[list[float]]]] = [
    (
        {
            "depths": (2, 1, 2),
            "widths": (1, 2, 1),
            "activation": "SiLU",
            "normalize": "cifar10",
        },
        [
            [1138.66858365, 3339.51475309, 3429.13955017],
            [4052.42821479, 11277.945005, 11373.54826812],
        ],
    ),
    (
        {"depths": (2, 2, 2), "widths": (1, 1, 2), "blocks": "robust"},
        [
            [438.33428826, 687.49867517, 891.03485086],
            [305.38571696, 482.43887441, 627.48369204],
        ],
    ),
    (
        {
            "depths": (1, 2, 1),
            "widths": (2, 1, 1),
            "blocks": ("basic", "robust", "basic"),
            "activation": ("ReLU", "GELU", "SiLU"),
            "strides": (2, 1, 3),
        },
        [
            [783.16811824, 2435.80447931, 2548.50217303],
            [1242.47472228, 3867.88269911, 4047.98917254],
        ],
    ),
    (
        {
            "depths": (2, 1, 1),
            "widths": (2, 2, 1),
            "blocks": "robust",
            "scales": 1,
            "base_width": 40,
            "cardinality": 2,
            "se_reduction": 16,
            "kernel_size": (1, 3, 5),
        },
        [[20.66498261, -27.40551721, 32.97514416], [22.21775213, -29.45671333, 35.49056469]],
    ),
    (
        {
            "depths": (1, 1, 2),
            "widths": (2, 2, 2),
            "blocks": ("robust", "basic", "robust"),
            "normalization": "GroupNorm",
            "activation": "Mish",
            **LEGACY,
        },
        [[1.00770475, -0.09815194, -1.31864629], [1.01181112, -0.09787659, -1.32222025]],
    ),
    (
        {
            "depths": (2, 1, 1),
            "widths": (1, 1, 1),
            "normalization": ("LayerNorm", "InstanceNorm", "LayerNorm"),
            "activation": ("ELU", "LeakyReLU", "Softplus"),
            "stem_stride": 2,
        },
        [[0.50436597, -0.13570827, -0.64142182], [0.504171, -0.13637988, -0.64214548]],
    ),
]


def build(**settings: Any) -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(WideResNetConfig(**settings))


def fill(network: nn.Module) -> None:
    """Weights that any program can make: sines, scaled by the fan-in."""
    constants = [name for name in network.state_dict() if name in ("mu", "sigma")]
    entries = [(k, v) for k, v in network.state_dict().items() if k not in constants]
    for index, (name, tensor) in enumerate(entries):
        if not tensor.is_floating_point():
            continue
        values = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + index)
        if name.endswith("running_var"):
            values = 1 + 0.5 * values
        elif tensor.ndim == 1:
            values = (1 if name.endswith("weight") else 0) + 0.3 * values
        else:
            values = values / math.sqrt(tensor[0].numel()) * 1.5
        tensor.copy_(values.view_as(tensor))


def pictures(number: int = 2, side: int = 9) -> torch.Tensor:
    values = torch.arange(number * 3 * side * side, dtype=torch.float64) * 0.37
    return values.sin().view(number, 3, side, side) * 0.5 + 0.5


@pytest.mark.parametrize("name", STATE_DICTS)
def test_names_and_shapes_of_the_state_dict(name: str) -> None:
    with torch.device("meta"):
        state = load_architecture(name).build().state_dict()
    text = "\n".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
    assert (len(state), hashlib.sha256(text.encode()).hexdigest()[:16]) == STATE_DICTS[name]


@pytest.mark.parametrize(("settings", "logits"), LOGITS)
def test_logits_are_those_of_the_authors_code(
    settings: dict[str, Any], logits: list[list[float]]
) -> None:
    network = build(num_classes=3, **settings).double().eval()
    fill(network)
    expected = torch.tensor(logits, dtype=torch.float64)
    torch.testing.assert_close(network(pictures()), expected, rtol=1e-6, atol=1e-6)


def test_initial_weights() -> None:
    network = build(depths=(1, 1, 1), widths=(4, 4, 4), blocks="robust")
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            # The fan-out is taken as if there were no groups.
            fan_out = module.kernel_size[0] ** 2 * module.out_channels
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
    assert not network.fc.bias.any()


def test_first_norm_without_effect_has_no_gradient() -> None:
    network = build(depths=(2, 2, 2), widths=(1, 1, 1), blocks="robust")
    network(pictures().float()).sum().backward()  # type: ignore[no-untyped-call]
    without = {name for name, p in network.named_parameters() if p.grad is None}
    assert without == {
        f"blocks.{stage}.layer.1.bn1.{kind}" for stage in range(3) for kind in ("weight", "bias")
    }
    fixed = build(depths=(2, 2, 2), widths=(1, 1, 1), blocks="robust", preact_fix=True)
    fixed(pictures().float()).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in fixed.parameters())
    assert list(fixed.state_dict()) == list(network.state_dict())


def test_preact_fix_is_the_block_with_a_normalised_input() -> None:
    settings: dict[str, Any] = {"depths": (1, 1, 2), "widths": (1, 1, 1), "blocks": "robust"}
    fixed = build(preact_fix=True, **settings).double().eval()
    fill(fixed)
    block = fixed.get_submodule("blocks.2.layer.1")
    assert isinstance(block, RobustBlock)
    x = torch.randn(2, 256, 4, 4, dtype=torch.float64)
    plain = build(**settings).double().eval().get_submodule("blocks.2.layer.1")
    plain.load_state_dict(block.state_dict())
    normalised = block.act(block.bn1(x))
    torch.testing.assert_close(block(x), plain(normalised) - normalised + x)


@pytest.mark.parametrize("side", [1, 7, 8, 32])
@pytest.mark.parametrize("block", ["basic", "robust"])
def test_pictures_of_any_size(block: str, side: int) -> None:
    network = build(depths=(1, 1, 1), widths=(1, 1, 1), blocks=block, num_classes=7).eval()
    assert network(torch.rand(2, 3, side, side)).shape == (2, 7)


def test_input_normalisation() -> None:
    plain = build(depths=1, widths=1).eval()
    named = build(depths=1, widths=1, normalize="cifar10").eval()
    mean, std = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]
    listed = build(depths=1, widths=1, normalize=[mean, std]).eval()
    assert "mu" not in plain.state_dict()
    x = torch.rand(2, 3, 8, 8)
    expected = plain((x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    torch.testing.assert_close(named(x), expected)
    torch.testing.assert_close(listed(x), expected)


def test_weights_without_the_constants_of_the_input_normalisation_load() -> None:
    network = build(depths=1, widths=1, normalize="cifar10")
    own = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict({k: v for k, v in own.items() if k not in ("mu", "sigma")})
    assert torch.equal(network.mu, own["mu"])
    network.load_state_dict({**own, "mu": own["mu"] + 1})
    assert torch.equal(network.mu, own["mu"] + 1)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (8, 1), (12, 1), (28, 2), (64, 8)])
def test_group_norm_always_divides(channels: int, groups: int) -> None:
    norm = make_norm("GroupNorm", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


def test_layer_norm_is_over_the_channels_of_a_pixel() -> None:
    out = make_norm("LayerNorm", 6)(torch.randn(2, 6, 3, 5) * 4 + 1)
    assert out.shape == (2, 6, 3, 5)
    torch.testing.assert_close(out.mean(dim=1), torch.zeros(2, 3, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(dim=1, correction=0), torch.ones(2, 3, 5), atol=1e-4, rtol=0)


def test_networks_train() -> None:
    network = build(depths=1, widths=1, blocks=("basic", "robust", "robust"))
    x, y = torch.rand(16, 3, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_arguments_are_what_differs_from_the_defaults() -> None:
    assert WideResNetConfig().arguments() == {"depths": [4, 4, 4], "widths": [10, 10, 10]}
    settings: dict[str, Any] = {
        "depths": [1, 2, 3],
        "widths": [3, 2, 1],
        "blocks": ["basic", "basic", "robust"],
        "activation": "SiLU",
        "normalize": [[0.5, 0.5, 0.5], [0.25, 0.25, 0.25]],
        "stem_stride": 2,
    }
    config = WideResNetConfig(num_classes=7, **settings)
    assert config.arguments() == settings
    assert WideResNetConfig(num_classes=7, **config.arguments()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": (4, 0, 4)}, "depths: 0 is not allowed; an integer of at least 1 is"),
        ({"depths": (4, 4)}, r"depths: \[4, 4\] is not allowed; one value or a list of three"),
        ({"widths": "10"}, "widths: '10' is not allowed"),
        ({"blocks": "robust_block"}, "blocks: 'robust_block' .* did you mean 'robust'?"),
        ({"activation": ("ReLU", "SiLU", "Swish")}, "activation: 'Swish' is not allowed"),
        ({"normalization": "BatchNrm"}, "did you mean 'BatchNorm'?"),
        ({"kernel_size": 4}, "kernel_size: 4 is not allowed; an odd number is"),
        ({"strides": (1, 2, True)}, "strides: True is not allowed"),
        ({"num_classes": 0}, "num_classes: 0 is not allowed"),
        ({"preact_fix": 1}, "preact_fix: 1 is not allowed; true or false is"),
        ({"normalize": "cifar11"}, "normalize: 'cifar11' is not allowed; null, cifar10 or"),
        ({"normalize": [[0, 0, 0], [1, 0, 1]]}, "three positive standard deviations"),
        (
            {"blocks": "robust", "base_channels": (8, 16, 32), "widths": 1},
            "stage 1: robust blocks of 8 channels .* at least 16 channels are",
        ),
        (
            {"blocks": "robust", "widths": 1, "se_reduction": 65},
            "se_reduction: 65 is not allowed with the 64 output channels of stage 1",
        ),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WideResNetConfig(**settings)
