"""Corruptions against closed forms, other libraries, plain loops and the published generator."""

from __future__ import annotations

import colorsys
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from nni_robust.corruptions import EXTRA, STANDARD, _filters, corrupt, names_of, scale_of
from nni_robust.corruptions._draws import Draws
from nni_robust.corruptions._parameters import PARAMETERS
from nni_robust.corruptions.blur import _sources
from nni_robust.corruptions.digital import _affine
from nni_robust.corruptions.weather import plasma
from nni_robust.errors import UserError

ALL = STANDARD + EXTRA
SCALES: tuple[Any, ...] = ("cifar", "imagenet")
#: Numbers of the published generator on pictures made by formula (see `picture`), three channels:
#: five severities, six places each. Run here: numpy 1.26, scipy 1.17, OpenCV 4.11, skimage 0.26.
PUBLISHED = json.loads((Path(__file__).parent / "data" / "corruptions_published.json").read_text())
DETERMINISTIC = (*PUBLISHED["cifar"], "jpeg_compression")


def picture(n: int) -> Tensor:
    """(1, 3, n, n), whole 255ths."""
    r, c, k = np.meshgrid(np.arange(n), np.arange(n), np.arange(3), indexing="ij")
    level = (37 * r + 91 * c + 53 * k + r * c // 3 + r * r // 7) % 256 // 2
    level = level + np.abs(r - c) * 127 // n
    return torch.from_numpy(level).permute(2, 0, 1)[None].float() / 255


def smooth(n: int, side: int = 32, seed: int = 0) -> Tensor:
    """(n, 3, side, side): pictures whose neighbours are alike, as in photographs."""
    rough = np.random.default_rng(seed).normal(size=(n, 3, side, side))
    soft = ndimage.gaussian_filter(rough, (0, 0.5, 2, 2), mode="wrap")
    return torch.from_numpy(0.5 + 0.22 * soft / soft.std()).float().clamp(0, 1)


def grey(value: float, n: int = 8, side: int = 64, channels: int = 3) -> Tensor:
    return torch.full((n, channels, side, side), value)


def strength(name: str, severity: int, scale: str = "cifar") -> Any:
    return PARAMETERS[name][scale][severity - 1]  # type: ignore[index]


# --- the published pictures ----------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", list(PUBLISHED["cifar"]))
def test_published_generator(name: str, scale: Any) -> None:
    n = {"cifar": 32, "imagenet": 224}[scale]
    x = picture(n)
    row, col, channel = (
        torch.tensor(v)
        for v in zip(
            (0, 0, 0),
            (n - 1, n - 1, 2),
            (n // 2, n // 3, 1),
            (n // 4, n - 2, 0),
            (5, n // 2, 2),
            (n - 3, 7, 1),
            strict=True,
        )
    )
    # Pixelated pictures are rounded to bytes there.
    tolerance = 1.01 if name == "pixelate" else 0.02
    for severity, wanted in enumerate(PUBLISHED[scale][name], 1):
        found = corrupt(x, name, severity, scale=scale)[0, channel, row, col] * 255
        assert found.tolist() == pytest.approx(wanted, abs=tolerance)


def test_the_fifteen_and_the_extras() -> None:
    assert STANDARD == (
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "defocus_blur",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
        "snow",
        "frost",
        "fog",
        "brightness",
        "contrast",
        "elastic_transform",
        "pixelate",
        "jpeg_compression",
    )
    assert EXTRA == ("speckle_noise", "gaussian_blur", "saturate")
    assert all(len(PARAMETERS[name][scale]) == 5 for name in ALL for scale in SCALES)


# --- every corruption ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (3, 1, 8, 8), (2, 3, 20, 31), (2, 3, 1, 1)])
def test_pictures_of_any_size_stay_pictures(name: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    for scale in SCALES:
        for severity in (1, 5):
            y = corrupt(x, name, severity, scale=scale)
            assert y.shape == x.shape
            assert y.dtype == x.dtype
            assert y.isfinite().all()
            assert y.min() >= 0
            assert y.max() <= 1
    assert torch.equal(corrupt(x, name, 0), x)
    assert torch.equal(x, before)
    assert corrupt(x[:0], name, 3).shape == (0, *shape[1:])
    assert corrupt(x.double(), name, 2).dtype == torch.float64


@pytest.mark.parametrize("name", ALL)
def test_batch_and_order_do_not_matter(name: str) -> None:
    x = smooth(12)
    whole = corrupt(x, name, 3, seed=4)
    assert torch.equal(corrupt(x, name, 3, seed=4), whole)
    order = torch.tensor([7, 2, 11, 0, 5])
    some = corrupt(x[order], name, 3, seed=4, index=order)
    # Matrix products of other sizes round otherwise; a wrong random number would be far off.
    assert torch.allclose(some, whole[order], atol=2e-6)
    one = corrupt(x[3:4], name, 3, seed=4, index=torch.tensor([3]))
    assert torch.allclose(one, whole[3:4], atol=2e-6)


@pytest.mark.parametrize("name", [name for name in ALL if name not in DETERMINISTIC])
def test_pictures_severities_and_seeds_differ(name: str) -> None:
    same = smooth(1).repeat(6, 1, 1, 1)
    found = corrupt(same, name, 4, seed=1)
    alike = sum(bool((found[i] - found[j]).abs().max() < 1e-3) for i in range(6) for j in range(i))
    assert alike <= 1  # two directions of a motion may be the same to whole pixels
    assert (found - corrupt(same, name, 4, seed=2)).abs().max() > 0.01


@pytest.mark.parametrize(
    "name", [n for n in ALL if n not in ("glass_blur", "elastic_transform", "saturate", "frost")]
)
def test_harder_is_further(name: str) -> None:
    """The published strengths of those left out do not rise (the authors scaled by error)."""
    for scale, side in (("cifar", 32), ("imagenet", 96)):
        x = smooth(16, side)
        far = [float((corrupt(x, name, s, scale=scale) - x).square().mean()) for s in range(1, 6)]  # type: ignore[arg-type]
        if (name, scale) == ("snow", "imagenet"):  # 3 has larger flakes, and fewer
            far.pop(2)
        # Two severities of one deviation differ by chance (motion_blur).
        assert all(more > 0.85 * less for less, more in itertools.pairwise(far))
        assert far[-1] > 1.2 * far[0] > 0


# --- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_gaussian_and_speckle_noise(severity: int) -> None:
    for name, value, share in (("gaussian_noise", 0.5, 1.0), ("speckle_noise", 0.4, 0.4)):
        y = corrupt(grey(value), name, severity) - value
        deviation = strength(name, severity) * share
        assert float(y.std()) == pytest.approx(deviation, rel=0.01)
        assert abs(float(y.mean())) < 0.01 * deviation
        assert stats.kstest((y / deviation).flatten().numpy()[:20000], "norm").pvalue > 1e-4
        assert np.corrcoef(y[:, 0].flatten(), y[:, 1].flatten())[0, 1] < 0.02


@pytest.mark.parametrize("photons", [500, 50, 12, 3])
def test_shot_noise_counts_photons(photons: int) -> None:
    from nni_robust.corruptions.noise import shot_noise

    draws = Draws(0, "shot_noise", 1, torch.arange(8))
    for level in (0, 26, 128, 255):
        mean = level / 255 * photons
        counts = shot_noise(grey(level / 255), photons, draws).double() * photons
        assert torch.allclose(counts, counts.round(), atol=1e-4)
        assert float(counts.mean()) == pytest.approx(mean, rel=0.01, abs=1e-9)
        assert float(counts.var()) == pytest.approx(mean, rel=0.03, abs=1e-9)
        for count in {int(mean), int(mean + mean**0.5)}:
            share = float((counts.round() <= count).double().mean())
            assert share == pytest.approx(stats.poisson.cdf(count, mean), abs=0.006)


def test_impulse_noise() -> None:
    for severity in (1, 5):
        y = corrupt(grey(0.5), "impulse_noise", severity)
        hit = y != 0.5
        assert set(y[hit].tolist()) == {0.0, 1.0}
        amount = strength("impulse_noise", severity)
        assert float(hit.double().mean()) == pytest.approx(amount, rel=0.1)
        assert float(y[hit].mean()) == pytest.approx(0.5, abs=0.03)


# --- blur ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["nearest", "reflect"])
def test_gaussian_blur_is_scipys(mode: Any) -> None:
    x = torch.rand(2, 3, 17, 24)
    for sigma in (0.4, 1.0, 3.0):
        wanted = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode=mode, truncate=3)
        found = _filters.blurred(x, sigma, mode, 3.0).numpy()
        assert np.abs(found - wanted).max() < 1e-5


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["defocus_blur", "gaussian_blur", "motion_blur", "zoom_blur"])
def test_blurs_keep_flat_pictures_and_the_mean(name: str, scale: Any) -> None:
    inside = torch.zeros(2, 3, 96, 96)
    inside[:, :, 40:56, 40:56] = smooth(2, 16)
    for severity in (1, 3):  # a published defocus of severity 4 and 5 is 1 % lighter
        flat = corrupt(grey(0.37, 3, 40), name, severity, scale=scale)
        assert torch.allclose(flat, grey(0.37, 3, 40), atol=1e-5)
        if name != "zoom_blur":  # which cuts off the rim
            y = corrupt(inside, name, severity, scale=scale)
            assert float(y.mean()) == pytest.approx(float(inside.mean()), rel=1e-4)


def test_defocus_of_a_point_is_a_disk() -> None:
    x = torch.zeros(1, 1, 33, 33)
    x[..., 16, 16] = 1
    y = corrupt(x, "defocus_blur", 1, scale="imagenet")[0, 0]  # radius 3, hardly any soft rim
    r, c = torch.meshgrid(torch.arange(33) - 16, torch.arange(33) - 16, indexing="ij")
    disk = (r**2 + c**2 <= 9).float()
    assert torch.allclose(y, disk / disk.sum(), atol=1e-6)


def test_zoom_blur_is_scipys_in_three_dimensions() -> None:
    x = picture(32)
    image = x[0].permute(1, 2, 0).double().numpy()
    total = image.copy()
    factors = np.arange(1, 1.21, 0.01)
    for factor in factors:
        crop = int(np.ceil(32 / factor))
        top = (32 - crop) // 2
        part = image[top : top + crop, top : top + crop]
        large = ndimage.zoom(part, (factor, factor, 1), order=1)
        cut = (len(large) - 32) // 2
        total += large[cut : cut + 32, cut : cut + 32]
    found = corrupt(x, "zoom_blur", 4)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - total / (len(factors) + 1)).max() < 1e-5


@pytest.mark.parametrize(("degrees", "way"), [(0, (0, 1)), (-90, (-1, 0)), (45, (1, 1))])
def test_motion_of_a_point(degrees: float, way: tuple[int, int]) -> None:
    """Light comes from the direction of the motion: half a Gaussian along one line."""
    x = torch.zeros(1, 1, 41, 41)
    x[..., 20, 20] = 1
    y = _filters.motion(x, 6, 2.0, torch.tensor([float(degrees)]))[0, 0]
    weights = np.exp(-(np.arange(13) ** 2) / 8)
    for step in range(6):
        distance = step if 0 in way else round(step / 2**0.5)
        at = (20 - way[0] * distance, 20 - way[1] * distance)
        assert y[at] >= weights[step] / weights.sum() - 1e-6
    assert float(y.sum()) == pytest.approx(1, abs=1e-6)
    line = {(20 - way[0] * k, 20 - way[1] * k) for k in range(20)}
    assert {tuple(p) for p in y.nonzero().tolist()} <= line


@pytest.mark.parametrize("jump", [1, 2, 4])
def test_glass_is_the_plain_loop(jump: int) -> None:
    generator = torch.Generator().manual_seed(jump)
    height, width = 15, 12
    down, right = torch.randint(-jump, jump, (2, 3, height, width), generator=generator)
    found = _sources(down, right, jump)
    for n in range(3):
        place = np.arange(height * width).reshape(height, width)
        for r in range(height - jump, jump, -1):
            for c in range(width - jump, jump, -1):
                place[r, c] = place[r + down[n, r, c], c + right[n, r, c]]
        assert found[n].tolist() == place.flatten().tolist()
    assert (found != torch.arange(height * width)).double().mean() > 0.1


# --- weather -------------------------------------------------------------------------------------


@pytest.mark.parametrize("severity", [1, 5])
def test_brightness_and_saturation_in_hsv(severity: int) -> None:
    x = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    x[..., 0, 0], x[..., 0, 1] = 0.0, 0.4  # black, grey
    bright, strong = (corrupt(x, name, severity)[0] for name in ("brightness", "saturate"))
    more = strength("brightness", severity)
    factor, summand = strength("saturate", severity)
    for r in range(6):
        for c in range(6):
            h, s, v = colorsys.rgb_to_hsv(*x[0, :, r, c].tolist())
            wanted = colorsys.hsv_to_rgb(h, s, min(v + more, 1))
            assert bright[:, r, c].tolist() == pytest.approx(wanted, abs=1e-5)
            wanted = colorsys.hsv_to_rgb(h, min(s * factor + summand, 1), v)
            assert strong[:, r, c].tolist() == pytest.approx(wanted, abs=1e-5)
    assert torch.equal(corrupt(x[:, :1], "saturate", severity), x[:, :1])  # grey has no hue


def test_fog_keeps_the_lightest_and_lies_between_two_greys() -> None:
    for severity in (1, 5):
        thick, _ = strength("fog", severity)
        y = corrupt(grey(0.6, side=32), "fog", severity)
        low, high = y.flatten(1).aminmax(dim=1)
        assert torch.allclose(low, torch.tensor(0.36 / (0.6 + thick)), atol=1e-5)
        assert torch.allclose(high, torch.tensor(0.6), atol=1e-5)


def test_plasma_gets_rougher_with_less_decay() -> None:
    draws = Draws(0, "fog", 1, torch.arange(16))
    rough = []
    for decay in (3.0, 2.0, 1.4):
        cloud = plasma(60, decay, draws)
        assert cloud.shape == (16, 64, 64)
        assert cloud.flatten(1).amin(1).eq(0).all()
        assert cloud.flatten(1).amax(1).eq(1).all()
        # as a surface without edges
        rough.append(float((cloud - cloud.roll(1, 2)).abs().mean() / cloud.std()))
    assert rough == sorted(rough)
    assert rough[2] > 2 * rough[0]


def test_snow_on_black_is_the_same_upside_down() -> None:
    y = corrupt(torch.zeros(4, 3, 32, 32), "snow", 4)
    keep = strength("snow", 4)[6]
    assert torch.allclose(y, y.flip(2, 3), atol=1e-6)
    assert torch.equal(y[:, 0], y[:, 1])
    assert y.min() >= 0.5 * (1 - keep) - 1e-6
    assert y.max() > 0.5


def test_frost_adds_ice_and_takes_light() -> None:
    keep, share = strength("frost", 5)
    black, white = (corrupt(grey(v, side=32), "frost", 5) for v in (0.0, 1.0))
    assert 0.35 * share < float(black.mean()) < 0.95 * share
    assert black.max() <= share + 1e-6
    assert torch.allclose((white - black)[white < 1], torch.tensor(float(keep)), atol=1e-5)


# --- digital -------------------------------------------------------------------------------------


def test_contrast() -> None:
    x = smooth(3)
    y = corrupt(x, "contrast", 2)
    assert torch.allclose(y.mean((2, 3)), x.mean((2, 3)), atol=1e-6)
    assert torch.allclose(y.std((2, 3)), 0.5 * x.std((2, 3)), atol=1e-6)


@pytest.mark.parametrize(("scale", "severity"), [("cifar", 5), ("imagenet", 1), ("imagenet", 5)])
def test_pixelate_makes_blocks_as_pillow_does(scale: Any, severity: int) -> None:
    x = picture(32)
    y = corrupt(x, "pixelate", severity, scale=scale)[0]
    few = int(32 * strength("pixelate", severity, scale))
    assert len(np.unique(y.numpy().round(5), axis=1)[0]) <= few
    assert len({tuple(row) for row in y[0].numpy().round(5).tolist()}) == few
    image = Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).numpy())
    wanted = np.asarray(image.resize((few, few), Image.Resampling.BOX).resize((32, 32), 4))
    assert np.abs(y.permute(1, 2, 0).numpy() * 255 - wanted).max() <= 1.01


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(channels: int) -> None:
    x = picture(32)[:, :channels]
    image = Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy())
    file = io.BytesIO()
    image.save(file, "JPEG", quality=58)
    wanted = np.asarray(Image.open(file)).reshape(32, 32, channels)
    found = corrupt(x, "jpeg_compression", 3)[0].permute(1, 2, 0).numpy() * 255
    assert np.array_equal(found.round(), wanted)
    with pytest.raises(UserError, match="1 or 3 channels"):
        corrupt(torch.rand(1, 2, 8, 8), "jpeg_compression", 3)


def test_bilinear_is_scipys() -> None:
    x = torch.rand(1, 2, 9, 11)
    rows, cols = torch.rand(2, 1, 9, 11, generator=torch.Generator().manual_seed(0)) * 20 - 5
    for edge, mode in (("mirrored", "mirror"), ("symmetric", "reflect")):
        found = _filters.bilinear(x, rows, cols, edge)  # type: ignore[arg-type]
        for channel in range(2):
            wanted = ndimage.map_coordinates(
                x[0, channel].numpy(), [rows[0].numpy(), cols[0].numpy()], order=1, mode=mode
            )
            assert np.abs(found[0, channel].numpy() - wanted).max() < 1e-5


def test_elastic_maps() -> None:
    """A ramp under an affine map is a ramp; without a shake nothing moves."""
    draws = Draws(0, "elastic_transform", 1, torch.arange(3))
    x = smooth(3, 32)
    assert torch.allclose(_affine(x, 0.0, draws), x, atol=1e-5)
    r, c = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    ramp = (2 * r + c).expand(3, 1, 64, 64)
    moved = _affine(ramp, 4.0, draws)[:, 0, 24:40, 24:40]
    assert (moved - ramp[:, 0, 24:40, 24:40]).abs().max() > 1
    for one in moved.double().numpy():
        design = np.stack([r[:16, :16].flatten(), c[:16, :16].flatten(), np.ones(256)], 1)
        rest = np.linalg.lstsq(design, one.flatten(), rcond=None)[1]
        assert rest < 1e-4
    flat = grey(0.3, 2, 32)
    for severity in range(1, 6):
        assert torch.allclose(corrupt(flat, "elastic_transform", severity), flat, atol=1e-5)


# --- names and refusals --------------------------------------------------------------------------


def test_names_and_scales() -> None:
    assert names_of("standard") == STANDARD
    assert names_of("all") == ALL
    assert names_of(["fog", "jpeg-compression"]) == ("fog", "jpeg_compression")
    assert scale_of((3, 64, 64)) == "cifar"
    assert scale_of((1, 3, 32, 65)) == "imagenet"
    assert scale_of((3, 64, 64), "imagenet") == "imagenet"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"corruption": "fogg"}, "unknown 'fogg'.*'fog'"),
        ({"severity": 6}, "severity: 6"),
        ({"severity": True}, "severity: True"),
        ({"severity": 2.5}, "severity: 2.5"),
        ({"scale": "mnist"}, "scale: 'mnist'"),
        ({"x": torch.zeros(3, 8, 8)}, "shape"),
        ({"x": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, "float"),
    ],
)
def test_refusals(change: dict[str, Any], says: str) -> None:
    settings: dict[str, Any] = {"x": torch.rand(1, 3, 8, 8), "corruption": "fog", "severity": 1}
    with pytest.raises(UserError, match=says):
        corrupt(**{**settings, **change})
    for names in ([], ["fog", "fog"]):
        with pytest.raises(UserError, match="corruptions: "):
            names_of(names)
