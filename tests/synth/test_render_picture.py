import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from data_modules.synth import variants
from data_modules.synth.camera import FRAMINGS, sample_camera
from data_modules.synth.labels import make_labels
from data_modules.synth.lights import LIGHTINGS, Lighting, sample_lighting
from data_modules.synth.render import develop, encode_srgb, set_variant, trace
from data_modules.synth.scene import Scene, sample_scene
from data_modules.synth.textures import ambient_sky
from data_modules.synth.types import Material

SIZE = (128, 96)


@pytest.fixture(scope="module", autouse=True)
def scalar() -> None:
    """Render in this process with the variant that works everywhere."""
    set_variant("scalar_rgb")


def plain_scene(person, camera) -> Scene:
    """Even light from all around, nothing behind."""
    lighting = Lighting("outdoor", (), np.ones(3), 1.0)
    environment = ambient_sky(np.random.default_rng(0), np.ones(3)) * 0 + 1
    backdrop = np.zeros((*camera.image_size, 3), np.float32)
    return Scene(person, camera, lighting, (), environment, backdrop, {})


def offset(moved: np.ndarray, still: np.ndarray) -> np.ndarray:
    """Shift (rows, columns) in pixels of `moved` against `still`, by least squares on the gradient."""
    rows, columns = np.gradient(still)
    system = np.stack([-rows.ravel(), -columns.ravel()], axis=1)
    return np.linalg.lstsq(system, (moved - still).ravel(), rcond=None)[0]


def test_picture_and_labels_lie_on_one_another(figure) -> None:
    for seed in (1, 2):
        camera = sample_camera(np.random.default_rng(seed), figure, SIZE, "full_body")
        alpha = make_labels(figure, camera).fields["alpha"] / 255.0
        traced = trace(plain_scene(figure, camera), 64, seed=0).alpha
        assert np.abs(offset(traced, alpha)).max() < 0.05
        assert np.abs(traced - alpha).mean() < 0.01
        # The measure sees a shift of a tenth of a pixel.
        shifted = replace(camera, position=camera.position + 0.1 * camera.rotation[0] * 3 / camera.intrinsics[0, 0])
        assert np.abs(offset(make_labels(figure, shifted).fields["alpha"] / 255.0, alpha)).max() > 0.05


def test_colours_of_picture_and_albedo_label_agree(stand_in, figure) -> None:
    texture = np.random.default_rng(0).uniform(0.1, 0.9, (6, 6, 3)).astype(np.float32)
    ball = stand_in.ellipsoid((0, 1, 0), (0.3, 0.3, 0.3), "ball", 3, Material(texture, 1.0, 0.0), steps=48)
    person = replace(figure, meshes=(ball,))
    camera = sample_camera(np.random.default_rng(3), person, SIZE, "full_body")
    labels = make_labels(person, camera)
    # A convex matt body under even light of radiance 1 shows its reflectance.
    rgb = trace(plain_scene(person, camera), 64, seed=0).rgb
    inside = labels.fields["alpha"] == 255
    difference = np.abs(rgb - labels.reflectance)[inside]
    assert (
        np.median(difference) < 0.02
        and np.corrcoef(rgb[inside].ravel(), labels.reflectance[inside].ravel())[0, 1] > 0.98
    )


def test_same_seed_same_picture(figure) -> None:
    scene = sample_scene(np.random.default_rng(4), figure, (48, 36))
    first, second, other = (trace(scene, 4, seed).rgb for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_exposure_follows_the_light_and_not_the_skin(figure) -> None:
    camera = sample_camera(np.random.default_rng(5), figure, SIZE, "full_body")
    images = []
    for reflectance in (0.1, 0.5):
        material = Material(np.full((1, 1, 3), reflectance, np.float32), 1.0, 0.0)
        person = replace(figure, meshes=tuple(replace(mesh, material=material) for mesh in figure.meshes))
        scene, labels = plain_scene(person, camera), make_labels(person, camera)
        for strength in (1.0, 10.0):
            lit = replace(scene, environment=scene.environment * np.float32(strength))
            radiance = trace(lit, 16, seed=0)
            images.append(develop(radiance, lit, labels.reflectance, labels.mask, np.random.default_rng(0)))
    mean = [image[labels.mask].mean() for image in images]
    assert abs(mean[0] - mean[1]) < 2 and abs(mean[2] - mean[3]) < 2
    assert mean[2] > 1.5 * mean[0]


def test_every_background_and_light_keeps_the_person_in_front(figure) -> None:
    seen = set()
    for seed in range(24):
        scene = sample_scene(np.random.default_rng(seed), figure, (48, 36))
        seen |= {scene.info["background"], scene.info["lighting"]}
        if scene.info["background"] != "room":
            continue
        alone = make_labels(figure, scene.camera)
        # All surroundings are removed but one colour: what hides the person would darken it.
        dark = tuple(replace(surface, albedo=np.zeros((1, 1, 3), np.float32)) for surface in scene.surfaces)
        white = Material(np.full((1, 1, 3), 0.8, np.float32), 1.0, 0.0)
        person = replace(figure, meshes=tuple(replace(mesh, material=white) for mesh in figure.meshes))
        lighting, white_sky = replace(scene.lighting, lights=()), np.ones((4, 8, 3), np.float32)
        lit = replace(scene, person=person, surfaces=dark, lighting=lighting, info={}, environment=white_sky)
        rgb = trace(lit, 16, seed=0).rgb.mean(axis=2)
        inside = alone.fields["alpha"] == 255
        if inside.sum() > 30:
            assert (rgb[inside] > 0).mean() > 0.9, f"seed {seed}"
    assert {"room", "outdoor", "picture", "indoor", "coloured", "back"} <= seen


def test_cameras_frame_the_person(figure) -> None:
    focal = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        framing = FRAMINGS[seed % len(FRAMINGS)]
        camera = sample_camera(rng, figure, SIZE, framing)
        focal.append(camera.info["focal_length_mm"])
        np.testing.assert_allclose(camera.rotation @ camera.rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(camera.rotation) > 0.999 and camera.position[1] > 0.1
        points = np.concatenate([mesh.vertices for mesh in figure.meshes])
        pixels, depth = camera.project(points)
        inside = ((pixels > 0) & (pixels < [SIZE[1], SIZE[0]])).all(axis=1)
        assert depth.min() > 0
        if framing == "full_body":
            assert inside.all() and (np.ptp(pixels, axis=0) / [SIZE[1], SIZE[0]]).max() > 0.7
        if framing == "head_and_shoulders":
            head, _ = camera.project(figure.keypoints[0])
            assert (head > 0).all() and (head < [SIZE[1], SIZE[0]]).all() and inside.mean() < 0.8
    assert 28 <= min(focal) < 40 and 65 < max(focal) <= 85


def test_unknown_names_are_refused(figure) -> None:
    with pytest.raises(ValueError, match=r"framing must be one of full_body.*'feet'"):
        sample_camera(np.random.default_rng(0), figure, SIZE, "feet")
    with pytest.raises(ValueError, match=r"lighting must be one of outdoor.*'moon'"):
        sample_lighting(np.random.default_rng(0), "moon", np.zeros(3), np.array([0, 0, 1.0]))
    assert len(LIGHTINGS) == 4


def test_srgb_encoding() -> None:
    linear = np.array([-1, 0, 0.002, 0.2159, 1, 3], np.float32)
    np.testing.assert_array_equal(encode_srgb(linear), [0, 0, 7, 128, 255, 255])


def test_variant_falls_back_where_a_faster_one_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "variant_works", lambda name: False)
    assert variants.choose_variant("auto") == "scalar_rgb"
    with pytest.raises(RuntimeError, match=r"llvm_ad_rgb does not work on this machine.*DRJIT_LIBLLVM_PATH"):
        variants.choose_variant("llvm_ad_rgb")
    with pytest.raises(ValueError, match=r"variant must be auto.*'vulkan'"):
        variants.choose_variant("vulkan")
    monkeypatch.setattr(variants, "variant_works", lambda name: name == "llvm_ad_rgb")
    assert variants.choose_variant("auto") == "llvm_ad_rgb"
    assert variants.choose_variant("auto", samples=256 * 192 * 12) == "scalar_rgb"
    monkeypatch.setattr(variants, "variant_works", lambda name: name == "cuda_ad_rgb")
    assert variants.choose_variant("auto", samples=256 * 192 * 12) == "cuda_ad_rgb"


def test_the_probe_outlives_a_library_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    library = tmp_path / "libLLVM.so"
    library.write_bytes(b"not a library")
    monkeypatch.setenv("DRJIT_LIBLLVM_PATH", str(library))
    variants.variant_works.cache_clear()
    assert not variants.variant_works("llvm_ad_rgb")
    variants.variant_works.cache_clear()
    assert variants.variant_works("scalar_rgb")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = variants.importlib.util.find_spec
    monkeypatch.setattr(variants.importlib.util, "find_spec", lambda name: None if name == "mitsuba" else found(name))
    with pytest.raises(RuntimeError, match=r"'mitsuba'.*pip install \"s2kit\[synth\]\""):
        variants.require_packages()


def test_a_rendering_process_imports_neither_torch_nor_lightning() -> None:
    code = "import sys, data_modules.synth.worker; print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=variants.child_environment()
    )
    assert done.stdout.split() == ["False", "False"], done.stderr
