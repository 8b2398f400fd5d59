"""Where a picture lies in the network's input, and the way back."""

import numpy as np
import pytest
import torch

from data_modules.transforms import letterbox_matrix, warp_image
from s2kit.inference.geometry import LetterboxRect, letterbox_rect, rect_of, unletterbox


@pytest.mark.parametrize(
    ("source", "target", "rect"),
    [
        ((1024, 768), (1024, 768), (0, 0, 1024, 768)),
        ((500, 1000), (1024, 768), (320, 0, 384, 768)),
        ((2000, 500), (1024, 768), (0, 256, 1024, 256)),
        ((333, 1000), (1024, 768), (384, 0, 256, 768)),  # 255.7 rounds up
        ((1, 5000), (128, 96), (63, 0, 1, 96)),  # never thinner than a pixel
        ((3, 3), (128, 96), (16, 0, 96, 96)),
    ],
)
def test_rectangle(source, target, rect):
    assert letterbox_rect(source, target) == LetterboxRect(*rect)
    assert rect_of(letterbox_matrix(source, target).astype(np.float32), source, target) == rect


def test_matrix_maps_corners_to_the_rectangle():
    matrix = letterbox_matrix((333, 1000), (1024, 768))
    np.testing.assert_allclose(matrix @ [0, 0, 1], [0, 384, 1])
    np.testing.assert_allclose(matrix @ [1000, 333, 1], [768, 384 + 256, 1])


def test_an_empty_size_is_an_error():
    with pytest.raises(ValueError, match="at least 1 x 1"):
        letterbox_rect((0, 10), (128, 96))


@pytest.mark.parametrize("source", [(64, 48), (40, 90), (90, 40), (31, 47)])
def test_ramp_survives_letterbox_and_back(source):
    """A linear ramp stays linear through a right letterbox and its inverse; half a pixel off would show as 0.5."""
    columns, rows = np.meshgrid(np.arange(source[1]) + 0.5, np.arange(source[0]) + 0.5)
    ramp = np.stack([columns, rows, columns + 2 * rows], axis=-1).astype(np.float32)
    target = (128, 96)
    matrix = letterbox_matrix(source, target)
    boxed = torch.from_numpy(warp_image(ramp, matrix, target).transpose(2, 0, 1))
    back = unletterbox(boxed, matrix.astype(np.float32), source)
    assert back.shape == (3, *source)
    # Within a pixel of the rim both resamplings repeat the edge.
    inner = (slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(back.numpy()[inner], ramp.transpose(2, 0, 1)[inner], atol=2e-4)


def test_padding_never_leaks_into_the_result():
    output = torch.full((2, 1, 128, 96), 99.0)
    top, left, height, width = letterbox_rect((50, 100), (128, 96))
    output[..., top : top + height, left : left + width] = 1.0
    crop = torch.from_numpy(letterbox_matrix((50, 100), (128, 96))).float()
    back = unletterbox(output, crop, torch.tensor([50, 100]))
    assert back.shape == (2, 1, 50, 100)
    assert (back == 1).all()


def test_bilinear_values_have_centres_at_halves():
    output = torch.tensor([[[0.0, 4.0]]])
    back = unletterbox(output, np.diag([0.5, 0.5, 1.0]), (2, 4))
    np.testing.assert_allclose(back[0, 0], [0, 1, 3, 4])


@pytest.mark.parametrize(
    "matrix",
    [
        [[-1, 0, 96], [0, 1, 0], [0, 0, 1]],
        [[0.9, 0.2, 0], [-0.2, 0.9, 0], [0, 0, 1]],
        [[1, 0, 0.5], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 1], [0, 1, 0], [0, 0, 1]],
    ],
    ids=["flip", "rotation", "half pixel", "outside"],
)
def test_another_matrix_is_an_error(matrix):
    with pytest.raises(ValueError, match="is no letterbox of a source of 128 x 96"):
        unletterbox(torch.zeros(3, 128, 96), np.array(matrix, np.float32), (128, 96))
