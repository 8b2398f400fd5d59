"""Pretraining: the picture in the corner of a canvas."""

import numpy as np
import pytest

from data_modules.transforms import PretrainTransform, SampleRejected


@pytest.mark.parametrize(
    ("canvas", "inner"),
    [((75, 200), (75, 60)), ((300, 60), (75, 60)), ((150, 120), (150, 120)), ((200, 200), (150, 120))],
)
def test_pictures_are_shrunk_to_fit_and_never_enlarged(chart, canvas, inner):
    item = PretrainTransform(canvas)({"key": "k", "image": chart.image()}, np.random.default_rng(0))
    assert item["image"].shape == (3, *canvas) and item["image"].dtype == np.uint8
    assert item["size"].tolist() == list(inner) and item["source_size"].tolist() == [150, 120]
    height, width = inner
    assert (item["image"][2, :height, :width] == 255).all()
    assert (item["image"][:, height:] == 0).all() and (item["image"][:, :, width:] == 0).all()
    assert chart.error(item["image"][:, :height, :width], item["crop"], rim=1) < 3
    np.testing.assert_allclose(item["crop"], np.diag([width / 120, height / 150, 1]), rtol=1e-6)


def test_small_pictures_are_rejected():
    small = {"key": "thumb", "image": np.zeros((400, 15, 3), np.uint8)}
    with pytest.raises(SampleRejected, match="'thumb' rejected: its picture has 400 x 15 pixels, a side of 16"):
        PretrainTransform((64, 64))(small)
    item = PretrainTransform((64, 64), min_side=10)(small)
    assert item["size"].tolist() == [64, 2]
