"""Contrast, centring and KoLeo against loops in NumPy, in float64."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from s2kit.losses.contrast import SinkhornKnopp, SoftmaxCentring, contrast_loss
from s2kit.losses.koleo import koleo_loss


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize(("views", "globals_"), [(6, 2), (2, 2), (3, 1), (5, 3)])
def test_contrast_is_the_double_loop_over_pairs_of_different_views(views, globals_):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(views, 4, 7)), rng.normal(size=(globals_, 4, 7))
    probabilities = np.apply_along_axis(softmax, -1, teacher / 0.07)
    values = []
    for t in range(globals_):
        for s in range(views):
            if s == t:
                continue
            for b in range(4):
                values.append(-(probabilities[t, b] * np.log(softmax(student[s, b] / 0.1))).sum())
    assert len(values) == 4 * (globals_ * views - globals_)
    loss = contrast_loss(torch.from_numpy(student), torch.from_numpy(probabilities).float())
    assert loss.item() == pytest.approx(np.mean(values), rel=1e-5)


def test_contrast_gradient_reaches_the_student_only():
    student = torch.randn(3, 2, 5, requires_grad=True)
    teacher = torch.softmax(torch.randn(2, 2, 5), -1).requires_grad_()
    contrast_loss(student, teacher).backward()
    assert teacher.grad is None
    # d/dz of a cross-entropy is softmax - target, here summed over the pairs that a view is in.
    probabilities = torch.softmax(student.detach() / 0.1, -1)
    target = teacher.detach()
    expected = torch.stack(
        [probabilities[0] - target[1], probabilities[1] - target[0], 2 * probabilities[2] - target.sum(0)]
    )
    torch.testing.assert_close(student.grad, expected / 0.1 / (4 * 2), atol=1e-5, rtol=1e-4)


def test_gradients_in_double_precision():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 2, 5, dtype=torch.double, generator=generator, requires_grad=True)
    teacher = torch.softmax(torch.randn(2, 2, 5, generator=generator), -1)
    assert torch.autograd.gradcheck(lambda x: contrast_loss(x, teacher), [student])
    embeddings = torch.randn(5, 3, dtype=torch.double, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(koleo_loss, [embeddings])


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 0)])
def test_no_pair_is_refused(shape):
    views, globals_ = shape
    with pytest.raises(ValueError, match="no pair of different views"):
        contrast_loss(torch.zeros(views, 2, 4), torch.zeros(globals_, 2, 4))


def test_centring_takes_away_the_running_mean_of_earlier_steps():
    rng = np.random.default_rng(1)
    centring, centre = SoftmaxCentring(5, momentum=0.9), np.zeros(5)
    for _ in range(4):
        logits = rng.normal(size=(2, 3, 5))
        found = centring(torch.from_numpy(logits), 0.07).numpy()
        np.testing.assert_allclose(
            found, np.apply_along_axis(softmax, -1, (logits - centre) / 0.07), rtol=2e-4, atol=1e-6
        )
        centre = 0.9 * centre + 0.1 * logits.reshape(-1, 5).mean(0)
    np.testing.assert_allclose(centring.centre[0].numpy(), centre, rtol=1e-5)
    centring.eval()(torch.ones(2, 5), 0.07)
    np.testing.assert_allclose(centring.centre[0].numpy(), centre, rtol=1e-5)


def test_sinkhorn_is_the_loop_over_rows_and_columns():
    logits = np.random.default_rng(2).normal(size=(6, 4))
    q = np.exp(logits / 0.5)
    for _ in range(3):
        q = q / q.sum(0, keepdims=True) * 6 / 4
        q = q / q.sum(1, keepdims=True)
    found = SinkhornKnopp(3)(torch.from_numpy(logits).reshape(2, 3, 4), 0.5)
    assert found.shape == (2, 3, 4)
    np.testing.assert_allclose(found.reshape(6, 4).numpy(), q, rtol=1e-5)
    even = SinkhornKnopp(50)(torch.from_numpy(logits), 0.5)
    np.testing.assert_allclose(even.sum(0).numpy(), 6 / 4, rtol=1e-3)


def test_koleo_is_the_loop_over_nearest_neighbours():
    x = np.random.default_rng(3).normal(size=(6, 5))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    nearest = [min(np.linalg.norm(unit[i] - unit[j]) for j in range(6) if j != i) for i in range(6)]
    loss = koleo_loss(torch.from_numpy(x))
    assert loss.item() == pytest.approx(-np.mean(np.log(np.array(nearest) + 1e-8)), rel=1e-5)


def test_koleo_of_one_sample_and_of_equal_ones_is_finite_with_a_finite_gradient():
    for x in (torch.randn(1, 5), torch.ones(3, 5), torch.zeros(2, 5)):
        x.requires_grad_()
        loss = koleo_loss(x)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(x.grad).all()
    assert koleo_loss(torch.randn(1, 5)) == 0


PROCESS = """
import json, sys
import torch, torch.distributed as dist
from s2kit.losses.contrast import SinkhornKnopp, SoftmaxCentring
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
part = torch.randn(2, 6, 4)[:, 3 * rank : 3 * rank + 3]
centring = SoftmaxCentring(4)
found = [centring(part, 0.07), centring(part * 2, 0.07), SinkhornKnopp()(part, 0.5), centring.centre]
print(json.dumps([value.tolist() for value in found]))
dist.destroy_process_group()
"""


def test_two_ranks_give_what_one_gives_on_all_samples(tmp_path):
    command = [sys.executable, "-c", PROCESS]
    options = {"stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[2]}
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")], **options) for rank in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 4)
    centring = SoftmaxCentring(4)
    expected = [centring(logits, 0.07), centring(logits * 2, 0.07), SinkhornKnopp()(logits, 0.5)]
    for rank, output in enumerate(outputs):
        *found, centre = (torch.tensor(value) for value in json.loads(output.splitlines()[-1]))
        for value, whole in zip(found, expected):
            torch.testing.assert_close(value, whole[:, 3 * rank : 3 * rank + 3], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(centre, centring.centre, atol=1e-6, rtol=1e-5)
