"""Training and evaluation items for normals, checked against a sphere whose normals are known everywhere."""

import copy

import numpy as np
import pytest

from data_modules.transforms import EvalTransform, NormalsTrainTransform, SampleRejected, photometric
from data_modules.transforms import geometry as g

PLAIN = dict.fromkeys(("photometric", "downsample", "scale", "crop", "flip", "blur", "noise", "solarise"), 0.0)
SIZE = (128, 96)


def check_against(sphere, item, centres, rim: float) -> None:
    """Compare an item's labels and picture with the sphere as the item's matrix shows it."""
    crop = item["crop"].astype(np.float64)
    shown = sphere.warped(crop, SIZE)
    points = centres(SIZE)
    distance = np.linalg.norm(points - shown.centre, axis=-1) / shown.radius
    normals, valid = item["normals"].transpose(1, 2, 0), item["valid"][0]
    np.testing.assert_allclose(np.linalg.norm(normals[valid], axis=-1), 1, atol=1e-6)
    assert (normals[~valid] == 0).all()
    assert not valid[distance > 1 + rim].any()

    inner = valid & (distance < 0.85)
    assert inner.sum() > 100
    error = (normals - shown.normals(points))[inner]
    # Nearest labels are up to half a source pixel off (1/90 of the radius), but not on average.
    assert np.abs(error[:, :2]).max() < 0.018
    assert np.abs(error.mean(axis=0)).max() < 0.003

    # The picture's colours are the source's normals: where does each pixel come from?
    colours = item["image"].transpose(1, 2, 0)[inner] / 255 * 2 - 1
    source = sphere.normals(g.map_points(points, np.linalg.inv(crop)))[inner]
    assert np.abs(colours - source).max() < 0.04
    assert np.abs((colours - source).mean(axis=0)).max() < 0.003


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"flip": 1.0},
        {"rotate": 1.0, "rotate_degrees": 40.0},
        {"crop": 1.0},
        {"person_crop": True},
        {"crop": 0.5, "flip": 0.5, "rotate": 0.5, "rotate_degrees": 180.0, "person_crop": True},
    ],
    ids=["letterbox", "flip", "rotation", "crop", "person", "all"],
)
def test_labels_and_picture_follow_the_geometry(sphere, centres, options):
    transform = NormalsTrainTransform(SIZE, **{**PLAIN, **options})
    sample = sphere.sample()
    for seed in range(12):
        item = transform(sample, np.random.default_rng(seed))
        check_against(sphere, item, centres, rim=0.03)


def test_a_rotation_by_30_degrees_turns_the_normals_by_30_degrees(sphere):
    """The stated geometry, not only a consistent one: the sphere's crown leans to the left after a turn to the left."""
    transform = NormalsTrainTransform(SIZE, **PLAIN, rotate=1.0, rotate_degrees=30.0)

    class Largest(np.random.Generator):
        def uniform(self, low=0.0, high=1.0, size=None):
            return high if size is None else np.full(size, high)

    item = transform(sphere.sample(), Largest(np.random.PCG64(0)))
    np.testing.assert_allclose(g.orthogonal_part(item["crop"]), g.rotation_matrix(30, (0, 0))[:2, :2], atol=1e-3)
    # The source's point with normal (0, 0.8, 0.6) now has (-0.8 sin 30, 0.8 cos 30, 0.6).
    x, y = g.map_points(sphere.centre - np.array([0, 0.8 * sphere.radius]), item["crop"].astype(np.float64))
    np.testing.assert_allclose(item["normals"][:, int(y), int(x)], [-0.4, 0.693, 0.6], atol=0.04)


def test_item_layout(sphere):
    item = NormalsTrainTransform(SIZE)(sphere.sample(), np.random.default_rng(3))
    layout = {name: (value.dtype, value.shape) for name, value in item.items() if name != "key"}
    assert layout == {
        "image": (np.uint8, (3, 128, 96)),
        "normals": (np.float32, (3, 128, 96)),
        "valid": (np.bool_, (1, 128, 96)),
        "crop": (np.float32, (3, 3)),
        "source_size": (np.int64, (2,)),
        "intrinsics": (np.float32, (3, 3)),
    }
    assert item["key"] == "sphere" and item["source_size"].tolist() == [160, 128]
    assert all(value.flags.c_contiguous for value in item.values() if isinstance(value, np.ndarray))


def test_intrinsics_move_with_the_picture(sphere):
    transform = NormalsTrainTransform(SIZE, **{**PLAIN, "flip": 1.0})
    item = transform(sphere.sample(), np.random.default_rng(0))
    scale = 96 / 128
    np.testing.assert_allclose(
        item["intrinsics"],
        [[300 * scale, 0, (128 - 61) * scale], [0, 300 * scale, 83 * scale + 4], [0, 0, 1]],
        rtol=1e-6,
    )


def test_the_same_generator_gives_the_same_item_and_leaves_the_sample_alone(sphere):
    transform = NormalsTrainTransform(SIZE, rotate=0.5, person_crop=True)
    sample = sphere.sample()
    before = copy.deepcopy(sample)
    images = set()
    for seed in range(10):
        first, second = (transform(sample, np.random.default_rng([7, seed])) for _ in range(2))
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
        images.add(first["image"].tobytes())
    assert len(images) == 10
    for name, value in before.items():
        np.testing.assert_array_equal(sample[name], value)


def binomial_bound(probability: float, count: int) -> float:
    return 4.5 * (probability * (1 - probability) / count) ** 0.5


def test_steps_happen_as_often_as_published(sphere, monkeypatch):
    """Release, data 4.4; the scale shows only for factors below 1, a third of U(0.5, 2)."""
    calls = {}
    for name in ("distort_colours", "down_up_sample", "blur", "add_noise", "solarise"):

        def spy(image, rng, name=name):
            calls[name] = calls.get(name, 0) + 1
            return image

        monkeypatch.setattr(photometric, name, spy)
    small, count = (32, 24), 2000
    sample = {name: sphere.sample()[name][::4, ::4] for name in ("image", "normals", "alpha")} | {"key": "small"}
    with_scale, without = NormalsTrainTransform(small), NormalsTrainTransform(small, scale=0.0)
    flips = crops = scales = 0
    for seed in range(count):
        item = with_scale(sample, np.random.default_rng(seed))
        flips += item["crop"][0, 0] < 0
        crops += abs(item["crop"][1, 1]) > 0.76 or abs(item["crop"][0, 0]) > 0.76
        scales += not np.array_equal(item["image"], without(sample, np.random.default_rng(seed))["image"])
    for name, probability in (  # of two draws each
        ("distort_colours", 1.0),
        ("down_up_sample", 0.2),
        ("blur", 0.3),
        ("add_noise", 0.3),
        ("solarise", 0.3),
    ):
        assert abs(calls[name] / (2 * count) - probability) <= binomial_bound(probability, count), name
    assert abs(flips / count - 0.3) < binomial_bound(0.3, count)
    assert abs(crops / count - 0.3) < binomial_bound(0.3, count)
    assert abs(scales / count - 0.1) < binomial_bound(0.1, count)


def test_crops_have_the_published_areas_and_aspects():
    from data_modules.transforms.regions import random_region

    rng = np.random.default_rng(0)
    regions = np.array([random_region((10, 20, 1010, 1020), rng) for _ in range(2000)])
    width, height = (regions[:, 2:] - regions[:, :2]).T
    assert regions[:, :2].min() >= 10 and regions[:, 2].max() <= 1010 and regions[:, 3].max() <= 1020
    area, aspect = width * height / 1e6, width / height
    assert area.min() >= 0.399 and area.max() <= 1 and aspect.min() >= 0.499 and aspect.max() <= 2.01
    assert area.min() < 0.42 and aspect.min() < 0.55 and aspect.max() > 1.8
    # The last row and column are reached, and the first.
    assert regions[:, 0].min() == 10 and regions[:, 2].max() == 1010
    assert random_region((0, 0, 1, 100), np.random.default_rng(0)) == (0, 0, 1, 100)  # nothing fits: the whole


def test_person_crop_fills_the_input(sphere):
    options = PLAIN | {"person_crop": True, "person_jitter": 0.0}
    for margin in (1.0, 1.3):
        transform = NormalsTrainTransform(SIZE, **options, person_margin=(margin, margin))
        item = transform(sphere.sample(), np.random.default_rng(0))
        columns = item["valid"][0].any(axis=0)
        assert columns.sum() == pytest.approx(96 / margin, abs=2.5)


def test_a_rotated_picture_has_black_corners_whatever_the_colours(sphere):
    transform = NormalsTrainTransform(SIZE, **PLAIN | {"photometric": 1.0}, rotate=1.0, rotate_degrees=45)
    sample = sphere.sample() | {"image": np.full((160, 128, 3), 100, np.uint8)}
    for seed in range(20):
        item = transform(sample, np.random.default_rng(seed))
        ones = g.warp_labels(np.ones((160, 128), np.uint8), item["crop"].astype(np.float64), SIZE)
        assert (item["image"][:, ones == 0] == 0).all()


def test_too_few_and_too_many_valid_pixels_are_rejected(sphere):
    sample = sphere.sample()
    transform = NormalsTrainTransform((20, 16), **PLAIN)
    full = np.zeros((20, 16, 3), np.float32)
    image = np.zeros((20, 16, 3), np.uint8)
    for count, rejected in ((15, True), (16, False), (307, False), (308, True)):  # 96 % of 320 is 307.2
        normals = full.copy()
        normals.reshape(-1, 3)[:count] = (0, 0, 1)
        case = {"key": "some/key", "image": image, "normals": normals}
        if rejected:
            with pytest.raises(SampleRejected, match="some/key") as caught:
                transform(case, np.random.default_rng(0))
            assert caught.value.key == "some/key" and "valid" in caught.value.reason
        else:
            assert transform(case, np.random.default_rng(0))["valid"].sum() == count
    with pytest.raises(SampleRejected, match="no person"):
        NormalsTrainTransform(SIZE, person_crop=True)(
            sample | {"box": np.zeros(4, np.float32)}, np.random.default_rng(0)
        )


def test_undefined_half_covered_and_unnormalised_labels(sphere):
    normals = np.tile(np.array([0, 0, 2.0], np.float32), (20, 16, 1))  # not of unit length
    normals[0, 0] = np.nan
    normals[1, 1] = np.inf
    normals[2, 2] = 0
    alpha = np.full((20, 16), 255, np.uint8)
    alpha[3, 3], alpha[4, 4] = 127, 128
    sample = {"key": "k", "image": np.zeros((20, 16, 3), np.uint8), "normals": normals, "alpha": alpha}
    for item in (
        EvalTransform((20, 16))(sample),
        NormalsTrainTransform((20, 16), **PLAIN, max_valid=1.0)(sample, np.random.default_rng(0)),
    ):
        invalid = {tuple(index) for index in np.argwhere(~item["valid"][0])}
        assert invalid == {(0, 0), (1, 1), (2, 2), (3, 3)}
        assert (item["normals"][:, item["valid"][0]] == [[0], [0], [1]]).all()
        assert (item["normals"][:, ~item["valid"][0]] == 0).all()


def test_wrong_samples_are_named(sphere):
    transform, rng = NormalsTrainTransform(SIZE), np.random.default_rng(0)
    with pytest.raises(SampleRejected, match="'sphere' rejected: it has no 'normals'; it has image"):
        transform({"key": "sphere", "image": sphere.sample()["image"]}, rng)
    with pytest.raises(ValueError, match=r"'sphere': 'normals' must be float32 \(160, 128, 3\)"):
        transform(sphere.sample() | {"normals": np.zeros((80, 64, 3), np.float32)}, rng)
    with pytest.raises(ValueError, match=r"'image' must be uint8 \(H, W, 3\), got float32"):
        EvalTransform(SIZE)({"key": "k", "image": np.zeros((4, 4, 3), np.float32)})
    with pytest.raises(ValueError, match=r"flip=1.5"):
        NormalsTrainTransform(SIZE, flip=1.5)


def test_evaluation_keeps_labels_at_the_source_size(sphere):
    sample = sphere.sample()
    item = EvalTransform(SIZE)(sample)
    assert item["image"].shape == (3, 128, 96) and item["source_size"].tolist() == [160, 128]
    np.testing.assert_allclose(item["normals"].transpose(1, 2, 0), sample["normals"], atol=1e-6)
    np.testing.assert_array_equal(item["valid"][0], sample["alpha"] > 127)
    np.testing.assert_allclose(item["crop"], [[0.75, 0, 0], [0, 0.75, 4], [0, 0, 1]])
    np.testing.assert_array_equal(item["intrinsics"], sample["intrinsics"])
    assert (item["image"][:, :4] == 0).all() and (item["image"][:, 4] != 0).any()
    picture = {"key": "p", "image": sample["image"]}
    prediction = EvalTransform(SIZE)(picture)
    assert set(prediction) == {"key", "image", "crop", "source_size"}
    np.testing.assert_array_equal(prediction["image"], item["image"])


def test_evaluation_of_a_person_crop(sphere, centres):
    sample = sphere.sample()
    item = EvalTransform(SIZE, person_crop=True, person_margin=1.1)(sample)
    # 45 px radius, margin 1.1: 99 wide, 132 high for the aspect 3:4, cut to the picture at no side.
    x0, y0 = round(58.3 - 49.5), round(76.9 - 66)
    height, width = item["source_size"]
    assert (height, width) == (132, 99)
    cut = (slice(y0, y0 + height), slice(x0, x0 + width))
    np.testing.assert_allclose(item["normals"].transpose(1, 2, 0), sample["normals"][cut], atol=1e-6)
    np.testing.assert_allclose(item["intrinsics"][:2, 2], [61 - x0, 83 - y0])
    # `crop` maps the region's pixels: the sphere's centre, seen from the region, lands where the picture shows it.
    shown = sphere.warped(item["crop"] @ g.translation_matrix(-x0, -y0), SIZE)
    colours = item["image"].transpose(1, 2, 0) / 255 * 2 - 1
    inner = np.linalg.norm(centres(SIZE) - shown.centre, axis=-1) < 0.8 * shown.radius
    assert np.abs(colours - shown.normals(centres(SIZE)))[inner].max() < 0.04
    with pytest.raises(ValueError, match="shows no person"):
        EvalTransform(SIZE, person_crop=True)(sample | {"box": np.zeros(4, np.float32)})
    with pytest.raises(KeyError, match="needs 'box', 'alpha' or 'normals'"):
        EvalTransform(SIZE, person_crop=True)({"key": "p", "image": sample["image"]})


@pytest.mark.parametrize("missing", [(), ("box",), ("box", "alpha")])
def test_the_person_is_found_without_a_box(sphere, missing):
    sample = {name: value for name, value in sphere.sample().items() if name not in missing}
    item = EvalTransform(SIZE, person_crop=True, person_margin=1.1)(sample)
    np.testing.assert_allclose(item["source_size"], [132, 99], atol=1)
