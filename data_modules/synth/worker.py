"""One rendering process: ``python -m data_modules.synth.worker``, driven by `pool` through its pipes.

A process of its own, and not a fork, because Mitsuba and torch hold threads; started by command, so that the user's
script is not imported again and needs no ``__main__`` guard.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Up to this size a pixel is about as large as the body's triangles, and finer ones would only take time.
_PIXELS_FINER_THAN_FACETS = 160 * 120


@dataclass(frozen=True)
class Settings:
    """What the bytes of a set depend on.

    Args:
        count: number of samples.
        image_size: (height, width).
        seed: of the whole set.
        samples_per_pixel: paths traced per pixel.
        backgrounds: digest of the user's background images, or None.
        variant: Mitsuba's variant.
        generator: version of this generator; it rises when the same seed gives other samples.
    """

    count: int
    image_size: tuple[int, int]
    seed: int
    samples_per_pixel: int
    backgrounds: str | None
    variant: str
    generator: int

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, equal for equal settings."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Settings:
        """Undo `to_json`."""
        return cls(**{**values, "image_size": tuple(values["image_size"])})


def make_sample(settings: Settings, index: int, images: list[Path] | None = None) -> dict[str, Any]:
    """Make raw sample `index`: a pure function of the settings (and of the user's images), whoever calls it.

    `render.set_variant` must have been called in this process.

    Raises:
        ValueError: a background image cannot be read.
    """
    from data_modules.synth.body import sample_person
    from data_modules.synth.labels import make_labels
    from data_modules.synth.render import develop, trace
    from data_modules.synth.scene import sample_scene
    from data_modules.synth.subdivision import subdivide_person

    # One stream a part, so that a change in how people are drawn leaves the cameras as they were.
    people, scenes, films = (np.random.default_rng([settings.seed, index, part]) for part in range(3))
    person = sample_person(people)
    if settings.image_size[0] * settings.image_size[1] > _PIXELS_FINER_THAN_FACETS:
        person = subdivide_person(person)
    scene = sample_scene(scenes, person, settings.image_size, images)
    labels = make_labels(person, scene.camera)
    radiance = trace(scene, settings.samples_per_pixel, seed=int(films.integers(2**31)))
    image = develop(radiance, scene, labels.reflectance, labels.mask, films)
    camera = scene.camera
    meta = {
        "seed": settings.seed,
        "index": index,
        "person": person.info,
        "camera": camera.info
        | {"rotation": camera.rotation.round(6).tolist(), "position": camera.position.round(5).tolist()},
        "scene": scene.info,
    }
    return {"key": sample_key(index), "image": image, **labels.fields, "meta": meta}


def sample_key(index: int) -> str:
    """Key of sample `index` in the shards."""
    return f"synth_{index:08d}"


def prepare_process(variant: str) -> None:
    """Load the body model, keep OpenCV to one thread (numpy's follows from the environment), select the variant."""
    import cv2

    from data_modules.synth.body import prepare
    from data_modules.synth.render import set_variant

    cv2.setNumThreads(1)
    set_variant(variant)
    prepare()


def main() -> None:
    """Read a job from stdin, then one sample number a line; answer one line of JSON each on the first stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What libraries print must not mix with the answers.
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    from data_modules.shards import encode_sample
    from data_modules.synth.backgrounds import list_images
    from data_modules.synth.staging import write_staged

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    settings = Settings.from_json(job["settings"])
    index = None
    try:
        images = list_images(job["backgrounds"]) if job["backgrounds"] else None
        prepare_process(settings.variant)
        answer(ready=True)
        for line in sys.stdin:
            index = int(line)
            members = encode_sample(make_sample(settings, index, images))
            write_staged(Path(job["staging"]), index, members)
            answer(index=index)
    except Exception as error:
        text = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
        answer(index=index, error=text, traceback=traceback.format_exc())
        sys.exit(1)


if __name__ == "__main__":
    main()
