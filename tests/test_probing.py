"""Probes of frozen backbones: neighbours and the linear classifier against plain NumPy, heads on cached features."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from data_modules import NormalsDataModule
from s2kit.cli import main
from s2kit.export import export_task
from s2kit.probing.backbones import load_backbone, random_backbone
from s2kit.probing.classes import run_class_probes
from s2kit.probing.dense import PROBES, Training, run_probe, training_items
from s2kit.probing.features import FeatureCache
from s2kit.probing.knn import knn_accuracy, knn_predict, majority_accuracy
from s2kit.probing.labels import number_classes, picture_classes
from s2kit.probing.linear import STRENGTHS, fit_ridge, linear_probe
from s2kit.probing.regression import explained, picture_numbers, run_regression_probes
from s2kit.tasks import NormalsTask


def clusters(seed, count, classes=5, dim=16, noise=1.0):
    centres = np.random.default_rng(0).normal(size=(classes, dim))
    rng = np.random.default_rng([1, seed])
    labels = rng.integers(classes, size=count)
    features = centres[labels] + noise * rng.normal(size=(count, dim))
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_neighbours_vote_as_a_double_loop_has_it(k):
    train, train_labels = clusters(0, 60, noise=2.0)
    features, _ = clusters(1, 30, noise=2.0)
    expected = []
    for x in features.double().numpy():
        cosines = [float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for y in train.double().numpy()]
        votes = np.zeros(5)
        for index in np.argsort(cosines)[::-1][:k]:
            votes[train_labels[index]] += np.exp(cosines[index] / 0.07)
        expected.append(int(votes.argmax()))
    assert len(set(expected)) > 1
    assert knn_predict(train, train_labels, features, k=k).tolist() == expected


def test_neighbours_tell_clusters_and_nothing_from_noise():
    train, train_labels = clusters(0, 400)
    features, labels = clusters(1, 200)
    assert knn_accuracy(train, train_labels, features, labels, k=5) > 95
    assert knn_accuracy(torch.randn_like(train), train_labels, torch.randn_like(features), labels) < 35
    assert majority_accuracy(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1, 2])) == 50


def test_neighbours_refuse_what_cannot_be():
    train, labels = clusters(0, 10)
    with pytest.raises(ValueError, match="temperature=0"):
        knn_predict(train, labels, train, temperature=0)
    with pytest.raises(ValueError, match="0 training features"):
        knn_predict(train[:0], labels[:0], train)


def test_ridge_chooses_its_strength_by_leaving_each_sample_out():
    """Against refitting without each sample, in NumPy."""
    train, labels = clusters(0, 40, noise=3.0)
    x, y = train.double().numpy(), np.eye(5)[labels.numpy()]
    # The mean and the scale are those of all samples, which the leverage of the mean, 1 / N, accounts for.
    x = (x - x.mean(0)) / x.std(0)
    errors = []
    for strength in STRENGTHS:
        squares = []
        for index in range(len(x)):
            rest = np.arange(len(x)) != index
            rows = np.c_[x[rest], np.ones(len(x) - 1)]
            penalty = np.diag([len(x) * strength] * x.shape[1] + [0.0])
            weight = np.linalg.solve(rows.T @ rows + penalty, rows.T @ y[rest])
            squares.append((y[index] - np.r_[x[index], 1] @ weight) ** 2)
        errors.append(np.mean(squares))
    best = STRENGTHS[int(np.argmin(errors))]
    assert STRENGTHS[0] < best < STRENGTHS[-1]
    values = F.one_hot(labels)
    chosen, fixed = fit_ridge(train, values), fit_ridge(train, values, [best])
    torch.testing.assert_close(chosen, fixed)
    rows = np.c_[x, np.ones(len(x))]
    penalty = np.diag([len(x) * best] * x.shape[1] + [0.0])
    expected = rows @ np.linalg.solve(rows.T @ rows + penalty, rows.T @ y)
    np.testing.assert_allclose(train.double().numpy() @ chosen[0].numpy() + chosen[1].numpy(), expected, atol=1e-9)


def test_the_linear_probe_tells_what_neighbours_cannot():
    """One telling direction among many loud ones, and a feature that is constant."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 2
    features = 10 * torch.randn(600, 20, generator=rng)
    features[:, 0] = labels + 0.1 * torch.randn(600, generator=rng)
    features[:, 1] = 1e4
    assert linear_probe(features[:400], labels[:400], features[400:], labels[400:]) > 99
    assert knn_accuracy(features[:400], labels[:400], features[400:], labels[400:]) < 65
    with pytest.raises(ValueError, match="at least two"):
        linear_probe(features[:1], labels[:1], features, labels)


def test_classes_of_pictures_are_the_generators():
    meta = {
        "person": {"pose": {"base": "waving"}, "garments": {"bottom": "shorts"}},
        "camera": {"azimuth_degrees": -100.0},
    }
    assert picture_classes(meta) == {"action": "waving", "garment": "shorts", "view": "right"}
    with pytest.raises(ValueError, match="camera"):
        picture_classes({"person": meta["person"]})
    train, held_out = number_classes(["b", "a", "b"], ["a", "c"])
    assert train.tolist() == [1, 0, 1] and held_out.tolist() == [0, -1]


# ---------------------------------------------------------------------------------------------------- frozen backbones

TINY = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}


@pytest.fixture(scope="module")
def people(synth_cache, tmp_path_factory):
    """A folder with the sets ``train`` and ``test``, here of the same people."""
    folder = tmp_path_factory.mktemp("people")
    (source,) = (synth_cache / "synth").glob("train-*")
    for split in ("train", "test"):
        (folder / split).symlink_to(source)
    return folder


@pytest.fixture
def tiny():
    return random_backbone({"arch": "sapiens2_nano", "image_size": (64, 48), "backbone": TINY})


class Pixels(nn.Module):
    """A "backbone" whose features are the pixels of each 8 x 8 patch, or nothing at all."""

    def __init__(self, blind):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.0 if blind else 1.0))
        self.config = SimpleNamespace(embed_dim=192)

    def forward(self, image):
        patches = self.scale * F.pixel_unshuffle(image, 8)
        return SimpleNamespace(patches=patches, cls=patches.mean(dim=(2, 3)))


def test_features_are_computed_once_a_picture(tiny):
    backbone, _ = tiny
    cache = FeatureCache(backbone, batch_size=2)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 255, (3, 3, 64, 48), np.uint8))
    rows = cache.rows(images[[0, 1, 0, 2]])
    assert rows.tolist() == [0, 1, 0, 2] and len(cache) == 3
    assert cache.rows(images.flip(0)).tolist() == [2, 1, 0] and len(cache) == 3 and cache.asked == 7
    assert cache.rows(images[:1].flip(-1)).tolist() == [3]
    task = NormalsTask(arch="sapiens2_nano", image_size=(64, 48), backbone=TINY)
    expected = backbone(task.normalise(images))
    torch.testing.assert_close(cache.patches(torch.arange(3)), expected.patches, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(cache.cls(torch.arange(3)), expected.cls, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache.means(torch.arange(3)), expected.patches.mean(dim=(2, 3)), atol=1e-3, rtol=1e-3)


def test_mirrored_items_have_mirrored_features_and_labels(people):
    data = NormalsDataModule(image_size=(64, 48), root=str(people), num_workers=0)
    cache = FeatureCache(Pixels(blind=False))
    plain, mirrored = (list(training_items(data, 2, cache, flip)) for flip in (False, True))
    assert [item["key"] for item in plain] == [item["key"] for item in mirrored]
    for one, other in zip(plain, mirrored):
        both = cache.patches(torch.tensor([one["row"], other["row"]]))
        pictures = F.pixel_shuffle(both, 8)
        torch.testing.assert_close(pictures[1].flip(-1), pictures[0])
        np.testing.assert_allclose(other["normals"][..., ::-1] * [[[-1]], [[1]], [[1]]], one["normals"], atol=1e-6)


def test_probes_that_see_the_same_share_their_features(people):
    cache = FeatureCache(Pixels(blind=True))
    fields, training = {"arch": "sapiens2_nano", "image_size": (64, 48)}, Training(steps=1, batch_size=2)
    for name in ("normals", "segmentation", "albedo"):
        run_probe(name, cache, fields, {"root": str(people)}, (3, 2), training)
    # Three pictures and their mirrored ones; those that are scored are among them.
    assert len(cache) == 6 and cache.asked == 24
    run_probe("pose", cache, fields, {"root": str(people)}, (3, 2), training)
    assert len(cache) == 12


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_tells_who_sees_from_who_is_blind(people, name):
    fields, training = {"arch": "sapiens2_nano", "image_size": (64, 48)}, Training(steps=60, batch_size=6)
    values = [
        run_probe(name, FeatureCache(Pixels(blind)), fields, {"root": str(people)}, (None, None), training)
        for blind in (False, True)
    ]
    seeing, blind = (value[PROBES[name].metric] for value in values)
    assert seeing > 1.2 * blind if PROBES[name].higher_is_better else seeing < 0.8 * blind


def test_class_probes_on_pictures_of_both_sets(people):
    fields = {"arch": "sapiens2_nano", "image_size": (64, 48)}
    results = run_class_probes(FeatureCache(Pixels(blind=False)), fields, {"root": str(people)}, (None, None))
    # Every held-out picture is a training picture too, so its nearest neighbour is itself.
    assert {name.split("/")[1] for name in results if name.count("/") == 2} == {"cls", "mean", "both"}
    given = [results[f"{name}/cls/knn5"] for name in ("action", "garment", "view")]
    assert results["cls/knn5"] == pytest.approx(np.mean(given))
    assert results["mean/linear"] >= results["majority"] > 0


def test_numbers_of_a_picture():
    image, alpha = np.full((20, 10, 3), 200, np.uint8), np.zeros((20, 10), np.uint8)
    image[5:15], alpha[5:15] = 0, 255
    keypoints = np.tile(np.array([2.5, 15.0], np.float32), (308, 1))
    numbers = picture_numbers({"image": image, "alpha": alpha, "keypoints": keypoints})
    np.testing.assert_allclose(numbers["keypoints"], np.tile([0.25, 0.75], 17))
    assert numbers["area"].tolist() == [0.5] and numbers["background"].tolist() == [200, 200, 200]
    full = {"image": image, "alpha": np.full_like(alpha, 255), "keypoints": keypoints}
    assert picture_numbers(full)["background"].tolist() == [100, 100, 100]


def test_explained_variance_is_that_of_held_out_values():
    rng = torch.Generator().manual_seed(0)
    features, noise = torch.randn(600, 4, generator=rng).double(), torch.randn(600, 2, generator=rng).double()
    values = features[:, :2] @ torch.tensor([[2.0, 1.0], [0.0, 1.0]]).double() + 5 + noise
    found = explained(features[:400], values[:400], features[400:], values[400:])
    # Variances 4 + 1 and 1 + 1 of which the noise is 1 each.
    assert found == pytest.approx(1 - 2 / (5 + 3), abs=0.05)
    assert abs(explained(noise[:400], features[:400], noise[400:], features[400:])) < 0.03


def test_regression_tells_who_sees_from_who_is_blind(people):
    fields = {"arch": "sapiens2_nano", "image_size": (64, 48)}
    results = run_regression_probes(FeatureCache(Pixels(blind=False)), fields, {"root": str(people)}, (None, None))
    assert set(results) == {f"{f}/{n}" for f in ("cls", "mean") for n in ("keypoints", "area", "background")}
    blind = run_regression_probes(FeatureCache(Pixels(blind=True)), fields, {"root": str(people)}, (None, None))
    assert results["mean/background"] > 50 > 10 > blind["mean/background"]


def test_the_backbone_of_a_tasks_weights(tmp_path):
    task = NormalsTask(arch="sapiens2_nano", image_size=(64, 48), backbone=TINY).eval()
    backbone, fields = load_backbone(export_task(task, tmp_path))
    assert fields == {"arch": "sapiens2_nano", "image_size": (64, 48), "backbone": TINY}
    image = torch.randn(1, 3, 64, 48)
    torch.testing.assert_close(backbone(image).patches, task.backbone(image).patches)
    assert not any(parameter.requires_grad for parameter in backbone.parameters()) and not backbone.training


# ---------------------------------------------------------------------------------------------------- the command


def test_the_command_writes_what_it_found(people, tmp_path, experiments, capsys):
    config = tmp_path / "tiny.yaml"
    model = {"class_path": "s2kit.tasks.NormalsTask", "init_args": {"image_size": [64, 48], "backbone": TINY}}
    model["init_args"]["arch"] = "sapiens2_nano"
    config.write_text(yaml.safe_dump({"model": model, "data": {"class_path": "data_modules.NormalsDataModule"}}))
    options = ["--data", str(people), "--probes", "pose", "knn", "--steps", "2", "--batch-size", "2"]
    outs = [tmp_path / f"{number}.json" for number in range(3)]
    for seed, out in zip((0, 0, 1), outs):
        args = ["probe", "--random", str(config), "--seed", str(seed), "--out", str(out), *options]
        assert main(args) == 0
    first, again, other = (json.loads(out.read_text()) for out in outs)
    assert first["probes"] == again["probes"] != other["probes"]
    assert first["arch"] == "sapiens2_nano" and first["image_size"] == [64, 48] and first["training"]["steps"] == 2
    assert set(first["probes"]) == set(first["seconds"]) == {"pose", "knn"}
    # No person is large in COCO's sense: there is no such number, and JSON has no NaN.
    assert first["probes"]["pose"]["AP_L"] is None
    assert "both/knn20, %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--random", "none.yaml"], 1, "--random none.yaml: no such config"),
        (["--weights", "none.safetensors"], 1, "none.safetensors"),
        ([], 2, "one of the arguments --weights --random is required"),
        (["--weights", "w", "--probes", "depth"], 2, "invalid choice: 'depth'"),
    ],
)
def test_mistakes_in_the_options(options, code, said, capsys):
    assert main(["probe", *options]) == code
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
