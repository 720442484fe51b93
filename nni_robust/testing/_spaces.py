"""What every search space promises, as a test class to inherit."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nni.mutable import Mutable, SampleValidationError
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.space import SimplifiedModelSpace
from torch import Tensor, nn

from nni_robust.cost import measure_cost
from nni_robust.errors import UserError
from nni_robust.relaxation import one_hot, relax
from nni_robust.sampling import Sample, draw
from nni_robust.store import content_key
from nni_robust.supernet import build_supernet, inherit, set_path
from nni_robust.testing._checks import assert_refused, sent_and_received
from nni_robust.testing._parts import HashEvaluator, TinySpace
from nni_robust.training.weights import load_weights, save_weights

__all__ = ["SpaceConformance"]

# Draws of weights of a network that is asked whether a gradient reaches the pictures.
_INITIAL_WEIGHTS = 5
# NNI's automatic labels end with a number of their own: model/1, global/2.
_READABLE = re.compile(r"[A-Za-z][\x21-\x7e]*")
_NUMBERED = re.compile(r"(.*/)?\d+")


class SpaceConformance:
    """Tests of one search space; implement :meth:`make_space`.

    Attributes
    ----------
    input_shape
        (C, H, W) of the pictures that its networks take, in pixels; small ones keep the tests fast.
    classes
        Outputs of its networks.
    draws
        Samples that most tests look at.
    shares_weights
        It claims to become a supernet (:func:`nni_robust.supernet.build_supernet`). Otherwise the
        refusal is tested.
    relaxes
        It claims to become differentiable in its choices (:func:`nni_robust.relaxation.relax`).
        Otherwise the refusal is tested.
    """

    input_shape: tuple[int, int, int] = (3, 8, 8)
    classes: int = 10
    draws: int = 3
    shares_weights: bool = False
    relaxes: bool = False

    def make_space(self) -> Any:
        """A fresh space with networks as small as possible; equal whenever it is called."""
        raise NotImplementedError("override make_space(self)")

    def samples(self, space: Any) -> list[Sample]:
        """Random samples that keep the space's constraints, always the same."""
        mutables, rng = space.simplify(), np.random.RandomState(0)
        found: dict[str, Sample] = {}
        for _ in range(100 * self.draws):
            sample = draw(mutables, rng)
            if space.contains(sample):
                found[content_key(sample)] = sample
            if len(found) == self.draws:
                break
        assert found, "no random draw lies in the space"
        return list(found.values())

    def pictures(self, number: int = 4) -> Tensor:
        """(number, C, H, W), float32, in [0, 1]: a black one, a white one, random ones."""
        generator = torch.Generator().manual_seed(1)
        x = torch.rand(number, *self.input_shape, generator=generator)
        x[0], x[1] = 0, 1
        return x

    def test_is_a_model_space(self) -> None:
        assert isinstance(self.make_space(), ModelSpace)

    def test_labels_are_readable(self) -> None:
        for label in self.make_space().simplify():
            assert isinstance(label, str)
            assert _READABLE.fullmatch(label), f"{label!r} is not readable in NNI's web UI"
            assert not _NUMBERED.fullmatch(label), f"{label!r} is a number; give it a name"

    def test_labels_and_values_are_stable(self) -> None:
        first = _described(self.make_space())
        TinySpace()  # other people's spaces must not move a counter
        again = _described(self.make_space())
        assert list(again) == list(first)
        assert again == first

    def test_samples_lie_in_the_space(self) -> None:
        space = self.make_space()
        labels = set(space.simplify())
        for sample in self.samples(space):
            assert labels <= set(sample)
            assert space.contains(sample)
            assert SimplifiedModelSpace.from_model(space).contains(sample)

    def test_foreign_samples_are_refused(self) -> None:
        space = self.make_space()
        for sample in self.samples(space):
            for label in sample:
                rest = {key: value for key, value in sample.items() if key != label}
                for bad in (rest, {**sample, label: "no value of any choice"}):
                    assert not space.contains(bad), f"contains {bad}"
                    assert_refused(
                        partial(space.freeze, bad), SampleValidationError, f"freeze took {bad}"
                    )

    def test_freezes_to_a_plain_network(self) -> None:
        space = self.make_space()
        for sample in self.samples(space):
            for network in self.both(space, sample):
                assert isinstance(network, nn.Module)
                left = [
                    name or "the network"
                    for name, module in network.named_modules()
                    if isinstance(module, Mutable) and module.simplify()
                ]
                assert left == [], f"still undecided: {', '.join(left)}"
                assert not any(p.is_meta for p in network.parameters())

    def both(self, space: Any, sample: Sample) -> list[Any]:
        """The network of a sample by both doors: the space's ``freeze``, and NNI's in a trial."""
        model = SimplifiedModelSpace.from_model(space, HashEvaluator()).freeze(sample)
        return [space.freeze(sample), model.executable_model()]

    def test_is_the_same_network_by_both_doors(self) -> None:
        space = self.make_space()
        for sample in self.samples(space):
            frozen, built = (_shapes(network) for network in self.both(space, sample))
            assert built == frozen

    def test_gives_finite_logits(self) -> None:
        space = self.make_space()
        for sample in self.samples(space):
            network = space.freeze(sample)
            for training in (True, False):
                logits = network.train(training)(self.pictures())
                assert isinstance(logits, Tensor)
                assert logits.shape == (4, self.classes)
                assert bool(logits.isfinite().all())
            assert network(self.pictures()[:1]).shape == (1, self.classes)

    def test_gradient_reaches_the_pictures(self) -> None:
        """Or no attack could do anything."""
        for sample in self.samples(self.make_space()):
            # A narrow network with ReLUs may be dead by chance, but not with all weights.
            reached = (self._reaches(sample, seed) for seed in range(_INITIAL_WEIGHTS))
            assert any(reached), f"{sample}: the gradient is zero"

    def _reaches(self, sample: Sample, seed: int) -> bool:
        """Whether a network with weights of its own passes a gradient to random pictures."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.make_space().freeze(sample).eval()
        x = self.pictures().requires_grad_()
        _spread(network)
        logits = network(x)
        if not logits.requires_grad:
            pytest.fail(f"{sample}: the logits do not depend on the pictures", pytrace=False)
        logits.square().sum().backward()
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
        return bool(x.grad[2:].any())

    def test_pictures_of_a_batch_do_not_see_each_other(self) -> None:
        space = self.make_space()
        for sample in self.samples(space):
            network, x = space.freeze(sample).eval(), self.pictures()
            _spread(network)
            with torch.no_grad():
                alone = torch.cat([network(x[i : i + 1]) for i in range(len(x))])
                torch.testing.assert_close(network(x), alone, rtol=1e-3, atol=1e-4)

    def test_cost_is_that_of_the_network(self) -> None:
        space = self.make_space()
        if not hasattr(space, "cost"):
            pytest.skip("no cost(sample, input_shape): networks are counted when costs are needed")
        with torch.device("meta"):
            bare = self.make_space()
        for sample in self.samples(space):
            counted = measure_cost(space.freeze(sample), self.input_shape)
            assert space.cost(sample, self.input_shape) == counted, f"of {sample}"
            assert bare.cost(sample, self.input_shape) == counted, "on a space without weights"

    def test_can_be_made_without_weights(self) -> None:
        """A search that looks up scores only asks the space, and spares itself the weights."""
        with torch.device("meta"):
            space = self.make_space()
        assert all(p.is_meta for p in space.parameters())
        assert set(space.simplify()) == set(self.make_space().simplify())

    def test_samples_survive_json(self) -> None:
        space = self.make_space()
        for sample in self.samples(space):
            again = json.loads(json.dumps(sample, allow_nan=False))
            assert again == sample
            assert space.contains(again)

    def test_survives_nnis_serialisation(self) -> None:
        space = self.make_space()
        for sample in self.samples(space):
            model = SimplifiedModelSpace.from_model(space, HashEvaluator()).freeze(sample)
            sent = sent_and_received(model)
            assert sent.sample == sample
            assert _shapes(sent.executable_model()) == _shapes(space.freeze(sample))

    def test_a_seed_repeats_the_weights(self) -> None:
        space = self.make_space()
        sample = self.samples(space)[0]
        states = []
        for _ in range(2):
            with torch.random.fork_rng():
                torch.manual_seed(3)
                states.append(self.both(space, sample)[1].state_dict())
        first, again = states
        assert [name for name in first if not torch.equal(first[name], again[name])] == []

    def test_weights_can_be_kept(self, tmp_path: Path) -> None:
        """As the run folder keeps them: in safetensors, read back into a new network."""
        space = self.make_space()
        for number, sample in enumerate(self.samples(space)):
            network, other = self.both(space, sample)
            save_weights(network, tmp_path / f"{number}.safetensors")
            load_weights(other, tmp_path / f"{number}.safetensors")
            with torch.no_grad():
                x = self.pictures()
                torch.testing.assert_close(other.eval()(x), network.eval()(x))

    def supernet(self) -> tuple[Any, list[Sample]]:
        """A supernet whose batch-norm statistics are not the initial ones, and samples."""
        space = self.make_space()
        samples = self.samples(space)
        supernet = build_supernet(space).train()
        with torch.no_grad():
            for sample in samples:
                set_path(supernet, sample)
                supernet(self.pictures())
        return supernet.eval(), samples

    def test_supernet_computes_its_networks(self) -> None:
        if not self.shares_weights:
            says = "it becomes a supernet: claim shares_weights"
            assert_refused(lambda: build_supernet(self.make_space()), UserError, says)
            return
        supernet, samples = self.supernet()
        _spread(supernet)
        with torch.no_grad():
            for sample in samples:
                set_path(supernet, sample)
                network = inherit(supernet, sample).eval()
                torch.testing.assert_close(
                    network(self.pictures()), supernet(self.pictures()), rtol=1e-4, atol=1e-5
                )

    def test_inherited_weights_are_copies(self) -> None:
        if not self.shares_weights:
            pytest.skip("shares_weights = False: not claimed")
        supernet, samples = self.supernet()
        before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
        for sample in samples:
            network = inherit(supernet, sample)
            assert all(p.requires_grad for p in network.parameters()), "it could not be trained"
            with torch.no_grad():
                for tensor in network.state_dict().values():
                    tensor.zero_()
        after = supernet.state_dict()
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        assert changed == [], "training a candidate would change the supernet"

    def test_becomes_differentiable(self) -> None:
        if not self.relaxes:
            says = "it becomes differentiable: claim relaxes"
            assert_refused(lambda: relax(self.make_space()), UserError, says)
            return
        space = self.make_space()
        labels, samples = list(space.simplify()), self.samples(space)
        relaxed = relax(space)
        assert list(relaxed.choices) == labels
        relaxed.network.eval()
        _spread(relaxed.network)
        with torch.no_grad():
            for sample in samples:
                weights = one_hot(relaxed.choices, sample)
                assert relaxed.sample(weights) == sample
                relaxed.set_weights(weights)
                torch.testing.assert_close(
                    relaxed.freeze(sample).eval()(self.pictures()),
                    relaxed.network(self.pictures()),
                    rtol=1e-4,
                    atol=1e-5,
                )

    def test_inherits_a_teacher(self) -> None:
        space = self.make_space()
        if not hasattr(space, "inherit"):
            pytest.skip("no inherit(sample, teacher): a teacher's weights cannot be cut to size")
        for sample in self.samples(space):
            teacher = space.freeze(sample).eval()
            _spread(teacher)
            network = space.inherit(sample, teacher)
            with torch.no_grad():
                expected = teacher(self.pictures())
                torch.testing.assert_close(network.eval()(self.pictures()), expected)
                for tensor in network.state_dict().values():
                    tensor.zero_()
                torch.testing.assert_close(teacher(self.pictures()), expected)

    def test_codes_name_samples(self) -> None:
        """The short form that the web UI shows where there are too many labels."""
        space = self.make_space()
        if not hasattr(space, "encode"):
            pytest.skip("no encode(sample): the web UI shows every label")
        samples = self.samples(space)
        codes: Sequence[Any] = [space.encode(sample) for sample in samples]
        assert json.loads(json.dumps(codes)) == codes
        assert codes == [self.make_space().encode(sample) for sample in samples]
        assert len({content_key(code) for code in codes}) == len(samples)


def _described(space: Any) -> dict[str, str]:
    return {label: repr(choice) for label, choice in space.simplify().items()}


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def _spread(network: nn.Module) -> None:
    """Norms as after a training, so that nothing hides behind initial zeros and ones."""
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.running_var):
                if isinstance(tensor, Tensor):
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                if isinstance(tensor, Tensor):
                    tensor.data.uniform_(-0.2, 0.2, generator=generator)
