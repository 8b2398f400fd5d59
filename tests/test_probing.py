"""Probes on features: nearest neighbours and the linear classifier against plain NumPy."""

import numpy as np
import pytest
import torch

from s2kit.probing.knn import knn_accuracy, knn_predict, majority_accuracy
from s2kit.probing.labels import number_classes, picture_classes
from s2kit.probing.linear import STRENGTHS, fit_ridge, linear_probe


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
    chosen, fixed = fit_ridge(train, labels), fit_ridge(train, labels, [best])
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
