"""Pictures of dense results, by the colour of single pixels."""

import numpy as np
import pytest

from s2kit.inference import dense_drawing as drawing
from s2kit.inference.drawing import write_image
from s2kit.schemas import load_class_list


def test_labels_have_their_colours_and_ignored_ones_are_black():
    classes = load_class_list(29)
    labels = np.array([[0, 4, 255]], np.uint8)
    assert drawing.draw_labels(labels, classes).tolist() == [[[50, 50, 50], [255, 0, 109], [0, 0, 0]]]
    picture = np.full((1, 3, 3), 100, np.uint8)
    over = drawing.draw_labels(labels, classes, picture, opacity=0.5)
    # The background stays, hair is blended half and half.
    assert over[0, 0].tolist() == [100, 100, 100]
    assert over[0, 1] == pytest.approx([177.5, 50, 104.5], abs=0.6)


def test_a_legend_names_the_classes_that_it_is_given():
    classes = load_class_list(29)
    legend = drawing.draw_legend(classes, [6, 15, 255])
    assert (legend.dtype, legend.shape) == (np.uint8, (256, 128, 3))
    assert legend[8, 10].tolist() == list(classes.colors[6]) and legend[24, 10].tolist() == list(classes.colors[15])
    assert (legend[:32, 24:] > 200).any(axis=(1, 2)).sum() > 10  # their names
    assert (legend[33:] == 32).all()  # the ignored label has none
    assert drawing.draw_legend(classes, range(29)).shape == (256, 256, 3)
    assert drawing.draw_legend(classes, [], 100).shape == (100, 128, 3)


def test_a_picture_of_classes_names_them_where_it_shows_least():
    classes = load_class_list(29)
    labels = np.zeros((960, 960), np.uint8)
    labels[:, :480], labels[:100, 700:] = 6, 15
    before = drawing.draw_labels(labels, classes)
    drawn = drawing.add_legend(before, labels, classes)
    # Of twice the size of a sheet's cell: so are the letters, for three classes, in the lower right corner.
    changed = (drawn != before).any(axis=-1)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (960 - 96, 959, 960 - 256, 959)
    assert [drawn[864 + 32 * row + 16, 704 + 20].tolist() for row in range(3)] == [
        list(classes.colors[label]) for label in (6, 0, 15)
    ]
    tiny = labels[::10, ::10]  # no room
    np.testing.assert_array_equal(drawing.add_legend(before[::10, ::10], tiny, classes), before[::10, ::10])


def test_label_errors():
    drawn = drawing.draw_label_errors(np.uint8([[1, 2, 3]]), np.uint8([[1, 3, 255]]), 255)
    right, wrong, ignored = drawn[0].astype(int)
    assert right[1] > right[0]
    assert wrong[0] > 200 > wrong[1]
    assert ignored.max() == 0


def test_near_is_red_far_is_blue_and_nothing_is_black():
    depth = np.array([[1.0, 4.0, 0.0, np.nan, -1.0, 2.0]])
    drawn = drawing.draw_depth(depth, (1.0, 4.0))[0].astype(int)
    assert drawn[0, 0] > drawn[0, 2]
    assert drawn[1, 2] > drawn[1, 0] or drawn[1].sum() < 150
    assert drawn[2:5].max() == 0
    assert drawn[5, 1] > max(drawn[5, 0], drawn[5, 2])  # in between is green: colours follow the inverse
    hidden = drawing.draw_depth(depth, (1.0, 4.0), np.zeros((1, 6), bool))
    assert hidden.max() == 0


def test_the_range_of_depths_leaves_out_the_ends():
    depth = np.linspace(1, 2, 1001)[None]
    depth[0, 500] = 1000.0
    near, far = drawing.depth_range(depth)
    assert near == pytest.approx(1.01, abs=2e-3)
    assert far == pytest.approx(1.99, abs=2e-3)
    assert drawing.depth_range(depth, np.zeros(depth.shape, bool)) == (1.0, 2.0)
    near, far = drawing.depth_range(np.full((2, 2), 3.0))
    assert near < far


def test_albedo_alpha_and_composite():
    albedo = np.array([[[0.0, 0.5, 1.0], [1.2, -1.0, 0.2]]])
    assert drawing.draw_albedo(albedo).tolist() == [[[0, 128, 255], [255, 0, 51]]]
    assert drawing.draw_albedo(albedo, np.array([[True, False]]))[0, 1].max() == 0
    assert drawing.draw_alpha(np.array([[0.2]])).tolist() == [[[51, 51, 51]]]
    matte = np.array([[[0, 0, 0, 0.0], [1, 1, 1, 1.0]]])
    assert drawing.draw_composite(matte).tolist() == [[list(drawing.GREEN), [255, 255, 255]]]


def test_each_light_comes_from_its_side():
    normals = np.array([[[-1.0, 0, 0], [1.0, 0, 0]]])
    drawn = drawing.draw_relit(np.full((1, 2, 3), 0.8), normals, np.ones((1, 2), bool))
    left, right = (picture[0, :, 0].astype(int) for picture in drawn.values())
    assert list(drawn) == ["lit from the left", "lit from the right"]
    assert left[0] > left[1] + 50
    assert right[1] > right[0] + 50


def test_pictures_with_transparency_are_written(tmp_path):
    import cv2

    picture = np.random.default_rng(0).integers(0, 256, (5, 4, 4), np.uint8)
    write_image(tmp_path / "new" / "cutout.png", picture)
    read = cv2.imread(str(tmp_path / "new" / "cutout.png"), cv2.IMREAD_UNCHANGED)
    assert (read == picture[..., [2, 1, 0, 3]]).all()
