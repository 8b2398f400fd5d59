"""Changes of colour, sharpness and noise, with the numbers of the release (data 4.1); geometry stays as it is.

Each takes a picture uint8 (H, W, 3) RGB and a ``numpy.random.Generator``, is a pure function of the two, and returns
a new picture of the same shape. Whether one is applied at all is the caller's decision.

They are a few lines of OpenCV each, because albumentations 2.0.8 has other distributions: its noise is uniform in the
deviation (here: in the variance), its solarisation inverts the threshold itself, its down-sampling knows one fixed
pair of interpolations.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

_INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4)
_LEVELS = np.arange(256, dtype=np.float64)


def _table(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def distort_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, each with probability 0.5; see ``draw_distortion``."""
    return draw_distortion(rng)(image)


def draw_distortion(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Draw a change of colours, to be applied to one picture or to several in the same way.

    Brightness adds U(-32, 32), contrast multiplies by U(0.5, 1.5), in equal shares before or after saturation
    (times U(0.5, 1.5)) and hue (plus an integer of -18..18, of 180), which act in OpenCV's 8-bit HSV. Each happens
    with probability 0.5, and values are clipped after each step.
    """
    does_brightness, does_contrast, contrast_first, does_saturation, does_hue = rng.random(5) < 0.5
    delta, contrast, saturation = rng.uniform(-32, 32), rng.uniform(0.5, 1.5), rng.uniform(0.5, 1.5)
    hue = int(rng.integers(-18, 19))
    before = _LEVELS
    if does_brightness:
        before = _table(before + delta).astype(np.float64)
    if does_contrast and contrast_first:
        before = _table(before * contrast).astype(np.float64)

    def distort(image: np.ndarray) -> np.ndarray:
        if before is not _LEVELS:
            image = cv2.LUT(image, _table(before))
        if does_saturation or does_hue:
            image = _shift_hsv(image, hue if does_hue else 0, saturation if does_saturation else 1.0)
        if does_contrast and not contrast_first:
            image = cv2.LUT(image, _table(_LEVELS * contrast))
        return image

    return distort


def _shift_hsv(image: np.ndarray, hue: int, saturation: float) -> np.ndarray:
    tables = np.empty((1, 256, 3), np.uint8)
    tables[0, :, 0] = (np.arange(256) + hue) % 180
    tables[0, :, 1] = _table(_LEVELS * saturation)
    tables[0, :, 2] = np.arange(256)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, tables), cv2.COLOR_HSV2RGB)


def blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur by a Gaussian of 3 x 3 pixels with deviation U(0.1, 2)."""
    return cv2.GaussianBlur(image, (3, 3), rng.uniform(0.1, 2.0))


def add_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add independent Gaussian noise of mean 0 and variance U(5, 20) per channel, rounded and clipped."""
    deviation = math.sqrt(rng.uniform(5.0, 20.0))
    values = rng.integers(0, 1 << 16, image.shape, dtype=np.uint16)
    return cv2.add(image, cv2.LUT(values, _noise_table(deviation)), dtype=cv2.CV_8U)


def _noise_table(deviation: float) -> np.ndarray:
    """Return (1, 65536) int8: a uniform 16-bit number looked up here is a rounded normal number.

    It draws noise four times as fast as a generator of normal numbers, which would take as long as all the rest.
    """
    reach = math.ceil(4.5 * deviation)
    bounds = [0.5 * (1 + math.erf((k + 0.5) / (deviation * math.sqrt(2)))) for k in range(-reach, reach)]
    ends = np.rint(np.array([*bounds, 1.0]) * 65536).astype(int)
    counts = np.diff(ends, prepend=0)
    return np.repeat(np.arange(-reach, reach + 1, dtype=np.int8), counts)[None]


def solarise(image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """Invert every value above 128; nothing is random in it."""
    values = np.arange(256)
    return cv2.LUT(image, np.where(values > 128, 255 - values, values).astype(np.uint8))


def down_up_sample(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrink by a factor U(0.1, 0.7) and enlarge to the old size, each with a random interpolation of five."""
    factor = rng.uniform(0.1, 0.7)
    down, up = (_INTERPOLATIONS[index] for index in rng.integers(0, len(_INTERPOLATIONS), 2))
    height, width = image.shape[:2]
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(cv2.resize(image, small, interpolation=down), (width, height), interpolation=up)


def box_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Average over a square of 3, 5 or 7 pixels."""
    side = 2 * int(rng.integers(1, 4)) + 1
    return cv2.blur(image, (side, side))


def median_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Take the median over a square of 3, 5 or 7 pixels."""
    return cv2.medianBlur(image, 2 * int(rng.integers(1, 4)) + 1)


def cut_hole(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blacken one rectangle, whose sides are U(0.2, 0.4) of the picture's, anywhere within it."""
    height, width = (max(1, round(side * rng.uniform(0.2, 0.4))) for side in image.shape[:2])
    top = int(rng.integers(0, image.shape[0] - height + 1))
    left = int(rng.integers(0, image.shape[1] - width + 1))
    image = image.copy()
    image[top : top + height, left : left + width] = 0
    return image


def compress(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Write as JPEG of quality 30 to 60 and read again."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 61))]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
