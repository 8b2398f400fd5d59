"""The engine: batches over pictures, order, errors of single pictures, masks, precision, memory."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from s2kit.errors import UserError
from s2kit.inference.items import PredictOptions
from s2kit.inference.predictor import Picture, Predictor
from s2kit.tasks import AlbedoTask, NormalsTask, PoseTask, SegmentationTask


def resident() -> int:
    """Bytes of memory that this process has (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pictures_of(count: int, size=(40, 30)):
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = (side + number % 3 for side in size)
        yield Picture(str(number), f"{number}.png", rng.integers(0, 255, (height, width, 3), np.uint8))


def count_batches(task) -> list[int]:
    """Note the size of every batch that the task's network sees."""
    sizes: list[int] = []
    forward = task.forward

    def noted(image):
        sizes.append(len(image))
        return forward(image)

    task.forward = noted
    return sizes


def test_results_come_in_order_and_batches_are_full(oracles):
    task = oracles.make(oracles.AlbedoOracle)
    sizes = count_batches(task)
    results = list(Predictor([task], PredictOptions(batch_size=4))(pictures_of(10)))
    assert [result.picture.name for result in results] == [str(number) for number in range(10)]
    assert sizes == [4, 4, 2]
    for result, picture in zip(results, pictures_of(10)):
        assert result.predictions["albedo"].shape == picture.image.shape
        np.testing.assert_allclose(task.predict(picture.image)[0], result.predictions["albedo"], atol=1e-6)


def test_tiles_and_whole_pictures_share_batches(oracles):
    task = oracles.make(oracles.SegmentationOracle)
    sizes = count_batches(task)
    large, small = oracles.ramps(64, 96), oracles.ramps(64, 48)
    options = PredictOptions(batch_size=3, tile="auto")
    pictures = [Picture(str(i), "", image) for i, image in enumerate((small, large, small, small))]
    results = list(Predictor([task], options)(pictures))
    # The large one is its whole and 3 tiles of 64 x 48 that overlap by a quarter: 1 + (1 + 3) + 1 + 1 inputs.
    assert sizes == [3, 3, 1]
    assert [result.predictions["segmentation"].shape for result in results] == [(64, 48), (64, 96), (64, 48), (64, 48)]


def test_a_picture_that_fails_does_not_stop_the_others(oracles):
    task = oracles.make(oracles.AlbedoOracle)
    pictures = list(pictures_of(5))
    pictures[1] = Picture("1", "1.png", error="damaged")
    pictures[3].image = np.zeros((0, 5, 3), np.uint8)
    results = list(Predictor([task], PredictOptions(batch_size=2))(pictures))
    assert [result.picture.error is None for result in results] == [True, False, True, False, True]
    assert results[1].picture.error == "damaged"
    assert [len(result.predictions) for result in results] == [1, 0, 1, 0, 1]


def test_several_tasks_and_no_two_of_a_kind(oracles):
    tasks = [oracles.make(kind) for kind in (NormalsTask, PoseTask, SegmentationTask)]
    results = list(Predictor(tasks, PredictOptions(batch_size=2))(pictures_of(3)))
    assert [list(result.predictions) for result in results] == [["normals", "pose", "segmentation"]] * 3
    assert results[0].predictions["pose"].shape == (1, 17, 3)
    with pytest.raises(UserError, match="two models for normals"):
        Predictor([tasks[0], oracles.make(NormalsTask)])


def test_the_foreground_is_made_by_a_segmentation(oracles):
    picture = oracles.ramps(64, 48)
    masker, task = oracles.make(oracles.SegmentationOracle), oracles.make(oracles.AlbedoOracle)
    masker.answer = lambda rgb, sign: torch.stack([rgb[:, 0] < 0.5, rgb[:, 0] >= 0.5] + 27 * [rgb[:, 0] < -1], 1) * 1.0
    (result,) = Predictor([task], mask_task=masker)([Picture("a", "a.png", picture)])
    mask = picture[..., 0] >= 128
    np.testing.assert_array_equal(result.mask, mask)
    assert 0.2 < mask.mean() < 0.8
    assert list(result.predictions) == ["albedo"]
    np.testing.assert_allclose(result.predictions["albedo"], picture / 255 * mask[..., None], atol=1e-6)
    (result,) = Predictor([task, masker], mask_task=masker)([Picture("a", "a.png", picture)])
    np.testing.assert_array_equal(result.mask, mask)
    np.testing.assert_array_equal(result.predictions["segmentation"] > 0, mask)


def test_masks_in_python(oracles):
    picture = oracles.ramps(64, 48)
    mask = np.zeros((64, 48), bool)
    mask[10:20, 5:15] = True
    normals = oracles.make(NormalsTask).predict(picture, masks=mask)[0]
    np.testing.assert_array_equal(normals.any(axis=-1), mask)
    pointmap = oracles.make(oracles.PointmapOracle).predict([picture, picture], masks=[mask, None])
    np.testing.assert_array_equal(pointmap[0].valid, mask)
    assert pointmap[1].valid is None
    with pytest.raises(ValueError, match=r"mask 0: it must be bool \(64, 48\), got bool \(64, 47\)"):
        oracles.make(NormalsTask).predict(picture, masks=mask[:, 1:])
    with pytest.raises(ValueError, match="masks change normals, pointmaps and albedo; segmentation takes none"):
        oracles.make(SegmentationTask).predict(picture, masks=mask)
    with pytest.raises(ValueError, match="2 pictures, but 1 masks"):
        oracles.make(NormalsTask).predict([picture, picture], masks=[mask])


def test_people_in_python(oracles):
    task, picture = oracles.make(PoseTask), oracles.ramps(90, 70)
    box = np.array([10.0, 10, 60, 80])
    found = task.predict([picture] * 3, boxes=[np.stack([box, box]), np.zeros((0, 4)), None], batch_size=2)
    assert [people.shape for people in found] == [(2, 17, 3), (0, 17, 3), (1, 17, 3)]
    np.testing.assert_allclose(found[0][0], found[0][1], atol=1e-4)
    np.testing.assert_allclose(task.predict(picture, boxes=np.array([[0, 0, 70, 90]]))[0], found[2], atol=1e-4)
    with pytest.raises(ValueError, match="boxes of picture 0"):
        task.predict(picture, boxes=np.array([[10, 10, 10, 80]]))
    with pytest.raises(ValueError, match="boxes are for poses; normals takes the whole picture"):
        oracles.make(NormalsTask).predict(picture, boxes=box[None])


def test_half_precision_is_of_the_network_alone(oracles):
    task, picture = oracles.make(NormalsTask), oracles.ramps(64, 48)
    types = []
    task.decode_head.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    exact = task.predict(picture)[0]
    (result,) = Predictor([task], PredictOptions(precision="bf16"))([Picture("a", "a.png", picture)])
    assert types == [torch.float32, torch.bfloat16]
    half = result.predictions["normals"]
    assert half.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(half, axis=-1), 1, atol=1e-5)
    assert 1e-5 < np.abs(half - exact).mean() < 0.05


@pytest.mark.slow  # compiles two networks
def test_compiled_networks_say_the_same(oracles):
    plain, compiled = oracles.make(AlbedoTask), oracles.make(AlbedoTask)
    for result in Predictor([compiled], PredictOptions(batch_size=2, compile=True))(pictures_of(3)):
        picture = result.picture.image
        np.testing.assert_allclose(result.predictions["albedo"], plain.predict(picture)[0], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size=0: it must be at least 1"),
        ({"scales": (0.01,)}, r"scales=\[0\.01\]: give one or several numbers from 0\.1 to 10"),
        ({"tile": (1024, 8)}, "tile=1024x8: a side has at least 32 pixels"),
        ({"precision": "int8"}, "precision='int8': choose from fp32, bf16, fp16"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(UserError, match=words):
        PredictOptions(**options)


def test_pictures_without_anybody_wait_for_no_full_batch(oracles):
    """One person in the first picture and nobody in thousands after it: that person's batch never fills."""
    task = oracles.make(PoseTask)
    nobody = np.zeros((0, 4))
    under_way, most = 0, 0

    def pictures():
        nonlocal under_way, most
        for number in range(100):
            under_way += 1
            most = max(most, under_way)
            yield Picture(str(number), str(number), np.zeros((40, 30, 3), np.uint8))

    from s2kit.inference.people import make_people

    def boxes(names, images):
        return [make_people([[0, 0, 30, 40]] if name == "0" else nobody) for name in names]

    for result in Predictor([task], PredictOptions(batch_size=4), boxes)(pictures()):
        under_way -= 1
        assert result.predictions["pose"].shape == (int(result.picture.name == "0"), 17, 3)
    assert most <= 16


def test_a_long_run_holds_no_more_than_a_short_one(oracles, tmp_path):
    from s2kit.inference.inputs import Source
    from s2kit.inference.output_folder import OutputFolder
    from s2kit.inference.results import ResultOptions, ResultWriter

    task = oracles.make(oracles.AlbedoOracle)
    sources = {str(number): Source(f"{number}.png", str(number), False) for number in range(1200)}
    folder, under_way, most, memory = OutputFolder(tmp_path, {}), 0, 0, []

    def pictures():
        nonlocal under_way, most
        for number in range(1200):
            under_way += 1
            most = max(most, under_way)
            yield Picture(str(number), f"{number}.png", np.full((64, 48, 3), number % 256, np.uint8))

    with ResultWriter(folder, {"albedo": task}, ResultOptions(raw=False), sources) as writer:
        for number, result in enumerate(Predictor([task], PredictOptions(batch_size=8))(pictures())):
            writer.put(result)
            under_way -= 1
            if number in (200, 1199):
                memory.append(resident())
    folder.close()
    assert writer.written == len(list((tmp_path / "albedo").iterdir())) == 1200
    assert most <= 24
    # 1000 results of this size would be 37 MB.
    assert memory[1] - memory[0] < 12e6
