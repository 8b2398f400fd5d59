"""The RGB picture of a scene, path-traced by Mitsuba 3, and its exposure.

Mitsuba makes colours only; labels come from `rasterizer`. Frames as in `camera`: Mitsuba's own camera looks
along +z with x to the left and y up, and its film has pixel (0, 0) at the top left, so the two agree when the
principal point is the middle of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_modules.synth.backgrounds import Surface
from data_modules.synth.lights import Light
from data_modules.synth.scene import Scene
from data_modules.synth.types import Material, Mesh

_MAX_DEPTH = 3
# Light that goes from wall to wall costs half as much again and adds a fifth: the ambient light stands for it.
_MAX_DEPTH_WITH_SURFACES = 2
# About this share of what surrounds a point in a room is not hidden by the room itself.
_AMBIENT_SHARE_OF_ROOMS = 0.4
_MATT_ROUGHNESS = 0.75


@dataclass(frozen=True)
class Radiance:
    """What the path tracer returns.

    Args:
        rgb: (H, W, 3) float32 linear radiance; premultiplied by alpha where the scene has a backdrop.
        alpha: (H, W) float32: 1 where a surface or the environment is seen, 0 where the backdrop shows.
    """

    rgb: np.ndarray
    alpha: np.ndarray


def set_variant(variant: str) -> None:
    """Select the variant for this process and keep Dr.Jit to one thread, so that workers do not compete."""
    import drjit
    import mitsuba

    mitsuba.set_variant(variant)
    mitsuba.set_log_level(mitsuba.LogLevel.Error)
    drjit.set_thread_count(1)


def trace(scene: Scene, samples_per_pixel: int, seed: int) -> Radiance:
    """Path-trace a scene with the variant that `set_variant` selected.

    Args:
        samples_per_pixel: paths a pixel.
        seed: of the sampler; the same seed gives the same picture.
    """
    import mitsuba

    height, width = scene.camera.image_size
    window = _person_window(scene) if scene.backdrop is not None else (0, 0, width, height)
    left, top, right, bottom = window
    loaded = mitsuba.load_dict(_scene_dict(mitsuba, scene, window, samples_per_pixel))
    picture = np.asarray(mitsuba.render(loaded, seed=seed % 2**31), dtype=np.float32)
    rgb = np.zeros((height, width, 3), np.float32)
    alpha = np.zeros((height, width), np.float32)
    rgb[top:bottom, left:right] = np.nan_to_num(picture[..., :3], posinf=0.0, neginf=0.0)
    alpha[top:bottom, left:right] = picture[..., 3]
    return Radiance(rgb, alpha)


def develop(
    radiance: Radiance, scene: Scene, albedo: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Expose for the person, put the backdrop behind, add sensor noise and encode.

    The exposure divides by the light that falls on the person (its radiance over its reflectance), not by its
    brightness: dark skin stays dark and a white shirt stays white.

    Args:
        albedo: (H, W, 3) float32 linear reflectance of the person.
        mask: (H, W) bool, where the person is.
        rng: draws the deviation of the exposure and the noise.

    Returns:
        (H, W, 3) uint8 sRGB.
    """
    mask = mask & (radiance.alpha > 0.99)
    light = 1.0
    if mask.any():
        light = float(radiance.rgb[mask].mean() / max(albedo[mask].mean(), 1e-3))
    exposure = scene.lighting.level * 2 ** rng.normal(0, 0.25) / max(light, 1e-6)
    rgb = radiance.rgb * exposure
    if scene.backdrop is not None:
        rgb = rgb + (1 - radiance.alpha[..., None]) * scene.backdrop
    full_well = np.exp(rng.uniform(np.log(1500), np.log(30000)))
    noise = rng.standard_normal(rgb.shape, np.float32) * np.sqrt(np.maximum(rgb, 0) / full_well + 1e-6)
    return encode_srgb(_shoulder(rgb + noise))


def encode_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear values in [0, 1] -> sRGB uint8."""
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.power(linear, 1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)


def _shoulder(linear: np.ndarray, start: float = 0.7) -> np.ndarray:
    """Leave values up to `start` as they are and bend brighter ones towards 1, as film does."""
    over = np.maximum(linear - start, 0) / (1 - start)
    return np.minimum(linear, start) + (1 - start) * over / (1 + over)


def _person_window(scene: Scene) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the pixels that can see the person."""
    height, width = scene.camera.image_size
    points = np.concatenate([mesh.vertices for mesh in scene.person.meshes])
    pixels, depth = scene.camera.project(points)
    if depth.min() < 0.05:
        return 0, 0, width, height
    low = np.floor(pixels.min(axis=0)).astype(int)
    high = np.ceil(pixels.max(axis=0)).astype(int)
    left, top = np.clip(low, 0, [width - 1, height - 1])
    right, bottom = np.clip(high, [left + 1, top + 1], [width, height])
    return int(left), int(top), int(right), int(bottom)


def _scene_dict(mi: Any, scene: Scene, window: tuple[int, int, int, int], samples: int) -> dict[str, Any]:
    height, width = scene.camera.image_size
    left, top, right, bottom = window
    rotation = scene.camera.rotation
    to_world = np.eye(4)
    to_world[:3, :3] = np.stack([-rotation[0], -rotation[1], rotation[2]], axis=1)
    to_world[:3, 3] = scene.camera.position
    focal = scene.camera.intrinsics[0, 0]
    described: dict[str, Any] = {
        "type": "scene",
        "integrator": {
            "type": "path",
            "max_depth": _MAX_DEPTH if scene.backdrop is not None else _MAX_DEPTH_WITH_SURFACES,
            "rr_depth": _MAX_DEPTH + 1,
            "hide_emitters": scene.backdrop is not None,
        },
        "sensor": {
            "type": "perspective",
            "to_world": mi.ScalarTransform4f(to_world),
            "fov": float(np.degrees(2 * np.arctan(width / (2 * focal)))),
            "fov_axis": "x",
            "near_clip": 0.02,
            "far_clip": 1000.0,
            "film": {
                "type": "hdrfilm",
                "width": width,
                "height": height,
                "crop_offset_x": left,
                "crop_offset_y": top,
                "crop_width": right - left,
                "crop_height": bottom - top,
                "rfilter": {"type": "box"},
                "pixel_format": "rgba",
                "component_format": "float32",
            },
            "sampler": {"type": "multijitter", "sample_count": samples},
        },
    }
    glow = None
    if scene.info.get("background") == "room":
        glow = _AMBIENT_SHARE_OF_ROOMS * scene.lighting.ambient
    else:
        bitmap = mi.Bitmap(np.ascontiguousarray(scene.environment, np.float32))
        described["environment"] = {"type": "envmap", "bitmap": bitmap}
    for i, light in enumerate(scene.lighting.lights):
        described[f"light_{i}"] = _light_dict(mi, light)
    for i, surface in enumerate(scene.surfaces):
        described[f"surface_{i}"] = _surface_shape(mi, f"surface_{i}", surface, glow)
    for i, mesh in enumerate(scene.person.meshes):
        described[f"person_{i}"] = _mesh_shape(mi, f"person_{i}", mesh, glow)
    return described


def _light_dict(mi: Any, light: Light) -> dict[str, Any]:
    position, target = np.asarray(light.position, float), np.asarray(light.target, float)
    away = target - position
    distance = float(np.linalg.norm(away))
    if light.kind == "sun":
        return {
            "type": "directional",
            "direction": list(away / distance),
            "irradiance": _rgb(light.colour),
        }
    up = [0, 1, 0] if abs(away[1]) < 0.99 * distance else [1, 0, 0]
    look = mi.ScalarTransform4f().look_at(origin=list(position), target=list(target), up=up)
    if light.kind == "spot":
        return {
            "type": "spot",
            "to_world": look,
            "intensity": _rgb(light.colour * distance**2),
            "cutoff_angle": 55.0,
            "beam_width": 35.0,
        }
    # A square of side s at distance d gives about radiance * s^2 / d^2, less when it is near.
    radiance = light.colour * (distance**2 + light.size**2) / light.size**2
    return {
        "type": "rectangle",
        "to_world": look.scale([light.size / 2, light.size / 2, 1]),
        "emitter": {"type": "area", "radiance": _rgb(radiance)},
        "bsdf": {"type": "diffuse", "reflectance": {"type": "rgb", "value": 0.3}},
    }


def _rgb(colour: np.ndarray) -> dict[str, Any]:
    return {"type": "rgb", "value": [float(c) for c in colour]}


def _texture(mi: Any, albedo: np.ndarray) -> dict[str, Any]:
    if albedo.shape[:2] == (1, 1):
        return _rgb(albedo[0, 0])
    data = mi.TensorXf(np.ascontiguousarray(albedo, np.float32))
    return {"type": "bitmap", "data": data, "raw": True, "wrap_mode": "repeat"}


def _bsdf(mi: Any, material: Material) -> dict[str, Any]:
    texture = _texture(mi, material.albedo)
    if material.roughness >= _MATT_ROUGHNESS or material.specular < 0.02:
        return {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": texture}}
    principled = {
        "type": "principled",
        "base_color": texture,
        "roughness": float(np.clip(material.roughness, 0.08, 1)),
        "specular": float(material.specular),
    }
    return {"type": "twosided", "bsdf": principled}


def _mesh_shape(mi: Any, name: str, mesh: Mesh, glow: np.ndarray | None) -> Any:
    # Mitsuba's textures have v down.
    uv = mesh.uv * np.float32([1, -1]) + np.float32([0, 1])
    return _shape(
        mi,
        name,
        mesh.vertices,
        mesh.faces,
        uv,
        mesh.normals,
        _bsdf(mi, mesh.material),
        _glow(mi, mesh.material.albedo, glow),
    )


def _surface_shape(mi: Any, name: str, surface: Surface, glow: np.ndarray | None) -> Any:
    bsdf = {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": _texture(mi, surface.albedo)}}
    return _shape(mi, name, surface.vertices, surface.faces, surface.uv, None, bsdf, _glow(mi, surface.albedo, glow))


def _glow(mi: Any, albedo: np.ndarray, glow: np.ndarray | None) -> dict[str, Any] | None:
    """Ambient light of a room as what a surface gives off: it is never sampled as a lamp, so it adds no grain.

    Light from an environment would have to find the few openings of a room.
    """
    if glow is None:
        return None
    radiance = _texture(mi, (albedo * glow).astype(np.float32))
    return {"type": "area", "radiance": radiance, "sampling_weight": 0.0}


def _shape(mi: Any, name: str, vertices, faces, uv, normals, bsdf: dict[str, Any], emitter) -> Any:
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict(bsdf)
    if emitter is not None:
        properties["emitter"] = mi.load_dict(emitter)
    mesh = mi.Mesh(
        name,
        len(vertices),
        len(faces),
        props=properties,
        has_vertex_normals=normals is not None,
        has_vertex_texcoords=True,
    )
    values = mi.traverse(mesh)
    values["vertex_positions"] = np.ascontiguousarray(vertices, np.float32).ravel()
    values["faces"] = np.ascontiguousarray(faces, np.uint32).ravel()
    values["vertex_texcoords"] = np.ascontiguousarray(uv, np.float32).ravel()
    if normals is not None:
        values["vertex_normals"] = np.ascontiguousarray(normals, np.float32).ravel()
    values.update()
    return mesh
