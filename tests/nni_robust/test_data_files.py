"""Data sets on disk, in their official formats (small stand-ins with the real layout)."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from nni_robust.data import StreamedImages, import_torchvision, load_dataset
from nni_robust.errors import UserError

RANDOM = np.random.default_rng(0)


def md5(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def picture(path, height=8, width=8, mode="RGB") -> np.ndarray:
    """Write a random picture without loss (PNG content, whatever the suffix says)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "L": (), "RGBA": (4,)}[mode]
    pixels = RANDOM.integers(0, 256, (height, width, *channels), dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path, format="PNG")
    return pixels


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Write CIFAR files (rows of 3,072 bytes: red, green, blue) whose md5 counts as official."""
    import_torchvision()
    from torchvision import datasets

    def write(kind, files, key, names):
        cls = getattr(datasets, kind)
        home = tmp_path / cls.base_folder
        home.mkdir()
        rows, labels = {}, {}
        for file, n in files.items():
            rows[file] = RANDOM.integers(0, 256, (n, 3072), dtype=np.uint8)
            labels[file] = RANDOM.integers(0, len(names), n).tolist()
            entry = {"data": rows[file], key: labels[file], "batch_label": file}
            (home / file).write_bytes(pickle.dumps(entry, protocol=2))
        meta = {cls.meta["key"]: names, "num_cases_per_batch": 10}
        (home / cls.meta["filename"]).write_bytes(pickle.dumps(meta, protocol=2))
        for part in ("train_list", "test_list"):
            official = [[file, md5(home / file)] for file, _ in getattr(cls, part)]
            monkeypatch.setattr(cls, part, official)
        monkeypatch.setitem(cls.meta, "md5", md5(home / cls.meta["filename"]))
        return home, rows, labels

    return write


def as_set(images, labels) -> list[tuple[bytes, int]]:
    return sorted(
        (bytes(i.astype(np.uint8).tobytes()), int(y)) for i, y in zip(images, labels, strict=True)
    )


def test_cifar10(cifar, tmp_path):
    files = {f"data_batch_{i}": 20 for i in range(1, 6)} | {"test_batch": 12}
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    _, rows, labels = cifar("CIFAR10", files, "labels", names)
    splits = load_dataset("cifar10", root=tmp_path, test=True)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (80, 20, 12)
    assert splits.input_shape == (3, 32, 32)
    assert splits.class_names == tuple(names)
    assert splits.train.augment == ("crop", "flip")
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    written = np.concatenate([rows[b] for b in batches]).reshape(-1, 3, 32, 32)
    read = torch.cat([splits.train.images, splits.validation.images]).numpy()
    read_labels = torch.cat([splits.train.labels, splits.validation.labels]).tolist()
    assert as_set(read, read_labels) == as_set(written, [y for b in batches for y in labels[b]])
    test = rows["test_batch"].reshape(-1, 3, 32, 32)
    assert as_set(splits.test.images.numpy(), splits.test.labels) == as_set(
        test, labels["test_batch"]
    )


def test_cifar100_uses_fine_labels(cifar, tmp_path):
    names = [f"class {i}" for i in range(4)]
    _, rows, labels = cifar("CIFAR100", {"train": 30, "test": 10}, "fine_labels", names)
    splits = load_dataset("cifar100", root=tmp_path, test=True, validation=0.5)
    assert splits.class_names == tuple(names)
    test = rows["test"].reshape(-1, 3, 32, 32)
    assert as_set(splits.test.images.numpy(), splits.test.labels) == as_set(test, labels["test"])


def test_cifar_damaged(cifar, tmp_path):
    files = {f"data_batch_{i}": 4 for i in range(1, 6)} | {"test_batch": 4}
    home, _, _ = cifar("CIFAR10", files, "labels", list("abcdefghij"))
    damaged = (home / "data_batch_3").read_bytes()
    (home / "data_batch_3").write_bytes(damaged[:-1] + b"x")
    with pytest.raises(
        UserError, match=r"damaged.*https://www.cs.toronto.edu/~kriz/cifar-10-python"
    ):
        load_dataset("cifar10", root=tmp_path)


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    """SVHN's .mat files: X (32, 32, 3, N), y (N, 1) in 1…10, where 10 is the digit 0."""
    import_torchvision()
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    home = tmp_path / "svhn"
    home.mkdir()
    content = {}
    for part, n in (("train", 40), ("test", 20)):
        x = RANDOM.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        y = (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]
        savemat(home / f"{part}_32x32.mat", {"X": x, "y": y})
        url, file, _ = SVHN.split_list[part]
        monkeypatch.setitem(SVHN.split_list, part, [url, file, md5(home / file)])
        content[part] = x.transpose(3, 2, 0, 1), y[:, 0] % 10
    return content


def test_svhn(svhn, tmp_path):
    splits = load_dataset("svhn", root=tmp_path, test=True)
    assert splits.train.augment == ("crop",)
    assert as_set(splits.test.images.numpy(), splits.test.labels) == as_set(*svhn["test"])
    read = torch.cat([splits.train.images, splits.validation.images]).numpy()
    labels = torch.cat([splits.train.labels, splits.validation.labels])
    assert as_set(read, labels) == as_set(*svhn["train"])


def test_svhn_directly_in_the_root(svhn, tmp_path):
    assert len(load_dataset("svhn", root=tmp_path / "svhn").train) == 32


def test_tiny_imagenet(tmp_path):
    home = tmp_path / "tiny-imagenet-200"
    written = {}
    for label, wnid in enumerate(("n01", "n02", "n03")):
        for i in range(5):
            pixels = picture(home / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 64, 64)
            written[pixels.tobytes()] = label
    test, lines = {}, []
    for i, wnid in enumerate(("n03", "n01", "n03")):
        pixels = picture(home / "val" / "images" / f"val_{i}.JPEG", 64, 64)
        test[pixels.tobytes()] = int(wnid[-1]) - 1
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (home / "val" / "val_annotations.txt").write_text("".join(lines))
    (home / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn03\tbullfrog\nn99\tx\n")
    splits = load_dataset("tiny-imagenet", root=tmp_path, test=True)
    assert splits.class_names == ("goldfish", "n02", "bullfrog")
    assert splits.input_shape == (3, 64, 64)

    def read(*parts):
        return {
            x.permute(1, 2, 0).numpy().tobytes(): int(y)
            for part in parts
            for x, y in zip(part.images, part.labels, strict=True)
        }

    assert read(splits.train, splits.validation) == written
    assert read(splits.test) == test


def test_tiny_imagenet_with_strange_annotations(tmp_path):
    home = tmp_path / "tiny-imagenet-200"
    picture(home / "train" / "n01" / "images" / "n01_0.JPEG", 64, 64)
    (home / "val").mkdir()
    (home / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn77\t0\t0\t62\t62\n")
    with pytest.raises(UserError, match="names class 'n77'"):
        load_dataset("tiny-imagenet", root=tmp_path, validation=0, test=True)


@pytest.fixture
def folder(tmp_path):
    """train/{cat,dog}/*, test/{cat,dog}/*: pictures of 8 x 6 pixels."""
    home = tmp_path / "pets"
    written = {}
    for part, n in (("train", 10), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(n):
                pixels = picture(home / part / name / f"{i:02}.png", 8, 6)
                written[part, pixels.tobytes()] = label
    (home / "train" / "cat" / "notes.txt").write_text("no picture")
    (home / "train" / ".hidden").mkdir()
    return home, written


def test_image_folder(folder):
    home, written = folder
    splits = load_dataset(f"image-folder:{home}", test=True)
    assert splits.input_shape == (3, 8, 6)
    assert splits.class_names == ("cat", "dog")
    read = {
        (part, x.permute(1, 2, 0).numpy().tobytes()): int(y)
        for part, images in (
            ("train", splits.train),
            ("train", splits.validation),
            ("test", splits.test),
        )
        for x, y in zip(images.images, images.labels, strict=True)
    }
    assert read == written


def test_image_folder_with_val_in_place_of_test(folder):
    home, _ = folder
    (home / "test").rename(home / "val")
    assert len(load_dataset(f"image-folder:{home}", test=True).test) == 6


def test_grey_and_transparent_pictures_get_three_channels(folder):
    home, _ = folder
    grey = picture(home / "train" / "cat" / "00.png", 8, 6, "L")
    coloured = picture(home / "train" / "cat" / "01.png", 8, 6, "RGBA")
    splits = load_dataset(f"image-folder:{home}", validation=0)
    found = {x.permute(1, 2, 0).numpy().tobytes() for x in splits.train.images}
    assert np.repeat(grey[:, :, None], 3, 2).tobytes() in found
    assert np.ascontiguousarray(coloured[:, :, :3]).tobytes() in found


def test_a_size_in_the_name_fits_every_picture(folder):
    home, _ = folder
    path = home / "train" / "cat" / "00.png"
    large = picture(path, 16, 40)
    splits = load_dataset(f"image-folder:{home}@16", validation=0, test=True)
    assert splits.input_shape == (3, 16, 16)
    # 16 x 40 only loses its sides; nothing is resized.
    found = {x.permute(1, 2, 0).numpy().tobytes() for x in splits.train.images}
    assert np.ascontiguousarray(large[:, 12:28]).tobytes() in found


def break_nothing(home):
    return f"{home}2"


def remove_test(home):
    (home / "test").rename(home / "other")


def remove_train(home):
    (home / "train").rename(home / "other")


def empty_class(home):
    (home / "train" / "emu").mkdir()


def strange_class(home):
    picture(home / "test" / "emu" / "1.png")


def empty_train(home):
    for path in (home / "train").glob("*/*"):
        path.unlink()


def flat_train(home):
    for path in (home / "train").iterdir():
        path.rename(home / f"old-{path.name}")


def empty_test(home):
    for path in (home / "test").glob("*/*"):
        path.unlink()


def another_size(home):
    picture(home / "train" / "dog" / "03.png", 9, 6)


def no_picture(home):
    (home / "train" / "dog" / "03.png").write_text("<html>404</html>")


def cut_off(home):
    path = home / "train" / "dog" / "03.png"
    path.write_bytes(path.read_bytes()[:60])


def size_zero(home):
    return f"{home}@0"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (break_nothing, "there is no folder"),
        (remove_test, "there is no test split"),
        (remove_train, "there is no folder '.*train"),
        (empty_class, "there is no picture in '.*emu'"),
        (strange_class, "class 'emu' is in '.*test' but not in"),
        (empty_train, "there is no picture in '.*cat'"),
        (flat_train, "holds no class folders"),
        (empty_test, "there is no picture in '.*test'"),
        (another_size, r"03.png' is 9 x 6 and others are 8 x 6; name one size"),
        (no_picture, "cannot read picture '.*03.png'"),
        (cut_off, "cannot read picture '.*03.png'"),
        (size_zero, "size 0 is not allowed"),
    ],
)
def test_unusable_folders_are_refused(folder, damage, sentence):
    home, _ = folder
    name = damage(home) or home
    with pytest.raises(UserError, match=sentence):
        load_dataset(f"image-folder:{name}", test=True)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cifar10", r"cifar-10-batches-py.*download https://www.cs.toronto.edu/.*unpack it in"),
        ("cifar100", r"cifar-100-python.*download https://www.cs.toronto.edu/.*NNI_ROBUST_DATA"),
        ("svhn", r"download http://ufldl.stanford.edu/.*/svhn'"),
        ("tiny-imagenet", r"download http://cs231n.stanford.edu/tiny-imagenet-200.zip"),
        ("imagenet", r"download https://image-net.org/.*imagenet'"),
    ],
)
def test_missing_files_say_what_to_download_and_where_to_put_it(name, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence) as caught:
        load_dataset(name, root=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_imagenet_is_streamed(tmp_path):
    for part, n in (("train", 3), ("val", 2)):
        for wnid in ("n01440764", "n01443537"):
            for i in range(n):
                picture(tmp_path / "imagenet" / part / wnid / f"{i}.JPEG", 300, 280)
    splits = load_dataset("imagenet", root=tmp_path, validation=0.34, test=True)
    assert isinstance(splits.train, StreamedImages)
    assert splits.train.augment == ("resized-crop", "flip")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (4, 2, 4)
    assert splits.input_shape == (3, 224, 224)
    splits.test.workers = 0
    ((x, y),) = splits.test.batches(4)
    assert x.shape == (4, 3, 224, 224)
    assert sorted(y.tolist()) == [0, 0, 1, 1]


def test_torchvision_imports_beside_any_torch():
    # In a process of its own: the guard has to work on the first import.
    code = (
        "from nni_robust.data import import_torchvision as get; tv = get(); assert get() is tv; "
        "from torchvision import datasets, models, transforms; print(datasets.CIFAR10.base_folder)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "cifar-10-batches-py"
