"""Whole people: valid, adult, dressed, on the ground, the same for the same seed."""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("anny", reason="needs the synth extra")

from data_modules.synth import classes
from data_modules.synth.body import prepare, sample_person, sample_phenotype
from data_modules.synth.contact import keep_arms_out
from data_modules.synth.garments import sample_outfit
from data_modules.synth.poses import POSES, Arm, pose_rotations
from data_modules.synth.regions import load_regions
from data_modules.synth.rig import load_rig, phenotype_words

PEOPLE = 16


@pytest.fixture(scope="module")
def people():
    prepare()
    return [sample_person(np.random.default_rng([3, index])) for index in range(PEOPLE)]


def _flat(person):
    for mesh in person.meshes:
        yield from (mesh.vertices, mesh.faces, mesh.normals, mesh.uv, mesh.face_class, mesh.material.albedo)
    yield from (person.keypoints, person.keypoint_radius)


def test_people_are_valid(people):
    for person in people:
        person.validate()  # shapes, types, unit normals, uv in [0, 1], classes in 1..28, finite
        json.dumps(person.info, allow_nan=False)


def test_same_seed_same_bytes(people):
    again = sample_person(np.random.default_rng([3, 5]))
    assert [m.name for m in again.meshes] == [m.name for m in people[5].meshes]
    for first, second in zip(_flat(again), _flat(people[5])):
        assert first.tobytes() == second.tobytes()
    assert again.info == people[5].info
    assert people[4].info != people[5].info


def test_feet_on_the_ground_and_pelvis_at_the_origin(people):
    for person in people:
        lowest = min(mesh.vertices[:, 1].min() for mesh in person.meshes)
        assert lowest == pytest.approx(0, abs=1e-5)
        hips = person.keypoints[[9, 10]].mean(axis=0)
        assert np.abs(hips[[0, 2]]).max() < 0.1
        assert hips[1] > 0.15


def test_nobody_lets_torso_or_pelvis_show(people):
    """The skin of trunk and hips may show at the neckline and the armholes only."""
    regions = load_regions()
    for person in people:
        names = {mesh.name for mesh in person.meshes}
        assert "top" in names
        assert names & {"bottom", "under_shorts"}
        if "skin" in names:
            skin = next(mesh for mesh in person.meshes if mesh.name == "skin")
            shown = skin.vertices[skin.faces[skin.face_class == classes.TORSO]].reshape(-1, 3)
            if len(shown):
                shoulders = person.keypoints[[5, 6]].mean(axis=0)
                assert np.linalg.norm(shown - shoulders, axis=1).max() < 0.33, person.info
    assert regions.points.shape == (13718, 3)


def test_all_outfits_cover_torso_and_pelvis():
    """500 random outfits: every part of trunk and hips lies inside a garment."""
    regions = load_regions()
    height, x = regions.points[:, 1], np.abs(regions.points[:, 0])
    private = regions.is_group("torso", "upper_leg") & (height > 0.0) & (height < 0.56) & (x < 0.24)
    assert private.sum() > 1000
    for seed in range(500):
        rng = np.random.default_rng(seed)
        outfit = sample_outfit(regions, rng, float(rng.random()))
        covered = np.max([garment.field for garment in outfit.garments], axis=0)
        assert covered[private].min() > 0.02, (seed, outfit.info)
        if outfit.skirts:
            assert any(garment.name == "under_shorts" for garment in outfit.garments)
            assert outfit.skirts[0].waist - outfit.skirts[0].hem > 0.25


def test_adults_only():
    rig = load_rig()
    heights, ages = [], []
    for seed in range(150):
        phenotype, race, age = sample_phenotype(np.random.default_rng(seed))
        words = phenotype_words(phenotype, race, age)
        assert words["young"] + words["old"] == pytest.approx(1)
        assert min(words.values()) >= 0
        ages.append(age)
        if seed % 5 == 0:
            heights.append(rig.shape(phenotype, race, age).height)
    assert min(ages) >= 25
    assert max(ages) <= 80
    assert min(heights) > 1.4
    assert max(heights) < 2.1
    assert max(heights) - min(heights) > 0.2


@pytest.mark.parametrize("age", [0.0, 12.0, 17.9, 24.9, 95.0])
def test_other_ages_are_refused(age):
    with pytest.raises(ValueError, match="adults only"):
        load_rig().shape({}, {"african": 1, "asian": 1, "caucasian": 1}, age)


def test_no_shape_of_a_child_is_even_loaded():
    words = {word for terms in load_rig().shape_terms for word in terms}
    assert {"young", "old"} <= words
    assert not words & {"newborn", "baby", "child"}


def test_variety(people):
    tones = [person.info["skin_tone"]["position"] for person in people]
    assert max(tones) - min(tones) > 4
    assert len({person.info["pose"]["base"] for person in people}) > 6
    assert len({json.dumps(person.info["garments"]) for person in people}) > 10


def test_labels_of_garments(people):
    expected = {
        "top": {classes.UPPER_CLOTHING},
        "bottom": {classes.LOWER_CLOTHING},
        "left_shoe": {classes.SHOE["L"]},
        "right_sock": {classes.SOCK["R"]},
        "hair": {classes.HAIR},
        "hat": {classes.APPAREL},
        "eyes": {classes.FACE_NECK},
    }
    seen = set()
    for person in people:
        for mesh in person.meshes:
            if mesh.name in expected:
                seen.add(mesh.name)
                assert set(mesh.face_class) == expected[mesh.name]
    assert {"top", "bottom", "left_shoe", "hair", "eyes"} <= seen


def test_both_sides_of_a_pair_are_worn(people):
    for person in people:
        names = {mesh.name for mesh in person.meshes}
        assert ("left_shoe" in names) == ("right_shoe" in names)
        assert ("left_sock" in names) == ("right_sock" in names)


def test_arms_are_kept_out_of_the_body():
    """A hand drawn into the belly comes out; poses without contact stay untouched."""
    rig = load_rig()
    even = {"african": 1.0, "asian": 1.0, "caucasian": 1.0}
    wide = rig.shape({"weight": 0.95, "muscle": 0.4}, even, 50.0)
    across = Arm((0.1, -1.0, 0.0), (-1.0, 0.1, 0.3))
    pose = replace(POSES["standing"], arms=(across, across))
    drawn = pose_rotations(rig, pose, ("closed", "closed"), np.random.default_rng(0))
    assert keep_arms_out(rig, wide, drawn, tries=1)[1] > 0.03
    kept, _ = keep_arms_out(rig, wide, drawn, tries=12)
    assert keep_arms_out(rig, wide, kept, tries=1)[1] < 0.005
    changed = np.flatnonzero(np.abs(kept - drawn).max(axis=(1, 2)) > 0)
    assert {rig.bone_names[bone] for bone in changed} == {"upperarm01.L", "upperarm01.R"}
    free = pose_rotations(rig, POSES["arms_sideways"], ("open", "open"), np.random.default_rng(0))
    kept, depth = keep_arms_out(rig, wide, free)
    assert np.array_equal(kept, free)
    assert depth == 0


@pytest.mark.parametrize("tone", [0.0, 3.0, 6.0, 9.0])
def test_cloth_never_has_the_colour_of_the_skin_under_it(tone):
    from data_modules.synth.materials import SKIN_DISTANCE, distance_to_skin, sample_cloth_unlike, skin_tone

    rng, skin = np.random.default_rng(int(tone)), skin_tone(tone)
    distances = [distance_to_skin(sample_cloth_unlike(rng, skin)[0], skin) for _ in range(150)]
    assert min(distances) >= SKIN_DISTANCE
