"""Segmentation, renders and matting arrive pixel for pixel; images byte for byte; wrong frames are refused."""

import hashlib
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from data_modules.importers import (
    ImportFailedError,
    MattingImporter,
    RendersImporter,
    RgbaImporter,
    SegmentationImporter,
    cihp,
    lip,
    p3m,
)
from data_modules.packing import pack
from data_modules.shards import ShardDataset
from data_modules.shards.format import NORMALS_FRAMES

SIZE = (64, 48)


def bring(importer, out, **options):
    packed = pack(importer, out, workers=1, progress=False, **options)
    return packed, ShardDataset(out)


def stored_sum(samples, number, extension):
    return hashlib.sha256(samples.read_encoded(number)[extension]).hexdigest()


def class_mask(ids):
    """Stripes of these ids, uint8 (H, W)."""
    return np.repeat(np.array(ids, np.uint8), -(-SIZE[0] // len(ids)))[: SIZE[0], None].repeat(SIZE[1], axis=1)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def picture(seed):
    noise = np.random.default_rng(seed).integers(0, 255, (8, 6, 3)).astype(np.uint8)
    return cv2.resize(noise, SIZE[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("nested", [True, False])
def test_lip_as_it_unpacks(tmp_path, nested):
    root, ids = tmp_path / "LIP", [0, 2, 13, 14, 15, 19]
    images = root / "TrainVal_images" / "TrainVal_images" / "train_images" if nested else root / "train_images"
    masks = root / "TrainVal_parsing_annotations" / "TrainVal_parsing_annotations" / "train_segmentations"
    masks = masks if nested else root / "train_segmentations"
    names = ["100034_483681", "77_471474", "left_out"]
    sums = {name: write(images / f"{name}.jpg", picture(i)) for i, name in enumerate(names)}
    for name in names:
        write(masks / f"{name}.png", class_mask(ids))
    listed = root / ("TrainVal_images" if nested else "") / "train_id.txt"
    listed.write_text("\n".join(names[:2]) + "\n")
    _, samples = bring(lip(root), tmp_path / "out")
    assert samples.manifest["schemas"]["parts"] == "lip-20" and samples.manifest["samples"] == 2
    assert [samples.key(i) for i in range(2)] == names[:2]
    assert stored_sum(samples, 0, "jpg") == sums[names[0]]
    np.testing.assert_array_equal(samples[0]["parts"], class_mask(ids))
    _, ours = bring(lip(root, to_29=True), tmp_path / "ours")
    assert ours.manifest["schemas"]["parts"] == "sapiens2-29"
    np.testing.assert_array_equal(ours[0]["parts"], class_mask([0, 4, 3, 255, 255, 18]))


def test_cihp_as_it_unpacks(tmp_path):
    folder = tmp_path / "CIHP" / "instance-level_human_parsing" / "Validation"
    for name in ("0000002", "0000005"):
        write(folder / "Images" / f"{name}.jpg", picture(1))
        write(folder / "Category_ids" / f"{name}.png", class_mask([0, 10, 255]))
        write(folder / "Human_ids" / f"{name}.png", class_mask([0, 1, 1]))
    (folder / "val_id.txt").write_text("0000002\n0000005\n")
    _, samples = bring(cihp(tmp_path / "CIHP", "val"), tmp_path / "out")
    assert len(samples) == 2 and samples.manifest["schemas"]["parts"] == "cihp-20"
    np.testing.assert_array_equal(samples[1]["parts"], class_mask([0, 10, 255]))
    (folder / "val_id.txt").write_text("0000002\n0000009\n")
    with pytest.raises(ImportFailedError, match=r"val_id.txt: 1 of its names have no image \(first: 0000009\)"):
        bring(cihp(tmp_path / "CIHP", "val"), tmp_path / "other")


def test_masks_of_every_kind(tmp_path):
    """Gray, palette, equal channels and 16 bits are ids; an empty mask and one of another size are rejected."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    ids, names = class_mask([0, 1, 31, 6, 40]), ["gray", "palette", "rgb", "sixteen", "empty", "small", "lonely"]
    for number, name in enumerate(names):
        write(images / "day 1" / f"{name}.v1.webp", picture(number))
    folder = masks / "day 1"
    write(folder / "gray.v1_seg.png", ids)
    palette = Image.fromarray(ids, "P")
    palette.putpalette([value for i in range(256) for value in (255 - i, i, 7)])
    palette.save(folder / "palette.v1_seg.png")
    write(folder / "rgb.v1_seg.png", np.dstack([ids] * 3))
    cv2.imwrite(str(folder / "sixteen.v1_seg.png"), ids.astype(np.uint16))
    write(folder / "empty.v1_seg.png", class_mask([0]))
    write(folder / "small.v1_seg.png", ids[:-1])
    importer = SegmentationImporter(images, masks, "wide-52", mask_ending="_seg")
    packed, samples = bring(importer, tmp_path / "out", max_rejected=0.5)
    assert packed.notes == ("1 pictures have no mask and are left out (first: day 1/lonely.v1)",)
    assert [samples.key(i) for i in range(len(samples))] == [
        f"day 1/{n}%2Ev1" for n in ("gray", "palette", "rgb", "sixteen")
    ]
    for number in range(4):
        np.testing.assert_array_equal(samples[number]["parts"], class_mask([0, 1, 6, 3, 0]))
        assert list(samples.read_encoded(number)) == ["json", "parts.u8.zst", "webp"]
    reasons = dict(packed.rejected)
    assert "0 pixels of a class" in reasons["day 1/empty%2Ev1"]
    assert "64 x 48 pixels, day 1/small.v1_seg.png says 63 x 48" in reasons["day 1/small%2Ev1"]


def test_images_and_masks_in_one_folder(tmp_path):
    folder = tmp_path / "both"
    write(folder / "a.jpg", picture(0))
    write(folder / "a_seg.png", class_mask([0, 13]))
    _, samples = bring(SegmentationImporter(folder, folder, "lip-20", mask_ending="_seg"), tmp_path / "out")
    assert samples.key(0) == "a" and len(samples) == 1
    np.testing.assert_array_equal(samples[0]["parts"], class_mask([0, 13]))
    write(folder / "a.png", picture(0))
    with pytest.raises(ImportFailedError, match=r"a\.jpg and a\.png have the same name but for the extension"):
        bring(SegmentationImporter(folder, folder, "lip-20", mask_ending="_seg"), tmp_path / "other")


def test_a_users_colours_and_classes(tmp_path):
    write(tmp_path / "images" / "a.jpg", picture(0))
    colours = np.array([[0, 0, 0], [255, 0, 0], [9, 9, 9]], np.uint8)[class_mask([0, 1, 2])]
    write(tmp_path / "masks" / "a.png", colours)
    rows = [{"id": 0, "name": "Background", "flip": 0, "color": [0, 0, 0]}]
    rows.append({"id": 1, "name": "Person", "flip": 1, "color": [1, 1, 1]})
    classes = {"name": "two_classes", "ignore_index": 255, "classes": rows}
    (tmp_path / "two.json").write_text(json.dumps(classes))
    (tmp_path / "map.yaml").write_text("target: two.json\nmap: {'0,0,0': Background, '255,0,0': Person}\n")
    importer = SegmentationImporter(tmp_path / "images", tmp_path / "masks", str(tmp_path / "map.yaml"))
    _, samples = bring(importer, tmp_path / "out")
    np.testing.assert_array_equal(samples[0]["parts"], class_mask([0, 1, 255]))
    assert samples.manifest["schemas"]["parts"] == "two-classes"
    assert json.loads((tmp_path / "out" / "two-classes.json").read_text()) == classes


@pytest.mark.parametrize("frame", list(NORMALS_FRAMES))
def test_renders_arrive_with_every_label(renders, sphere, tmp_path, frame):
    root, sums = renders(NORMALS_FRAMES[frame])
    importer = RendersImporter(root, ("normals", "depth", "albedo"), frame, depth_unit=0.001)
    packed, samples = bring(importer, tmp_path / "out")
    assert (packed.samples, packed.rejected, packed.notes) == (6, (), ())
    assert samples.key(4) == "0001/view%2E01" and samples.manifest["source_normals_frame"] == frame
    assert stored_sum(samples, 4, "png") == sums["0001/view.01.png"]
    for number in (0, 4):
        sample, inside = samples[number], sphere["mask"] > 0
        np.testing.assert_array_equal(sample["alpha"], sphere["mask"])
        inside[30, 24] = False
        angle = np.degrees(np.arccos(np.clip((sample["normals"] * sphere["normals"]).sum(2), -1, 1)))
        assert angle[inside].max() < 0.1 and (sample["normals"][~inside] == 0).all()
        depth = (2.5 + np.arange(SIZE[1]) / 1000) * np.ones(SIZE)
        inside = sphere["mask"] > 0
        inside[31, 24] = False
        np.testing.assert_allclose(sample["depth"][inside], depth[inside], atol=2e-5)
        assert (sample["depth"][~inside] == 0).all()
        # Their first pixel's centre is 0, the kit's 0.5.
        np.testing.assert_allclose(sample["intrinsics"], [[60, 0, 24], [0, 61, 32], [0, 0, 1]])
        assert sample["meta"]["extrinsics"] == np.eye(4).tolist()
        assert (sample["albedo"][sphere["mask"] == 0] == 0).all() and sample["albedo"].std() > 10


@pytest.mark.parametrize(
    ("real", "stated", "words"),
    [
        ("opencv", "opengl", "upper and lower outline .* and they face away from the camera; they look like 'opencv'"),
        ("directx", "opengl", "at the upper and lower outline they point into the body; they look like 'directx'"),
        ("opengl", "opencv", "they look like 'opengl'"),
    ],
)
def test_normals_in_another_frame_are_refused(renders, tmp_path, real, stated, words):
    root, _ = renders(NORMALS_FRAMES[real])
    with pytest.raises(ImportFailedError, match=rf"not in the frame '{stated}'.*{words}"):
        bring(RendersImporter(root, ("normals",), stated), tmp_path / "out")


def test_a_frame_that_the_kit_does_not_know(renders, tmp_path):
    root, _ = renders((-1, 1, 1))
    with pytest.raises(
        ImportFailedError, match="left and right outline they point into the body; no frame that the kit"
    ):
        bring(RendersImporter(root, ("normals",), "opengl"), tmp_path / "out")


def test_face_and_hair_leave_the_normals(renders, sphere, tmp_path):
    """Spec 4.4: a map of the 28 classes, smaller than the picture, drops normals of face and hair, not the mask."""
    root, _ = renders()
    seg = np.full((32, 24), 22, np.uint8)
    seg[:16] = 3
    for file in (root / "0000" / "seg").iterdir():
        np.save(file, seg)
    _, samples = bring(
        RendersImporter(root / "0000", ("normals",), "opengl", seg=root / "0000" / "seg"), tmp_path / "out"
    )
    defined = (samples[0]["normals"] != 0).any(axis=2)
    assert not defined[:32].any() and defined[33:].sum() == (sphere["mask"][33:] > 0).sum()
    np.testing.assert_array_equal(samples[0]["alpha"], sphere["mask"])


def test_renders_that_are_not_whole(renders, tmp_path):
    root, _ = renders(scans=1, views=3)
    folder = root / "0000"
    (folder / "depth" / "view.00.npy").unlink()
    np.save(folder / "depth" / "view.01.npy", np.full(SIZE, np.nan))
    np.savetxt(folder / "camera_intrinsics" / "view.02.txt", np.array([[60, 0, 24], [0, 61, 32], [0, 0, 1]]))
    packed, samples = bring(RendersImporter(root, ("depth",), pixel_centre=0.5), tmp_path / "out", max_rejected=0.5)
    assert packed.notes[0].startswith(
        "1 pictures have no mask and depth and intrinsics and are left out (first: 0000/view.00)"
    )
    assert "0 pixels with a value inside of the mask; 16 are needed" in packed.rejected[0][1]
    np.testing.assert_allclose(samples[0]["intrinsics"][:2, 2], [24, 32])
    np.savetxt(folder / "camera_intrinsics" / "view.01.txt", np.array([[60, 0, 24], [0, 61, 32], [0, 0, 1]]))
    packed, _ = bring(RendersImporter(root, ("depth",)), tmp_path / "again", max_rejected=0.5)
    assert "half the width" in packed.notes[1]
    write(folder / "albedo" / "view.02.png", np.full((*SIZE, 3), 90, np.uint8))
    packed, _ = bring(RendersImporter(root, ("albedo",)), tmp_path / "albedo", max_rejected=0.5)
    assert packed.samples == 2 and "one colour all over the person" in packed.rejected[0][1]
    with pytest.raises(ImportFailedError, match="the frame of the normals must be one of opengl, opencv, directx"):
        bring(RendersImporter(root, ("normals",)), tmp_path / "none")


@pytest.fixture
def p3m_root(tmp_path):
    root = tmp_path / "P3M-10k"
    alpha = np.tile(np.linspace(0, 255, SIZE[1]).astype(np.uint8), (SIZE[0], 1))
    layout = {
        "train": "blurred_image",
        "validation/P3M-500-P": "blurred_image",
        "validation/P3M-500-NP": "original_image",
    }
    sums = {}
    for where, images in layout.items():
        sums[where] = write(root / where / images / "p_00af.jpg", picture(len(where)))
        write(root / where / "mask" / "p_00af.png", alpha)
        if where != "train":
            write(root / where / "trimap" / "p_00af.png", alpha)
    return root, alpha, sums


@pytest.mark.parametrize(("split", "where"), [("train", "train"), ("P3M-500-NP", "validation/P3M-500-NP")])
def test_p3m_as_it_unpacks(p3m_root, tmp_path, split, where):
    root, alpha, sums = p3m_root
    _, samples = bring(p3m(root, split), tmp_path / "out")
    np.testing.assert_array_equal(samples[0]["alpha"], alpha)
    assert stored_sum(samples, 0, "jpg") == sums[where] and "foreground" not in samples[0]
    write(root / where / "fg_map" / "p_00af.png", picture(9))
    _, samples = bring(p3m(root, split), tmp_path / "with")
    np.testing.assert_array_equal(samples[0]["foreground"], np.where(alpha[..., None] > 0, picture(9), 0))


@pytest.mark.parametrize("form", ["png", "webp", "png16"])
def test_rgba_pictures(tmp_path, form):
    rgba = np.dstack([picture(3), np.tile(np.linspace(0, 255, SIZE[1]).astype(np.uint8), (SIZE[0], 1))])
    folder, extension = tmp_path / "cut", form[:3] if form == "png16" else form
    folder.mkdir()
    file = folder / f"person.{extension}"
    if form == "png16":
        cv2.imwrite(str(file), rgba[..., [2, 1, 0, 3]].astype(np.uint16) * 257)
    else:
        Image.fromarray(rgba).save(file, lossless=True, exact=True)
    write(folder / "opaque.png", picture(4))
    packed, samples = bring(RgbaImporter(folder), tmp_path / "out", max_rejected=0.5)
    assert packed.rejected[0][0] == "opaque" and "no transparency" in packed.rejected[0][1]
    sample = samples[0]
    np.testing.assert_array_equal(sample["alpha"], rgba[..., 3])
    np.testing.assert_array_equal(sample["foreground"], np.where(rgba[..., 3:] > 0, rgba[..., :3], 0))
    assert stored_sum(samples, 0, extension) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_masks_with_a_foreground(tmp_path):
    """A mask of four channels gives coverage and straight colours; 16-bit and 0/1 masks are spread to 0..255."""
    names = ("four", "sixteen", "binary", "none")
    for number, name in enumerate(names):
        write(tmp_path / "images" / f"{name}.jpg", picture(number))
    alpha = np.tile(np.linspace(0, 255, SIZE[1]).astype(np.uint8), (SIZE[0], 1))
    write(tmp_path / "masks" / "four.png", np.dstack([picture(7), alpha]))
    (tmp_path / "masks" / "sixteen.png").write_bytes(cv2.imencode(".png", alpha.astype(np.uint16) * 257)[1].tobytes())
    write(tmp_path / "masks" / "binary.png", (alpha > 99).astype(np.uint8))
    write(tmp_path / "masks" / "none.png", np.zeros_like(alpha))
    packed, samples = bring(
        MattingImporter(tmp_path / "images", tmp_path / "masks"), tmp_path / "out", max_rejected=0.3
    )
    found = {samples.key(i): samples[i] for i in range(3)}
    np.testing.assert_array_equal(found["four"]["alpha"], alpha)
    np.testing.assert_array_equal(found["four"]["foreground"], np.where(alpha[..., None] > 0, picture(7), 0))
    np.testing.assert_array_equal(found["sixteen"]["alpha"], alpha)
    np.testing.assert_array_equal(found["binary"]["alpha"], np.where(alpha > 99, 255, 0))
    assert packed.rejected == (("none", f"{tmp_path}/masks/none.png: no pixel of it is covered"),)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda root: lip(root),
            "no folder of images; it should be called train_images or TrainVal_images/train_images",
        ),
        (lambda root: cihp(root), "it should be called Training or instance-level_human_parsing/Training"),
        (lambda root: p3m(root), "no folder of the split train"),
        (lambda root: RgbaImporter(root / "gone").scan(), "gone: no such folder"),
        (lambda root: RendersImporter(root, ("albedo",)).scan(), "no folders rgb/rgbs, mask/masks, albedo/albedos"),
        (lambda root: SegmentationImporter(root, root, "lip").scan(), "no schema lip: give dome-34, wide-52"),
        (lambda root: SegmentationImporter(root, root, "lip-20").scan(), "no mask has the name of an image"),
        (lambda root: MattingImporter(root, root).scan(), "no mask has the name of an image"),
    ],
)
def test_layouts_that_are_not_there(tmp_path, make, words):
    with pytest.raises(ImportFailedError, match=words):
        make(tmp_path)
