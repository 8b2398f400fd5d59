"""Procedural pictures in linear RGB: surfaces of rooms and ground, skies, and flat pictures to stand behind."""

from __future__ import annotations

import cv2
import numpy as np

from data_modules.synth.lights import vivid_light


def random_colour(rng: np.random.Generator, dark: float = 0.05, light: float = 0.8) -> np.ndarray:
    """(3,) linear reflectance, most often close to grey."""
    grey = np.exp(rng.uniform(np.log(dark), np.log(light)))
    tint = 0.25 + 0.75 * vivid_light(rng)
    share = rng.beta(1, 2.5)
    return np.clip(grey * ((1 - share) + share * tint / tint.mean()), 0.01, 0.95)


def fractal_noise(rng: np.random.Generator, size: tuple[int, int], octaves: int = 5, base: int = 3) -> np.ndarray:
    """(h, w) float32 in about [0, 1]: noise summed over scales, each half as strong as the one before."""
    height, width = size
    total = np.zeros(size, np.float32)
    for octave in range(octaves):
        cells = base * 2**octave
        grid = rng.random((cells + 1, max(2, cells * width // height + 1)), np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 0.5 ** (octave + 1)
    return np.clip(total / (1 - 0.5**octaves), 0, 1)


def surface_texture(rng: np.random.Generator, size: int = 192) -> np.ndarray:
    """(size, size, 3) float32 reflectance of a wall, a floor or a box."""
    makers = (_plain, _mottled, _stripes, _checks, _bricks, _planks)
    maker = makers[rng.choice(len(makers), p=[0.2, 0.3, 0.12, 0.12, 0.13, 0.13])]
    pattern = maker(rng, size, random_colour(rng), random_colour(rng))
    grain = 1 + rng.uniform(0, 0.15) * (rng.random((size, size, 1), np.float32) - 0.5)
    return np.clip(pattern * grain, 0, 1).astype(np.float32)


def _mix(share: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first + share[..., None] * (second - first)


def _plain(rng, size, first, second):
    return np.broadcast_to(first, (size, size, 3))


def _mottled(rng, size, first, second):
    noise = fractal_noise(rng, (size, size), 6, int(rng.integers(2, 12)))
    return _mix(np.clip((noise - 0.5) * rng.uniform(1, 4) + 0.5, 0, 1), first, second)


def _stripes(rng, size, first, second):
    count = rng.integers(4, 24)
    wave = (np.arange(size) / size * count) % 1 < rng.uniform(0.1, 0.6)
    share = np.broadcast_to(wave.astype(np.float32), (size, size))
    return _mix(share if rng.random() < 0.7 else share.T, first, second)


def _checks(rng, size, first, second):
    cell = np.arange(size) * rng.integers(3, 12) // size
    return _mix(((cell[:, None] + cell[None]) % 2).astype(np.float32), first, second)


def _bricks(rng, size, first, second):
    rows, joint = int(rng.integers(6, 16)), rng.uniform(0.05, 0.15)
    v = np.arange(size)[:, None] / size * rows
    u = np.arange(size)[None] / size * rows / 2 + 0.5 * (np.floor(v) % 2)
    shade = rng.uniform(0.6, 1.3, (rows + 1, rows + 1))
    bricks = first * shade[v.astype(int), u.astype(int)][..., None]
    gaps = ((v % 1 < joint) | (u % 1 < joint / 2)).astype(np.float32)
    return np.where(gaps[..., None] > 0, second, bricks)


def _planks(rng, size, first, second):
    count = int(rng.integers(4, 14))
    column = np.arange(size) * count // size
    long = cv2.resize(rng.random((6, size), np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    shade = rng.uniform(0.7, 1.2, count)[column][None] * (0.8 + 0.4 * long)
    return first * shade[..., None]


def sky(rng: np.random.Generator, zenith: np.ndarray, size: tuple[int, int] = (128, 256)) -> np.ndarray:
    """(h, w, 3) float32 radiance all around, top row straight up: clouds, a skyline, ground below it."""
    height, width = size
    up = np.cos((np.arange(height) + 0.5) / height * np.pi)[:, None]
    haze = rng.uniform(0.9, 1.5) * np.array([1.0, 1.0, 0.98]) * zenith.mean()
    air = _mix(np.clip(up, 0, 1) ** 0.5 * np.ones((1, width)), haze, zenith)
    clouds = np.clip((_wrapped_noise(rng, size) - rng.uniform(0.35, 0.7)) * 4, 0, 1) * (up > 0)
    air = _mix(clouds * rng.uniform(0.2, 0.9), air, np.full(3, zenith.mean() * rng.uniform(0.9, 1.8)))
    ground = random_colour(rng, 0.05, 0.4) * zenith.mean() * 1.5
    picture = np.where((up > 0)[..., None], air, ground * (0.8 + 0.4 * _wrapped_noise(rng, size)[..., None]))
    _draw_skyline(rng, picture, zenith.mean())
    return picture.astype(np.float32)


def _wrapped_noise(rng, size):
    noise = fractal_noise(rng, size)
    ramp = np.linspace(0, 1, size[1], dtype=np.float32)
    return noise * ramp + noise[:, ::-1] * (1 - ramp)


def _draw_skyline(rng, picture, level) -> None:
    height, width = picture.shape[:2]
    green = rng.random() < 0.5
    for _ in range(rng.integers(0, 40)):
        left, wide = rng.integers(0, width), rng.integers(3, width // 10)
        tall = int(height * rng.uniform(0.01, 0.16))
        colour = random_colour(rng, 0.05, 0.5) * level * 1.2
        if green:
            colour = colour.mean() * np.array([0.7, 1.1, 0.4])
        columns = np.arange(left, left + wide) % width
        profile = rng.integers(0, 3, wide) if green else np.zeros(wide, int)
        for column, lower in zip(columns, profile):
            picture[height // 2 - tall + lower : height // 2 + 1, column] = colour


def ambient_sky(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """(8, 16, 3) float32 radiance whose mean is about `colour`, brighter above than below."""
    up = np.cos((np.arange(8) + 0.5) / 8 * np.pi)[:, None, None]
    slope = rng.uniform(0, 0.7)
    return (colour * (1 + slope * up) * np.ones((1, 16, 1))).astype(np.float32)


def flat_picture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) float32 linear: a procedural picture to stand behind the person."""
    makers = (_gradient, _cloudy, _discs, _shapes, _wallpaper)
    picture = makers[rng.integers(len(makers))](rng, size)
    if rng.random() < 0.4:
        sigma = rng.uniform(0.003, 0.03) * max(size)
        picture = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), sigma)
    return np.clip(picture, 0, 1).astype(np.float32)


def _grid(size):
    height, width = size
    return np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))


def _gradient(rng, size):
    x, y = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    share = np.clip(0.5 + 0.5 * (np.cos(angle) * x + np.sin(angle) * y), 0, 1)
    if rng.random() < 0.5:
        share = np.clip(np.hypot(x - rng.uniform(-0.5, 0.5), y - rng.uniform(-0.5, 0.5)) / 1.5, 0, 1)
    return _mix(share, random_colour(rng), random_colour(rng))


def _cloudy(rng, size):
    noise = [fractal_noise(rng, size, 6, int(rng.integers(2, 10))) for _ in range(2)]
    first = _mix(np.clip(noise[0] * 3 - 1, 0, 1), random_colour(rng), random_colour(rng))
    return first + np.clip(noise[1] * 3 - 1.2, 0, 1)[..., None] * (random_colour(rng) - first)


def _discs(rng, size):
    picture = np.ascontiguousarray(_gradient(rng, size) * 0.3, np.float32)
    for _ in range(rng.integers(10, 60)):
        layer = np.zeros(size, np.float32)
        centre = (int(rng.integers(size[1])), int(rng.integers(size[0])))
        cv2.circle(layer, centre, int(max(size) * rng.uniform(0.01, 0.09)) + 1, 1.0, -1, cv2.LINE_AA)
        picture += layer[..., None] * random_colour(rng, 0.1, 0.9) * rng.uniform(0.3, 1)
    return picture


def _shapes(rng, size):
    picture = np.ascontiguousarray(_gradient(rng, size), np.float32)
    scale = np.array([size[1], size[0]])
    for _ in range(rng.integers(8, 60)):
        centre, reach = rng.uniform(-0.1, 1.1, 2), rng.uniform(0.03, 0.35)
        if rng.random() < 0.6:
            low, high = centre - reach * rng.uniform(0.1, 1, 2), centre + reach * rng.uniform(0.1, 1, 2)
            corners = np.array([low, [high[0], low[1]], high, [low[0], high[1]]])
        else:
            corners = centre + rng.uniform(-reach, reach, (rng.integers(3, 7), 2))
        colour = tuple(float(c) for c in random_colour(rng))
        cv2.fillPoly(picture, [np.round(corners * scale).astype(np.int32)], colour, cv2.LINE_8)
    return picture


def _wallpaper(rng, size):
    tile = surface_texture(rng, 128)
    repeat = int(rng.integers(1, 4))
    side = int(np.ceil(max(size) / repeat))
    tile = cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA)
    light = 0.6 + 0.8 * fractal_noise(rng, size, 2, 2)[..., None]
    return np.tile(tile, (repeat, repeat, 1))[: size[0], : size[1]] * light
