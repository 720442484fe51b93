"""Splits: disjoint, stratified, the same for ever; the test split is out of a search's reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_robust.data import ImageSet, absolute_task, load_dataset, load_task, stratified_order
from nni_robust.errors import UserError
from nni_robust.registry import datasets
from nni_robust.task import Task
from nni_robust.threat import ThreatModel

READ: list[tuple[str, str]] = []

# Made by the first version; they hold for every later one.
FIXED = [0, 8, 4, 9, 11, 1, 5, 7, 6, 10, 2, 3]
FIXED_SUMS = [17102808, 4315731, 5442864]


@datasets.register("numbered")
def read_numbered(root, split):
    """1,000 pictures of 4 classes in unequal shares; each picture shows its own number."""
    READ.append((str(root), split))
    first, n = (0, 1000) if split == "train" else (1000, 200)
    number = torch.arange(first, first + n)
    images = torch.stack([number // 256, number % 256, number % 7], 1)[:, :, None, None]
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 3])[number % 10]
    return ImageSet(images.expand(-1, -1, 2, 2).to(torch.uint8), labels, "abcd", augment=("flip",))


def numbers(images: ImageSet) -> list[int]:
    corner = images.images[:, :2, 0, 0].long()
    return (corner[:, 0] * 256 + corner[:, 1]).tolist()


def test_splits_share_no_picture_and_lose_none():
    splits = load_dataset("numbered", test=True, validation=0.3, split_seed=5)
    train, validation, test = map(numbers, (splits.train, splits.validation, splits.test))
    assert sorted(train + validation) == list(range(1000))
    assert sorted(test) == list(range(1000, 1200))
    assert (len(train), len(validation)) == (700, 300)


def test_splits_are_stratified():
    splits = load_dataset("numbered", test=True, validation=0.3, split_seed=5)
    assert splits.validation.labels.bincount().tolist() == [150, 60, 60, 30]
    assert splits.train.labels.bincount().tolist() == [350, 140, 140, 70]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=120),
    st.integers(0, 2**40),
)
@settings(deadline=None, max_examples=60)
def test_every_beginning_of_the_order_has_the_classes_in_their_shares(labels, seed):
    y = torch.tensor(labels)
    order = stratified_order(y, seed)
    assert sorted(order.tolist()) == list(range(len(y)))
    counts = y.bincount(minlength=6)
    running = torch.nn.functional.one_hot(y[order], 6).cumsum(0)
    length = torch.arange(1, len(y) + 1)[:, None]
    error = (running - length * counts / len(y)).abs()
    # Each class is off by 1/2, and the common cut by half a picture of each class.
    classes = int((counts > 0).sum())
    assert (error <= 0.5 + classes / 2 * counts / len(y) + 1e-4).all()


def test_the_order_is_fixed_for_ever():
    # A search that is resumed after an upgrade must find the same split.
    labels = torch.tensor([0, 1, 2] * 4)
    assert stratified_order(labels, 0).tolist() == FIXED
    splits = load_dataset("digits", test=True)
    sums = [int(s.images.long().sum()) for s in (splits.train, splits.validation, splits.test)]
    assert sums == FIXED_SUMS


def test_seed_decides_and_repeats():
    one, again, other = (load_dataset("numbered", split_seed=s) for s in (1, 1, 2))
    assert numbers(one.train) == numbers(again.train)
    assert set(numbers(one.validation)) != set(numbers(other.validation))


def test_a_small_limit_is_part_of_a_larger_one():
    small = load_dataset("numbered", train_limit=40, validation_limit=10)
    large = load_dataset("numbered", train_limit=80)
    assert numbers(small.train) == numbers(large.train)[:40]
    assert numbers(small.validation) == numbers(large.validation)[:10]
    assert small.train.labels.bincount().tolist() == [20, 8, 8, 4]


def test_the_test_split_is_not_even_read_unless_asked_for():
    READ.clear()
    splits = load_dataset("numbered", root="somewhere")
    assert READ == [("somewhere", "train")]
    with pytest.raises(UserError, match="was not asked for"):
        _ = splits.test
    assert len(load_dataset("numbered", test=True, test_limit=7).test) == 7


def test_root_comes_from_argument_or_variable_or_default(monkeypatch):
    READ.clear()
    monkeypatch.delenv("NNI_ROBUST_DATA", raising=False)
    load_dataset("numbered")
    monkeypatch.setenv("NNI_ROBUST_DATA", "/from/variable")
    load_dataset("numbered")
    load_dataset("numbered", root="/from/argument")
    load_dataset("numbered:/from/name", root="/from/argument")
    assert [root for root, _ in READ] == ["data", "/from/variable", "/from/argument", "/from/name"]


def test_task_and_data_set_say_the_same(monkeypatch, tmp_path):
    task = Task(
        "numbered", threat=ThreatModel(eps=0.1), validation=0.1, train_limit=50, split_seed=3
    )
    direct = load_dataset("numbered", validation=0.1, train_limit=50, split_seed=3)
    assert numbers(load_task(task).train) == numbers(direct.train)
    assert len(load_task(task, test=True).test) == 200
    monkeypatch.chdir(tmp_path)
    assert absolute_task(Task("numbered:here")).dataset == f"numbered:{tmp_path}/here"
    assert absolute_task(Task("numbered", root="there")).root == f"{tmp_path}/there"


def test_no_validation_split_on_request():
    splits = load_dataset("numbered", validation=0)
    assert (len(splits.train), len(splits.validation)) == (1000, 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"validation": 1.0}, "validation: 1.0 is not allowed"),
        ({"validation": -0.1}, "validation: -0.1 is not allowed"),
        ({"validation": float("nan")}, "validation: nan is not allowed"),
        ({"validation": 0.0001}, "leaves none"),
        ({"train_limit": 0}, "train_limit: 0 is not allowed"),
        ({"validation_limit": -1}, "validation_limit: -1 is not allowed"),
        ({"test_limit": 0}, "test_limit: 0 is not allowed"),
        ({"train_limit": 3}, "has 4 classes but only 3 training pictures"),
        ({"name": "cifar11"}, "did you mean 'cifar1"),
        ({"name": "image-folder"}, "image-folder:<path>"),
    ],
)
def test_impossible_requests_are_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        load_dataset(**{"name": "numbered", **arguments})


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    splits = load_dataset("digits", test=True)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1150, 287, 360)
    assert splits.input_shape == (3, 8, 8)
    assert splits.class_names == tuple("0123456789")
    assert splits.train.augment == ("crop",)  # a mirrored digit is another thing
    parts = (splits.train, splits.validation, splits.test)
    images = torch.cat([s.images for s in parts]).numpy()
    assert (images == images[:, :1]).all()
    # Invert the mapping: level v of 0…16 became the byte round(v * 255 / 16).
    levels = np.rint(images[:, 0].astype(float) * 16 / 255)
    assert (np.floor(levels * 255 / 16 + 0.5) == images[:, 0]).all()
    theirs, labels = load_digits(return_X_y=True)
    ours = np.column_stack([levels.reshape(-1, 64), torch.cat([s.labels for s in parts])])
    assert sorted(map(tuple, ours)) == sorted(map(tuple, np.column_stack([theirs, labels])))


def test_digits_test_split_never_moves():
    for seed in (0, 1):
        splits = load_dataset("digits", test=True, split_seed=seed, validation=0.5)
        total = int(splits.test.images.long().sum())
        assert total == FIXED_SUMS[2]
    assert splits.test.labels.bincount().tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
