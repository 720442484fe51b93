"""Losses against their formulas."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nni_robust.attacks import attack
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, TrainAttack
from nni_robust.training.losses import Clean, Madry, Trades, build_loss, kl_divergence


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)
    )
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(1)
    return torch.rand(12, 3, 8, 8, generator=random), torch.arange(12) % 5


def forwards(model):
    return lambda *batches: tuple(model(x) for x in batches)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_kl_divergence_against_its_sum(network, batch):
    random = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 7, 5, generator=random, dtype=torch.float64) * 3
    p, q = softmax(a.numpy()), softmax(b.numpy())
    assert np.allclose(kl_divergence(a, b).numpy(), (p * np.log(p / q)).sum(1), atol=1e-12)
    assert torch.allclose(kl_divergence(a, a), torch.zeros(7, dtype=torch.float64))


def test_trades_against_its_formula(network, batch):
    x, y = batch
    x_adv = (x + 0.05).clamp(0, 1)
    objective = build_loss(Recipe(loss="trades", beta=6.0), ThreatModel())
    reference = copy.deepcopy(network)
    loss, logits = objective(forwards(network), x, x_adv, y)
    clean, attacked = (reference(t).detach().double().numpy() for t in (x, x_adv))
    p, q = softmax(clean), softmax(attacked)
    expected = -np.log(p[np.arange(12), y]).mean() + 6 * (p * np.log(p / q)).sum(1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert np.allclose(logits.detach().numpy(), attacked, atol=1e-6)


def test_trades_gradient_flows_through_both_terms_and_both_passes(network, batch):
    # The authors' code does not detach the clean prediction inside the divergence.
    x, y = batch
    network.eval()
    x_adv = (x + 0.1).clamp(0, 1)
    loss, _ = Trades(ThreatModel(), {}, 2.0)(forwards(network), x, x_adv, y)
    loss.backward()
    ours = network[4].weight.grad.clone()
    network.zero_grad()
    clean, attacked = network(x), network(x_adv)
    p = clean.softmax(1)
    (
        F.cross_entropy(clean, y) + 2 * (p * (p.log() - attacked.log_softmax(1))).sum(1).mean()
    ).backward()
    assert torch.allclose(ours, network[4].weight.grad, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_trades_inner_attack_raises_the_divergence_inside_the_ball(network, batch, norm):
    x, y = batch
    threat = ThreatModel(norm=norm, eps=0.1 if norm == "linf" else 1.0)
    objective = build_loss(Recipe(loss="trades", attack=TrainAttack(steps=10)), threat)
    network.train()
    x_adv = objective.perturb(network, x, y, seed=3)
    network.eval()
    with torch.no_grad():
        found = kl_divergence(network(x), network(x_adv))
        random = kl_divergence(
            network(x), network((x + 0.1 * torch.randn_like(x).sign()).clamp(0, 1))
        )
    size = (x_adv - x).abs().amax() if norm == "linf" else (x_adv - x).flatten(1).norm(dim=1).max()
    assert size <= threat.eps * (1 + 1e-5)
    assert (found > 0).all()
    if norm == "linf":
        assert found.mean() > 2 * random.mean()
    # It does not climb the cross entropy: other labels give the same pictures.
    assert torch.equal(x_adv, objective.perturb(network.train(), x, (y + 1) % 5, seed=3))


def test_madry_is_the_cross_entropy_of_attacked_pictures(network, batch):
    x, y = batch
    threat = ThreatModel(eps=0.05)
    recipe = Recipe(attack=TrainAttack(steps=7, step_size=0.01))
    objective = build_loss(recipe, threat)
    x_adv = objective.perturb(network, x, y, seed=9)
    engine = attack("pgd", eps=0.05, steps=7, step_size=0.01, random_start=True)
    assert torch.equal(x_adv, engine(network, x, y, seed=9))
    loss, logits = objective(forwards(network.eval()), x, x_adv, y)
    assert torch.equal(loss, F.cross_entropy(network(x_adv), y))
    assert torch.equal(logits, network(x_adv))


def test_clean_shows_the_pictures_as_they_are(network, batch):
    x, y = batch
    objective = build_loss(Recipe(loss="clean"), ThreatModel())
    assert isinstance(objective, Clean)
    assert not isinstance(objective, Madry)
    assert objective.perturb(network, x, y, 0) is x


@pytest.mark.parametrize("loss", ["madry", "trades"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_an_attack_leaves_the_network_as_it_was(network, batch, loss, mode):
    x, y = batch
    network.train()
    network[4].weight.grad = torch.ones_like(network[4].weight)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    recipe = Recipe(loss=loss, attack=TrainAttack(steps=2, bn_mode=mode))
    build_loss(recipe, ThreatModel()).perturb(network, x, y, seed=0)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert network.training
    assert network[1].training
    assert all(p.requires_grad for p in network.parameters())
    assert torch.equal(network[4].weight.grad, torch.ones_like(network[4].weight))
    assert network[0].weight.grad is None


@pytest.mark.parametrize("loss", ["madry", "trades"])
def test_batch_norm_of_the_attack_is_what_was_asked_for(network, batch, loss):
    # With the batch's own statistics the running ones must not matter, and the other way round.
    x, y = batch
    other = copy.deepcopy(network)
    other[1].running_mean += 1
    other[1].running_var *= 3

    def pictures(model, mode):
        recipe = Recipe(loss=loss, attack=TrainAttack(steps=3, bn_mode=mode))
        return build_loss(recipe, ThreatModel(eps=0.1)).perturb(model.train(), x, y, seed=4)

    assert torch.equal(pictures(network, "train"), pictures(other, "train"))
    assert not torch.equal(pictures(network, "eval"), pictures(other, "eval"))
