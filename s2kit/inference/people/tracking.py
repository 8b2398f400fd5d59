"""Who is who from one picture of a video to the next, by the overlap of boxes (IoU)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from s2kit.inference.people.boxes import People, overlaps

#: Share of a new movement in the one that is expected.
_NEWNESS = 0.4


@dataclass
class _Track:
    id: int
    box: np.ndarray  # (4,) as last seen
    step: np.ndarray  # (2,) movement of the centre a picture
    unseen: int = 0

    @property
    def expected(self) -> np.ndarray:
        return self.box + np.tile(self.step, 2) * (self.unseen + 1)


class Tracker:
    """Gives the people of a video's pictures numbers that stay.

    Each person's box is expected where its movement takes it, and gets the number of the one whose expectation it
    overlaps most; a person who is not seen is expected for some time to go on in the same way, or else to reappear
    where they were last. Nothing but boxes is looked at: two who meet, stop and part may be taken for each other.

    Args:
        min_iou: Smallest overlap with the expected box.
        max_age: Pictures after which a person who is not seen is forgotten.
    """

    def __init__(self, min_iou: float = 0.3, max_age: int = 30) -> None:
        self.min_iou, self.max_age = min_iou, max_age
        self._tracks: list[_Track] = []
        self._next = 1

    def update(self, people: People) -> People:
        """Return the people of the next picture, in their order, with ``ids`` from 1."""
        ids = np.zeros(people.number, np.int64)
        free = np.arange(people.number)
        tracks = list(self._tracks)
        for expected in (True, False):
            boxes = np.array([track.expected if expected else track.box for track in tracks]).reshape(-1, 4)
            rows, columns = _pair(overlaps(boxes, people.boxes[free]), self.min_iou)
            for row, column in zip(rows, columns):
                self._see(tracks[row], people.boxes[free[column]])
                ids[free[column]] = tracks[row].id
            free = np.delete(free, columns)
            tracks = [track for row, track in enumerate(tracks) if row not in set(rows)]
        for track in tracks:
            track.unseen += 1
        self._tracks = [track for track in self._tracks if track.unseen <= self.max_age]
        for index in free:
            ids[index] = self._next
            self._tracks.append(_Track(self._next, people.boxes[index].astype(np.float64), np.zeros(2)))
            self._next += 1
        return people._replace(ids=ids)

    @staticmethod
    def _see(track: _Track, box: np.ndarray) -> None:
        box = box.astype(np.float64)
        moved = ((box[:2] + box[2:]) - (track.box[:2] + track.box[2:])) / 2 / (track.unseen + 1)
        track.step = (1 - _NEWNESS) * track.step + _NEWNESS * moved
        track.box, track.unseen = box, 0


def _pair(iou: np.ndarray, least: float) -> tuple[list[int], list[int]]:
    """Pair rows and columns by falling overlap, from ``least`` on, each once.

    The best pairing of all together (Hungarian) exchanged no fewer numbers in simulated crowds.
    """
    rows: list[int] = []
    columns: list[int] = []
    iou = iou.copy()
    while iou.size and iou.max() >= least:
        row, column = np.unravel_index(iou.argmax(), iou.shape)
        rows.append(int(row))
        columns.append(int(column))
        iou[row], iou[:, column] = -1, -1
    return rows, columns
