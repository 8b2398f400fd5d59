"""The reconstruction loss against NumPy in float64, patch by patch."""

import numpy as np
import pytest
import torch

from s2kit.losses.reconstruction import normalised_patches, patchify, reconstruction_loss, unpatchify


def test_patches_are_rows_of_pixels_and_come_back():
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).float()
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    # The second patch of the first row: rows 0 and 1, columns 2 and 3, colours innermost.
    assert patches[0, 1].tolist() == [images[0, c, y, x].item() for y in (0, 1) for x in (2, 3) for c in range(3)]
    assert torch.equal(unpatchify(patches, (2, 3), 2), images)


def test_loss_equals_a_loop_over_patches():
    rng = np.random.default_rng(0)
    images, prediction = rng.normal(size=(2, 3, 8, 12)), rng.normal(size=(2, 6, 48))
    masked = np.array([[1, 0, 1, 1, 0, 0], [0, 0, 1, 0, 1, 1]], bool)
    errors = []
    for n in range(2):
        for p in range(6):
            row, column = divmod(p, 3)
            patch = images[n, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].transpose(1, 2, 0).ravel()
            target = (patch - patch.mean()) / np.sqrt(((patch - patch.mean()) ** 2).mean() + 1e-6)
            if masked[n, p]:
                errors.append(((prediction[n, p] - target) ** 2).mean())
    target, mean, deviation = normalised_patches(torch.from_numpy(images), 4)
    loss = reconstruction_loss(torch.from_numpy(prediction), target, torch.from_numpy(masked))
    assert loss.item() == pytest.approx(np.mean(errors), rel=1e-5)
    torch.testing.assert_close(target * deviation + mean, patchify(torch.from_numpy(images).float(), 4))


def test_what_is_seen_does_not_count_and_nothing_masked_is_zero_with_a_gradient():
    target = torch.randn(1, 4, 12)
    prediction = target.clone()
    prediction[:, 0] += 5
    masked = torch.tensor([[False, True, True, True]])
    assert reconstruction_loss(prediction, target, masked) == 0
    prediction.requires_grad_()
    nothing = reconstruction_loss(prediction, target, torch.zeros(1, 4, dtype=torch.bool))
    nothing.backward()
    assert nothing == 0 and (prediction.grad == 0).all()


def test_gradient():
    torch.manual_seed(0)
    target, masked = torch.randn(2, 3, 5, dtype=torch.double), torch.tensor([[1, 0, 1], [1, 1, 0]]).bool()
    prediction = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True)
    expected = 2 * (prediction.detach() - target) * masked[..., None] / (5 * 4)
    reconstruction_loss(prediction, target, masked).backward()
    torch.testing.assert_close(prediction.grad, expected)
    assert torch.autograd.gradcheck(lambda x: reconstruction_loss(x, target, masked), [prediction])


def test_a_flat_patch_is_not_blown_up_to_noise():
    target, _, _ = normalised_patches(torch.full((1, 3, 4, 4), 0.3), 4)
    assert target.abs().max() < 1e-3
