"""Batches from memory: exact pixels, exact augmentation, exact repetition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_robust.data import ImageSet, derive_seed, generator
from nni_robust.data.augment import AUGMENTATIONS, Dice, augment_batch, check_augment
from nni_robust.errors import UserError


def make(n=50, size=16, seed=0, **kwargs) -> ImageSet:
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (n, 3, size, size + 8), generator=random, dtype=torch.uint8)
    return ImageSet(images, torch.arange(n) % 5, "abcde", **kwargs)


def collect(stream) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = list(stream)
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def test_pixels_are_bytes_over_255_in_the_order_of_the_set():
    images = make()
    x, y = collect(images.batches(16))
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x, images.images.to(torch.float32) / 255)
    assert torch.equal(y, images.labels)


def test_every_byte_comes_out_in_the_unit_interval():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    ((x, _),) = ImageSet(images, torch.tensor([0]), ["a"]).batches(1)
    assert (x.min(), x.max()) == (0.0, 1.0)
    assert torch.equal((x * 255).round().to(torch.uint8), images)


def test_shuffling_is_a_permutation_of_its_seed_and_epoch():
    images = make(seed=1)

    def order(**kwargs):
        x, _ = collect(images.batches(16, shuffle=True, **kwargs))
        return [int((x == picture).flatten(1).all(1).nonzero()) for picture in images.images / 255]

    first = order(seed=3, epoch=0)
    assert sorted(first) == list(range(50))
    assert first == order(seed=3, epoch=0)
    assert first != order(seed=3, epoch=1)
    assert first != order(seed=4, epoch=0)
    assert first != list(range(50))


@given(
    n=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    start=st.integers(0, 4),
    world=st.integers(1, 3),
    shuffle=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_a_resumed_or_shared_epoch_gives_the_same_batches(n, batch_size, start, world, shuffle):
    images = make(n, size=8)
    arguments = {"shuffle": shuffle, "seed": 5, "epoch": 2, "augment": ("crop", "flip")}
    whole = list(images.batches(batch_size, **arguments))
    assert sum(len(y) for _, y in whole) == n
    parts = [
        list(images.batches(batch_size, start=start, shard=(rank, world), **arguments))
        for rank in range(world)
    ]
    for number, (x, y) in enumerate(whole[start:]):
        for rank in range(world):
            assert torch.equal(parts[rank][number][0], x[rank::world])
            assert torch.equal(parts[rank][number][1], y[rank::world])
    assert all(len(part) == max(0, len(whole) - start) for part in parts)


def test_only_full_batches_on_request():
    sizes = [len(y) for _, y in make(50).batches(16, drop_last=True)]
    assert sizes == [16, 16, 16]
    assert [len(y) for _, y in make(50).batches(16)] == [16, 16, 16, 2]


def test_crop_is_a_window_of_the_black_framed_picture():
    images = make(200, size=16)  # 16 x 24: shifts of up to 2 rows and 3 columns
    x, _ = collect(images.batches(64, augment=("crop",), seed=7))
    padded = F.pad(images.images, (3, 3, 2, 2))
    seen = set()
    for picture, frame in zip((x * 255).round().to(torch.uint8), padded, strict=True):
        windows = frame.unfold(1, 16, 1).unfold(2, 24, 1).permute(1, 2, 0, 3, 4)
        matches = (windows == picture).flatten(2).all(2).nonzero().tolist()
        assert len(matches) == 1
        seen.add(tuple(matches[0]))
    assert seen == {(row, column) for row in range(5) for column in range(7)}


def test_crop_shifts_are_uniform_and_independent_of_each_other():
    marks = torch.zeros(20000, 1, 8, 8, dtype=torch.uint8)
    marks[:, 0, 4, 4] = 255
    images = ImageSet(marks, torch.zeros(20000, dtype=torch.int64), ["a"])
    x, _ = collect(images.batches(500, augment=("crop",)))
    places = x[:, 0].sum(0)
    expected = 20000 / 9
    # Each of the 9 places is binomial with standard deviation 44; 5 of those are never exceeded.
    assert (places[3:6, 3:6] - expected).abs().max() < 5 * 44.5
    assert places.sum() == 20000


def test_flip_mirrors_half_of_the_pictures():
    images = make(400)
    x, _ = collect(images.batches(100, augment=("flip",)))
    original = images.images / 255
    same = (x == original).flatten(1).all(1)
    mirrored = (x == original.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 150 < int(mirrored.sum()) < 250


def test_augmentations_are_applied_in_the_given_order():
    x = make(8).images
    both = augment_batch(x, ("flip", "crop"), Dice(generator(1), 8))
    dice = Dice(generator(1), 8)
    assert torch.equal(both, AUGMENTATIONS["crop"](AUGMENTATIONS["flip"](x, dice), dice))


def test_the_set_itself_never_changes_and_no_global_generator_is_touched():
    images = make()
    before, state = images.images.clone(), torch.get_rng_state()
    collect(images.batches(8, shuffle=True, augment=("flip", "crop")))
    assert torch.equal(images.images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_parts_of_a_set():
    images = make(10, augment=("flip",))
    part = images.take(torch.tensor([7, 2]))
    assert torch.equal(part.images, images.images[[7, 2]])
    assert part.labels.tolist() == [2, 2]
    assert part.augment == ("flip",)
    assert len(images.head(3)) == 3
    assert len(images.head(30)) == 10
    assert images.to("cpu").input_shape == (3, 16, 24)
    assert list(images.take(torch.arange(0)).batches(4)) == []


def test_derived_seeds_are_fixed_and_distinct():
    # sha256 of the text "(0, 'augment', 1)": first 8 bytes, little end first, halved.
    assert derive_seed(0, "augment", 1) == 6415722916842318036
    seeds = {derive_seed(s, p, e) for s in range(5) for p in ("a", "b") for e in range(50)}
    assert len(seeds) == 500
    assert derive_seed(1, 12) != derive_seed(11, 2)
    assert all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: make().batches(0), "batch_size: 0 is not allowed"),
        (lambda: make().batches(51, drop_last=True), "there are only 50 pictures"),
        (lambda: make().batches(4, augment=("flop",)), "did you mean 'flip'"),
        (lambda: make().batches(4, augment="flip"), "a list is"),
        (lambda: make().batches(4, augment=("resized-crop",)), "needs streamed pictures"),
        (lambda: make().head(0), "limit: 0 is not allowed"),
        (lambda: check_augment(["crop", "cutout"]), "allowed: crop, flip, resized-crop"),
        (
            lambda: ImageSet(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "a"),
            "uint8",
        ),
        (
            lambda: ImageSet(
                torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "a"
            ),
            "3 labels for 2 pictures",
        ),
        (
            lambda: ImageSet(
                torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ["a"]
            ),
            "0 to 1 is not allowed",
        ),
        (
            lambda: ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), "a"),
            "int64",
        ),
    ],
)
def test_impossible_requests_are_refused_at_the_call(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()
