"""Pictures decoded when needed: equal to those in memory, for any number of workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nni_robust.data import StreamedImages
from nni_robust.data import loading as loading_module
from nni_robust.data._decode import Geometry
from nni_robust.data.loading import load_dataset
from nni_robust.errors import UserError


@pytest.fixture
def images(tmp_path):
    """24 different pictures of 12 x 12 pixels, 3 classes."""
    random = np.random.default_rng(1)
    files = []
    for i in range(24):
        files.append(str(tmp_path / f"{i:02}.png"))
        Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(files[-1])
    return StreamedImages(files, torch.arange(24) % 3, "abc", Geometry(12, 12), workers=0)


def stack(stream):
    pairs = list(stream)
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"shuffle": True, "seed": 3, "epoch": 2},
        {"shuffle": True, "augment": ("crop", "flip"), "start": 2, "drop_last": True},
        {"augment": ("flip",), "shard": (1, 2)},
    ],
)
def test_streamed_equals_held(images, arguments):
    x, y = stack(images.batches(7, **arguments))
    held_x, held_y = stack(images.load().batches(7, **arguments))
    assert torch.equal(x, held_x)
    assert torch.equal(y, held_y)
    assert x.dtype == torch.float32


def test_workers_change_nothing(images):
    arguments = {"shuffle": True, "augment": ("resized-crop", "flip"), "epoch": 1}
    alone = stack(images.batches(7, **arguments))
    images.workers = 2
    state = torch.get_rng_state()
    shared = stack(images.batches(7, **arguments))
    assert torch.equal(alone[0], shared[0])
    assert torch.equal(alone[1], shared[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_resized_crop_is_new_in_each_epoch_and_the_same_when_repeated(images):
    def epoch(number, **kwargs):
        return stack(images.batches(24, augment=("resized-crop",), epoch=number, **kwargs))[0]

    assert torch.equal(epoch(0), epoch(0))
    changed = (epoch(0) != epoch(1)).flatten(1).any(1)
    assert changed.all()
    assert not torch.equal(epoch(0), epoch(0, seed=1))


def test_resized_crop_shows_a_window_of_the_right_area(tmp_path):
    # A ramp: pixel (row, column) has red = 2 * row, green = 2 * column, so a crop tells its window.
    rows, columns = np.mgrid[0:120, 0:120].astype(np.uint8) * 2
    path = str(tmp_path / "ramp.png")
    Image.fromarray(np.stack([rows, columns, rows], -1)).save(path)
    ramp = StreamedImages([path] * 300, torch.zeros(300).long(), "a", Geometry(60, 60), workers=0)
    x, _ = stack(ramp.batches(50, augment=("resized-crop",)))
    height = (x[:, 0, -1, 30] - x[:, 0, 0, 30]) * 255 / 2 * 60 / 59 + 1e-3
    width = (x[:, 1, 30, -1] - x[:, 1, 30, 0]) * 255 / 2 * 60 / 59 + 1e-3
    area, ratio = height * width / 120**2, width / height
    assert 0.06 < area.min() < 0.16
    assert 0.9 < area.max() < 1.03
    assert 0.70 < ratio.min() < 0.85
    assert 1.2 < ratio.max() < 1.42


def test_middle_window_after_resizing(tmp_path):
    path = str(tmp_path / "wide.png")
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 200
    Image.fromarray(pixels).save(path)
    geometry = Geometry(10, 10, resize=10)
    image = StreamedImages([path], torch.zeros(1).long(), "a", geometry).load().images[0]
    # 20 x 60 becomes 10 x 30; the middle third is the bright one (its edge is blended by resizing).
    assert (image[:, :, 1:-1] == 200).all()


def test_parts_keep_files_and_labels_together(images):
    part = images.take(torch.tensor([5, 1, 20]))
    held = images.load()
    assert torch.equal(part.load().images, held.images[[5, 1, 20]])
    assert part.labels.tolist() == [2, 1, 2]
    assert images.nbytes == 24 * 12 * 12 * 3
    moved = images.to("meta")
    assert moved.device.type == "meta"
    assert images.device.type == "cpu"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_cannot_be_read_is_one_sentence(images, workers, tmp_path):
    (tmp_path / "04.png").write_bytes(b"GIF89a")
    images.workers = workers
    with pytest.raises(UserError, match=r"^cannot read picture '.*04.png'") as caught:
        list(images.batches(5))
    assert "\n" not in str(caught.value)


def test_large_sets_are_streamed_and_small_ones_held(tmp_path, monkeypatch):
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / part / name / f"{i}.png")
    name = f"image-folder:{tmp_path}"
    assert not load_dataset(name).train.streamed
    monkeypatch.setattr(loading_module, "MEMORY_LIMIT", 5 * 4 * 4 * 3)
    splits = load_dataset(name, validation=0.25)
    assert splits.train.streamed  # 6 pictures
    assert not splits.validation.streamed  # 2
