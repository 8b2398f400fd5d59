"""A predicted pointmap: what follows from it, and files of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s2kit.metrics.pointmap import sobel_normals

#: Depths in metres that are written to point clouds.
MAX_DEPTH = 250.0


def normals_of(points: np.ndarray) -> np.ndarray:
    """Return unit normals (H, W, 3), x right, y up, z to the camera, of camera points (H, W, 3).

    Points are x right, y down, z forward. By a 5 x 5 Sobel filter: across a silhouette they are that of the jump. 0
    where the points do not span a surface, and along the border of the picture.
    """
    away = sobel_normals(points)
    # Towards the camera is the opposite; and of that y and z change their sign with the frame.
    return away * np.array([-1, 1, 1], np.float32)


@dataclass(frozen=True)
class Pointmap:
    """The camera point of every pixel of a picture.

    Attributes:
        points: (H, W, 3) float32, metres, x right, y down, z forward.
        focal_length: As predicted, in pixels of the picture.
        valid: bool (H, W), the pixels that count; None if all do.
    """

    points: np.ndarray
    focal_length: float
    valid: np.ndarray | None = None

    @property
    def depth(self) -> np.ndarray:
        """(H, W), metres along z."""
        return self.points[..., 2]

    @property
    def normals(self) -> np.ndarray:
        """(H, W, 3); see ``normals_of``."""
        return normals_of(self.points)

    def write_npz(self, path: str | Path) -> None:
        """Write ``points``, ``depth``, ``normals`` (float16), ``focal_length``, ``valid`` if known. Not compressed."""
        arrays = {"points": self.points, "depth": self.depth, "normals": self.normals.astype(np.float16)}
        if self.valid is not None:
            arrays["valid"] = self.valid
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Compression takes long and gains a tenth. Given a name, savez might change its suffix.
        with path.open("wb") as file:
            np.savez(file, focal_length=np.float32(self.focal_length), **arrays)

    def write_ply(self, path: str | Path, picture: np.ndarray) -> int:
        """Write a coloured point cloud of the valid pixels that are in front of the camera, up to 250 m.

        Args:
            path: File to write.
            picture: uint8 (H, W, 3) RGB.

        Returns:
            The number of points.
        """
        if picture.shape != self.points.shape:
            raise ValueError(f"the picture is {picture.shape}, its pointmap {self.points.shape}")
        usual = np.isfinite(self.points).all(axis=-1) & (self.depth > 0) & (self.depth <= MAX_DEPTH)
        chosen = usual if self.valid is None else usual & self.valid
        write_ply(path, self.points[chosen], picture[chosen])
        return int(chosen.sum())


def write_ply(path: str | Path, points: np.ndarray, colors: np.ndarray) -> None:
    """Write points (N, 3) and their colours uint8 (N, 3) RGB as a binary .ply, making its folder.

    The frame is kept: x right, y down, z forward, as OpenCV and Open3D have it.
    """
    types = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    table = np.empty(len(points), types)
    for axis, name in enumerate(("x", "y", "z")):
        table[name] = points[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        table[name] = colors[:, channel]
    kinds = {"<f4": "float", "u1": "uchar"}
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    lines += [f"property {kinds[kind]} {name}" for name, kind in types]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\n".join([*lines, "end_header"]) + "\n").encode("ascii") + table.tobytes())
