"""Light: sun and sky, rooms lit by panels and windows, coloured lamps, light from behind.

Only ratios matter: the picture is exposed for the person afterwards. Irradiance is in units of what lights a
white card "normally"; colours are linear RGB.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

LIGHTINGS = ("outdoor", "indoor", "coloured", "back")


@dataclass(frozen=True)
class Light:
    """One lamp.

    Args:
        kind: "sun" (parallel rays, no position), "panel" (a square that emits on the side it faces) or
            "spot" (a point that shines into a cone).
        position: (3,) world metres; of a sun, any point that it comes from.
        target: (3,) world point it is aimed at.
        colour: (3,) irradiance that it gives at the target.
        size: side of a panel, metres.
    """

    kind: str
    position: np.ndarray
    target: np.ndarray
    colour: np.ndarray
    size: float = 0.0


@dataclass(frozen=True)
class Lighting:
    """All light of a scene.

    Args:
        name: one of LIGHTINGS.
        lights: the lamps.
        ambient: (3,) radiance that comes from everywhere, where no environment picture is given.
        level: how bright the person shall come out; 1 shows a white shirt as almost white.
    """

    name: str
    lights: tuple[Light, ...]
    ambient: np.ndarray
    level: float
    info: dict = field(default_factory=dict)


def sample_lighting(
    rng: np.random.Generator, name: str, target: np.ndarray, view: np.ndarray, ceiling: float = 8.0
) -> Lighting:
    """Draw a lighting.

    Args:
        name: one of LIGHTINGS.
        target: (3,) world point to light, the middle of the person.
        view: (3,) horizontal unit direction from the person to the camera.
        ceiling: no panel or spot hangs above this height.
    """
    if name not in LIGHTINGS:
        raise ValueError(f"lighting must be one of {', '.join(LIGHTINGS)}, got {name!r}")
    rig = {"outdoor": _outdoor, "indoor": _indoor, "coloured": _coloured, "back": _back}[name]
    return rig(rng, np.asarray(target, np.float64), np.asarray(view, np.float64), ceiling)


def white_light(rng: np.random.Generator, low: float = 2800, high: float = 9000) -> np.ndarray:
    """Linear RGB of a warm to cool white, green 1; a camera's white balance has taken half of the tint."""
    kelvin = np.exp(rng.uniform(np.log(low), np.log(high)))
    shift = 0.5 * np.log(kelvin / 5500)
    return np.exp([-0.75 * shift, 0.0, 0.85 * shift])


def vivid_light(rng: np.random.Generator) -> np.ndarray:
    """Linear RGB of a lamp with a coloured filter, largest channel 1."""
    hue = rng.random()
    wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return 1 - rng.uniform(0.5, 0.95) * (1 - wheel)


def _around(target, view, azimuth: float, elevation: float, distance: float, ceiling: float) -> np.ndarray:
    """Point at `azimuth` degrees from the camera's side, as seen from above, and `elevation` degrees up."""
    azimuth, elevation = np.radians([azimuth, elevation])
    side = np.array([view[2], 0.0, -view[0]])
    flat = np.cos(azimuth) * view + np.sin(azimuth) * side
    point = target + distance * (np.cos(elevation) * flat + np.sin(elevation) * np.array([0.0, 1.0, 0.0]))
    point[1] = np.clip(point[1], 0.1, max(0.3, ceiling - 0.05))
    return point


def _outdoor(rng, target, view, ceiling) -> Lighting:
    elevation = rng.uniform(6, 75)
    strength = rng.choice([0.0, rng.uniform(0.6, 1.6), rng.uniform(1.6, 4.5)], p=[0.3, 0.3, 0.4])
    warm = np.exp(-elevation / 18)
    colour = strength * np.array([1.0, 0.95 - 0.35 * warm, 0.9 - 0.65 * warm])
    sun = Light("sun", _around(target, view, rng.uniform(-180, 180), elevation, 100, 1e3), target, colour)
    sky = np.array([0.85, 0.95, 1.1]) * rng.uniform(0.25, 0.4)
    lights = (sun,) if strength else ()
    return Lighting("outdoor", lights, sky, rng.uniform(0.7, 1.05), {"sun": round(float(strength), 3)})


def _indoor(rng, target, view, ceiling) -> Lighting:
    lights = []
    for _ in range(rng.integers(1, 3)):
        place = _around(target, view, rng.normal(0, 75), rng.uniform(10, 80), rng.uniform(1.5, 3.5), ceiling)
        colour = white_light(rng) * rng.uniform(0.5, 1.5)
        lights.append(Light("panel", place, target, colour, rng.uniform(0.3, 1.4)))
    ambient = white_light(rng, 3500, 7000) * rng.uniform(0.12, 0.32)
    return Lighting("indoor", tuple(lights), ambient, rng.uniform(0.6, 1.0))


def _coloured(rng, target, view, ceiling) -> Lighting:
    lights = []
    turn = rng.choice([-1, 1])
    for azimuth in (rng.uniform(20, 110), -rng.uniform(20, 150)):
        place = _around(target, view, turn * azimuth, rng.uniform(-5, 50), rng.uniform(1.5, 3.5), ceiling)
        kind = "panel" if rng.random() < 0.5 else "spot"
        colour = vivid_light(rng) * rng.uniform(0.5, 1.6)
        lights.append(Light(kind, place, target, colour, rng.uniform(0.2, 1.0)))
    ambient = (0.5 + 0.5 * vivid_light(rng)) * rng.uniform(0.05, 0.18)
    return Lighting("coloured", tuple(lights), ambient, rng.uniform(0.5, 0.95))


def _back(rng, target, view, ceiling) -> Lighting:
    behind = _around(target, view, 180 + rng.normal(0, 25), rng.uniform(5, 50), rng.uniform(2, 4), ceiling)
    lights = [Light("spot", behind, target, white_light(rng) * rng.uniform(1.5, 5))]
    if rng.random() < 0.5:
        front = _around(target, view, rng.uniform(-60, 60), rng.uniform(0, 50), rng.uniform(2, 3), ceiling)
        lights.append(Light("panel", front, target, white_light(rng) * rng.uniform(0.1, 0.5), 1.0))
    ambient = white_light(rng, 4000, 8000) * rng.uniform(0.1, 0.28)
    return Lighting("back", tuple(lights), ambient, rng.uniform(0.45, 0.8))
