"""Masks from files of every kind, and sheets of several tasks."""

import cv2
import numpy as np
import pytest
from PIL import Image

from s2kit.errors import UserError
from s2kit.inference.masks import MaskFolder, read_mask
from s2kit.inference.predictor import Frame, Picture
from s2kit.inference.sheets import panel, sheet

MASK = np.zeros((20, 30), bool)
MASK[4:12, 10:25] = True


def test_every_kind_of_mask(tmp_path):
    cv2.imwrite(str(tmp_path / "gray.png"), MASK * np.uint8(255))
    cv2.imwrite(str(tmp_path / "soft.png"), np.where(MASK, 128, 127).astype(np.uint8))
    cv2.imwrite(str(tmp_path / "ids.png"), MASK * np.uint8(28))
    cv2.imwrite(str(tmp_path / "one.png"), MASK * np.uint8(1))
    cv2.imwrite(str(tmp_path / "colour.png"), np.repeat(MASK[..., None] * np.uint8(255), 3, axis=2))
    palette = Image.fromarray(MASK * np.uint8(200))
    palette.putpalette([0] * 768)
    palette.save(tmp_path / "palette.png")
    Image.fromarray(MASK).save(tmp_path / "bits.png")
    np.save(tmp_path / "bool.npy", MASK)
    np.save(tmp_path / "labels.npy", MASK[..., None] * 3)
    np.save(tmp_path / "share.npy", MASK * 0.25)
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_mask(path), MASK, err_msg=path.name)


def test_masks_that_cannot_be_used(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    np.save(tmp_path / "b.npy", np.zeros((4, 5, 3)))
    np.save(tmp_path / "c.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"its mask .*a\.png cannot be read"):
        read_mask(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"b\.npy has the shape \(4, 5, 3\), expected height x width"):
        read_mask(tmp_path / "b.npy")
    with pytest.raises(UserError, match=r"c\.npy cannot be read"):
        read_mask(tmp_path / "c.npy")


def test_frames_have_their_masks_in_a_folder(tmp_path):
    (tmp_path / "clip").mkdir()
    cv2.imwrite(str(tmp_path / "clip" / "000002.png"), MASK * np.uint8(255))
    picture = np.zeros((20, 30, 3), np.uint8)
    frame = Picture("clip/000002", "x/clip.mp4/000002", picture, frame=Frame("clip", 2, 0.1, 25))
    np.testing.assert_array_equal(MaskFolder(tmp_path)(frame), MASK)
    with pytest.raises(UserError, match=r"it has no mask in .*, such as clip/000003\.png"):
        MaskFolder(tmp_path)(Picture("clip/000003", "x/clip.mp4/000003", picture, frame=frame.frame))


@pytest.mark.parametrize(("size", "columns"), [((512, 384), 4), ((512, 512), 4), ((380, 1024), 2)])
def test_six_tasks_fill_a_sheet(size, columns):
    picture = np.full((*size, 3), 60, np.uint8)
    results = [{f"task {n}": picture + np.uint8(n), f"more {n}": picture + np.uint8(100 + n)} for n in range(6)]
    drawn = sheet(picture, results)
    cell = drawn.shape[1] // columns
    rows = 8 // columns
    height = drawn.shape[0] // rows
    assert abs(cell / (height - 26) - size[1] / size[0]) < 0.02
    # The input, one picture a task, and the first task's other one beside it, for a cell is left.
    middle = [drawn[(r * height) + height // 2, c * cell + cell // 2, 0] for r in range(rows) for c in range(columns)]
    assert middle == [60, 60, 160, 61, 62, 63, 64, 65]


def test_a_panel_has_the_input_first():
    picture = np.full((100, 50, 3), 7, np.uint8)
    drawn = panel(picture, {"a": picture + np.uint8(1), "b": picture + np.uint8(2)})
    assert drawn.shape == (126, 150, 3)
    assert drawn[60, [25, 75, 125], 0].tolist() == [7, 8, 9]
