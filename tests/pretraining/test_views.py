"""Crops on the device: what lies where, and that colours stay."""

import numpy as np
import pytest
import torch

from s2kit.pretraining.views import centre_box, crop_and_resize, random_box


def ramp(height: int, width: int) -> torch.Tensor:
    """(1, 2, H, W): x and y of the pixel centres."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y])[None].float()


def test_the_whole_picture_comes_back_untouched():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 12, 9), dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 9.0, 12.0]] * 2)
    crops = crop_and_resize(images, boxes, torch.tensor([False, True]), (12, 9))
    torch.testing.assert_close(crops[0], images[0].float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(crops[1], images[1].flip(-1).float(), atol=1e-3, rtol=0)


def test_pixels_of_a_crop_are_where_they_were_in_the_picture():
    images = ramp(40, 30).expand(3, -1, -1, -1)
    boxes = torch.tensor([[3.0, 5.0, 27.0, 37.0], [10.5, 8.25, 18.5, 24.25], [4.0, 4.0, 28.0, 36.0]])
    crops = crop_and_resize(images, boxes, torch.tensor([False, False, True]), (16, 8))
    for crop, (left, top, right, bottom), flipped in zip(crops, boxes.tolist(), (False, False, True)):
        x = left + (torch.arange(8) + 0.5) * (right - left) / 8
        y = top + (torch.arange(16) + 0.5) * (bottom - top) / 16
        x = x.flip(0) if flipped else x
        torch.testing.assert_close(crop[0], x.expand(16, 8), atol=1e-4, rtol=0)
        torch.testing.assert_close(crop[1], y[:, None].expand(16, 8), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1024, 768), (768, 1024), (400, 100)])
def test_boxes_lie_in_the_picture_and_have_the_area_and_aspect_that_were_asked_for(size):
    rng = np.random.default_rng(0)
    height, width = size
    areas, aspects = [], []
    for _ in range(500):
        left, top, right, bottom = random_box(size, (0.2, 0.7), (0.5625, 1.0), rng)
        assert 0 <= left < right <= width + 1e-9 and 0 <= top < bottom <= height + 1e-9
        areas.append((right - left) * (bottom - top) / (height * width))
        aspects.append((right - left) / (bottom - top))
    assert min(aspects) >= 0.5625 - 1e-9 and max(aspects) <= 1.0 + 1e-9
    assert max(areas) <= 0.7 + 1e-9
    if size == (1024, 768):
        assert min(areas) >= 0.2 - 1e-9
        assert np.mean(areas) == pytest.approx(0.45, abs=0.02)


def test_the_middle_of_a_picture():
    assert centre_box((100, 100), 0.75).tolist() == [12.5, 0, 87.5, 100]
    assert centre_box((100, 30), 0.75).tolist() == [0, 30, 30, 70]
