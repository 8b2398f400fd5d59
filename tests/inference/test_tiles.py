"""Tiles: where they are, how they are blended; a network that works pixel by pixel gives the same with them."""

import itertools

import numpy as np
import pytest
import torch

from s2kit.inference.geometry import letterbox_matrix, unletterbox
from s2kit.inference.tiles import Blend, WholePass, Window, plan_tiles, tile_size
from s2kit.models.heads import PointmapOutput
from s2kit.tasks import PointmapTask, SegmentationTask
from s2kit.tasks.pointmap import align_depth


def test_when_a_picture_is_cut():
    assert tile_size((2000, 3000), (1024, 768), None) is None
    assert tile_size((1500, 1100), (1024, 768), "auto") is None  # shrinks by 1.46
    assert tile_size((1600, 1100), (1024, 768), "auto") == (1024, 768)
    assert tile_size((900, 3000), (1024, 768), "auto") == (900, 768)
    assert tile_size((900, 3000), (1024, 768), (512, 512)) == (512, 512)
    assert tile_size((400, 300), (1024, 768), (512, 512)) is None


@pytest.mark.parametrize("size", [(2160, 3840), (3024, 4032), (1024, 769), (1025, 500)])
def test_tiles_cover_the_picture_and_overlap(size):
    tile = tile_size(size, (1024, 768), (1024, 768))
    windows = plan_tiles(size, tile)
    count = np.zeros(size, int)
    for top, left, height, width in windows:
        assert (height, width) == tile
        assert min(top, left) >= 0
        count[top : top + height, left : left + width] += 1
    assert count.min() == 1
    tops, lefts = sorted({w.top for w in windows}), sorted({w.left for w in windows})
    for starts, length in ((tops, tile[0]), (lefts, tile[1])):
        assert all(after - before <= 0.75 * length + 1 for before, after in itertools.pairwise(starts))
    assert len(plan_tiles((2160, 3840), (1024, 768))) == 3 * 7


def test_blending_is_a_smooth_mean_and_holds_no_more_than_a_row_of_tiles():
    size, tile = (100, 90), (40, 40)
    windows = plan_tiles(size, tile)
    wave = torch.sin(torch.arange(9000.0).view(1, *size) / 400)
    blend, most = Blend(windows, size, lambda values: values, 0.25), 0
    for top, left, height, width in windows:
        blend.add(wave[:, top : top + height, left : left + width])
        most = max(most, blend.values.numel())
    torch.testing.assert_close(blend.result(), wave)
    assert most == 40 * 90
    # One tile that differs by 1 fades out: no step larger than the ramp's steepest.
    blend = Blend(windows, size, lambda values: values, 0.25)
    for index in range(len(windows)):
        blend.add(torch.full((1, *tile), float(index == 4)))
    step = blend.result().diff(dim=2).abs().max()
    assert blend.result().max() == 1
    assert step < 0.5


def test_a_region_of_the_whole_is_that_of_the_resized_whole():
    torch.manual_seed(0)
    size = (90, 130)
    crop = torch.from_numpy(letterbox_matrix(size, (64, 48)))
    output = torch.randn(5, 64, 48)
    whole = unletterbox(output, crop, size)
    for window in (Window(0, 0, 90, 130), Window(17, 40, 30, 50), Window(60, 100, 30, 30)):
        top, left, height, width = window
        region = WholePass(output, crop, size).region(window)
        torch.testing.assert_close(region, whole[:, top : top + height, left : left + width], atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{}, {"flip": True}])
@pytest.mark.parametrize(("name", "limit"), [("NormalsOracle", 1e-5), ("AlbedoOracle", 1e-5), ("MattingOracle", 1e-5)])
def test_a_pixelwise_network_sees_every_pixel_in_tiles(oracles, name, limit, options):
    """Noise, of which nothing is left in the whole picture's pass."""
    picture = oracles.ramps(150, 130)
    noise = np.random.default_rng(0).integers(-15, 15, picture.shape)
    picture = (picture + noise).astype(np.uint8)
    task = oracles.make(getattr(oracles, name))
    tiled = task.predict(picture, tile=(64, 48), **options)[0]
    image = torch.from_numpy(picture).permute(2, 0, 1)[None]
    truth = task.answer(image / 255, torch.ones(1, 1, 1))[0]
    truth = (truth / truth.norm(dim=0) if name == "NormalsOracle" else truth).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(tiled, truth, atol=limit)
    assert np.abs(task.predict(picture)[0] - truth).max() > 100 * limit
    np.testing.assert_array_equal(task.predict(picture, tile="auto", **options)[0], tiled)


def test_labels_of_tiles_are_those_of_the_whole_where_both_are_sure(oracles):
    picture = oracles.ramps(150, 130)
    task = oracles.make(oracles.SegmentationOracle)
    tiled, whole = (task.predict(picture, tile=tile)[0] for tile in ((64, 48), None))
    sure = np.abs(picture[..., 0] / 255.0 - 0.5) > 0.03
    np.testing.assert_array_equal(tiled[sure], whole[sure])


def test_a_tile_and_the_whole_count_alike_for_a_label(oracles):
    task = oracles.make(SegmentationTask)
    probability = torch.full((2, len(task.classes), 64, 48), 1e-9)
    probability[0, 3], probability[0, 5] = 0.9, 0.1  # the whole picture
    probability[1, 3], probability[1, 5] = 0.4, 0.6  # the tile
    probability[1, 3, :, 24:], probability[1, 5, :, 24:] = 0.0, 1.0
    batch = {"crop": torch.eye(3).repeat(2, 1, 1), "source_size": torch.tensor([[64, 48]] * 2)}
    whole = task.whole_pass(probability.log(), 0, batch)
    values = task.finish_tile(probability.log(), 1, batch, whole, Window(0, 0, 64, 48))
    assert values[3, 0, 0] == pytest.approx(0.65, abs=1e-5)
    labels = task.close_tiles(values)
    assert labels.dtype == torch.uint8
    assert labels[5, [0, 47]].tolist() == [3, 5]


class TestPointmap:
    """Tiles whose network knows neither the scale nor how far things are away."""

    def test_relief_of_the_tiles_at_the_distance_of_the_whole(self, oracles):
        picture = oracles.ramps(160, 120)
        task = oracles.make(oracles.PointmapOracle)
        task.size = (160, 120)

        def unsure(rgb, sign, answer=task.answer):
            found = answer(rgb, sign)
            # What a tile says: its own scale and distance, and x, y of another camera.
            if float(rgb[0, 2].std()) < 0.2:
                lead = rgb.mean()
                points = found.pointmap * (0.5 + lead) + 0.4 * lead
                return type(found)(points, found.scale * 7)
            return found

        task.answer = unsure
        whole = task.predict(picture, batch_size=1)[0]
        tiled = task.predict(picture, batch_size=1, tile=(64, 48))[0]
        assert tiled.points.shape == (160, 120, 3)
        assert tiled.focal_length == pytest.approx(whole.focal_length) == pytest.approx(oracles.FOCAL, rel=1e-3)
        np.testing.assert_allclose(tiled.points, whole.points, atol=0.02)

    def test_a_bump_that_only_the_tile_sees_lies_on_the_rays_of_the_whole(self, oracles):
        task = oracles.make(PointmapTask)
        y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(48) + 0.5, indexing="ij")
        rays = torch.stack([(x - 24) / 50, (y - 32) / 50])
        plane = 2 + 0.01 * x + 0 * y
        whole = WholePass(torch.cat([rays * plane, plane[None]]), torch.eye(3), (64, 48))
        seen = plane.clone()
        seen[20:24, 20:24] -= 0.3
        output = PointmapOutput(torch.stack([x, y, 4 * seen - 1])[None], torch.ones(1, 1))
        batch = {"crop": torch.eye(3)[None], "source_size": torch.tensor([[64, 48]])}
        found = task.finish_tile(output, 0, batch, whole, Window(0, 0, 64, 48))
        assert 0.2 < plane[21, 21] - found[2, 21, 21] < 0.35
        torch.testing.assert_close(found[:2] / found[2], rays, atol=1e-5, rtol=0)

    def test_alignment_finds_factor_and_shift_and_trusts_no_negative_one(self):
        torch.manual_seed(0)
        depth = 1 + torch.rand(20, 30)
        torch.testing.assert_close(align_depth(depth, 3 * depth - 0.5), 3 * depth - 0.5)
        far = 3 * depth - 0.5
        far[:, 15:] = 80 + 20 * torch.rand(20, 15)  # a background of which the tile says nothing
        near = align_depth(depth, far)[:, :15]
        assert (near - (3 * depth - 0.5)[:, :15]).abs().mean() < 0.5
        target = 2 - depth
        assert torch.equal(align_depth(depth, target), target)


def test_poses_take_no_tiles(oracles):
    task = oracles.make(oracles.PoseOracle)
    picture = oracles.ramps(200, 200)
    np.testing.assert_array_equal(task.predict(picture, tile=(64, 48))[0], task.predict(picture)[0])
