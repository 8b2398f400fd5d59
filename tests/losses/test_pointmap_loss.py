"""Losses of pointmaps: the release's numbers (spec 10.2), the paper's terms, and what is never hidden."""

import math

import pytest
import torch

from s2kit.losses import PointmapLoss
from s2kit.losses.pointmap import intrinsics_loss, surface_normals

SCALES = torch.tensor([1.25, 0.8])
# The release's cx = 2.5 and cy = 3.5 are for centres at whole numbers; here they are at + 0.5.
INTRINSICS = torch.tensor([[10.0, 0.0, 3.0], [0.0, 11.0, 4.0], [0.0, 0.0, 1.0]]).expand(2, 3, 3)
DEPTH = torch.tensor([0.0, 0.0, 3.0]).view(1, 3, 1, 1)


@pytest.fixture
def points(wave) -> torch.Tensor:
    return (wave(0.37, 2, 3, 8, 6) + DEPTH).requires_grad_()


@pytest.fixture
def valid(wave) -> torch.Tensor:
    return wave(0.91, 2, 1, 8, 6) > -0.3


@pytest.fixture
def target(wave, valid) -> torch.Tensor:
    return (wave(0.53, 2, 3, 8, 6) + DEPTH) * valid


def evaluate(loss: PointmapLoss, points, target, valid, scale=None) -> dict[str, torch.Tensor]:
    scale = torch.ones(2, 1) if scale is None else scale
    return loss(points, scale, target, valid, SCALES, INTRINSICS)


def test_published_numbers(points, target, valid):
    loss = PointmapLoss(clamp=4.0)
    losses = evaluate(loss, points, target, valid)
    weighted = {name: loss.weights[name] * losses[name].item() for name in loss.weights}
    expected = {
        "l1": 1.7493099,
        "multi_scale": 0.59261465,
        "silog": 0.37464064,
        "intrinsics": 1.53612149,
        "shift_invariant": 0.87537128,
        "normal": 5.11970568,
        "scale": 0.9,
    }
    assert weighted == pytest.approx(expected, rel=1e-5)
    assert losses["loss"].item() == pytest.approx(sum(expected.values()), rel=1e-5)


def test_the_release_clamps_three_terms_and_we_do_not(points, target, valid):
    far = (points.detach() * 20).requires_grad_()
    free, clamped = (evaluate(PointmapLoss(clamp=limit), far, target, valid) for limit in (None, 4.0))
    for name, term in free.items():
        if name != "loss":
            assert term.item() == clamped[name].item()
    limited = sum(2 * free["l1"] if name == "l1" else free[name] for name in ("l1", "multi_scale", "shift_invariant"))
    assert min(2 * free["l1"], free["multi_scale"], free["shift_invariant"]) > 4
    assert (free["loss"] - clamped["loss"]).item() == pytest.approx((limited - 12).item(), rel=1e-5)


def test_the_papers_terms(points, target, valid):
    p, g = points.detach().double(), target.double()
    squares, steps = 0.0, {2: [], 3: []}
    for b, _, i, j in valid.nonzero().tolist():
        squares += float((p - g)[b, :, i, j].square().sum())
        for axis, (y, x) in {2: (i + 1, j), 3: (i, j + 1)}.items():
            if y < 8 and x < 6 and valid[b, 0, y, x]:
                steps[axis].append(float(((p - g)[b, :, y, x] - (p - g)[b, :, i, j]).square().sum()))
    losses = evaluate(PointmapLoss("paper"), points, target, valid)
    assert losses["l2"].item() == pytest.approx(squares / int(valid.sum()), rel=1e-5)
    assert losses["gradient"].item() == pytest.approx(sum(sum(s) / len(s) for s in steps.values()), rel=1e-5)
    assert losses["scale"].item() == pytest.approx((0.25**2 + 0.2**2) / 2, rel=1e-5)
    assert set(losses) == {"loss", "l2", "gradient", "scale"}


def test_points_on_their_rays_agree_with_the_intrinsics():
    depth = 1 + torch.rand(2, 8, 6, generator=torch.Generator().manual_seed(0))
    u, v = torch.arange(6) + 0.5, (torch.arange(8) + 0.5)[:, None]
    points = torch.stack([(u - 3) / 10 * depth, (v - 4) / 11 * depth, depth], dim=1)
    everywhere = torch.ones(2, 1, 8, 6, dtype=torch.bool)
    assert intrinsics_loss(points, INTRINSICS, everywhere).item() < 1e-6
    points[:, 0] += 0.25
    assert intrinsics_loss(points, INTRINSICS, everywhere).item() == pytest.approx(0.25, rel=1e-5)


def test_normals_of_a_plane():
    """Points (x right, y down, z forward) of a wall, and of one turned about the vertical axis."""
    x, y = torch.meshgrid(torch.arange(6) * 0.1, torch.arange(8) * 0.1, indexing="xy")
    flat = torch.stack([x, y, torch.full_like(x, 2)])
    turned = torch.stack([x, y, 2 + x])
    normals, defined = surface_normals(torch.stack([flat, turned]))
    assert defined.all()
    inner = normals[:, :, :-1, :-1]
    torch.testing.assert_close(inner[0], torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 7, 5))
    root = 0.5**0.5
    torch.testing.assert_close(inner[1], torch.tensor([-root, 0.0, root]).view(3, 1, 1).expand(3, 7, 5))


@pytest.mark.parametrize("form", ["release", "paper"])
class TestMasks:
    def test_perfect_prediction_is_zero_with_a_finite_gradient(self, points, target, valid, form):
        """SiLog's root has no derivative at 0."""
        perfect = torch.where(valid, target, points).detach().requires_grad_()
        terms = evaluate(PointmapLoss(form), perfect, target, valid, SCALES.view(2, 1).clone())
        for name in set(terms) - {"loss", "intrinsics", "multi_scale", "normal"}:
            assert terms[name].item() == pytest.approx(0, abs=2e-6), name
        terms["loss"].backward()
        assert perfect.grad.isfinite().all()

    @pytest.mark.parametrize("filler", [-1000.0, math.nan, math.inf])
    def test_targets_outside_the_mask_do_not_matter(self, points, target, valid, filler, form):
        expected = evaluate(PointmapLoss(form), points, target, valid)["loss"]
        filled = torch.where(valid, target, filler)
        assert evaluate(PointmapLoss(form), points, filled, valid)["loss"].item() == expected.item()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_bad_prediction_is_never_hidden(self, points, target, valid, value, form):
        for b, _, i, j in [valid.nonzero()[0].tolist(), (~valid).nonzero()[0].tolist()]:
            broken = points.detach().clone()
            broken[b, 2, i, j] = value
            assert not evaluate(PointmapLoss(form), broken, target, valid)["loss"].isfinite()
            assert not evaluate(PointmapLoss(form), broken, target, torch.zeros_like(valid))["loss"].isfinite()
        scale = torch.tensor([[1.0], [value]])
        assert not evaluate(PointmapLoss(form), points, target, valid, scale)["loss"].isfinite()

    def test_empty_mask_gives_a_zero_that_depends_on_the_prediction(self, points, target, valid, form):
        scale = torch.ones(2, 1, requires_grad=True)
        losses = evaluate(PointmapLoss(form, clamp=4.0), points, target, torch.zeros_like(valid), scale)
        assert all(value.item() == 0 for value in losses.values())
        losses["loss"].backward()
        assert torch.equal(points.grad, torch.zeros_like(points))
        assert torch.equal(scale.grad, torch.zeros_like(scale))

    def test_one_empty_image_does_not_spoil_the_other(self, points, target, valid, form):
        valid[1] = False
        loss = PointmapLoss(form)
        both = evaluate(loss, points, target, valid)
        alone = loss(points[:1], torch.ones(1, 1), target[:1], valid[:1], SCALES[:1], INTRINSICS[:1])
        for name in alone:
            assert both[name].item() == pytest.approx(alone[name].item(), rel=1e-5), name

    def test_gradients(self, points, target, valid, form):
        inputs = [points.detach().double().requires_grad_(), torch.ones(2, 1, dtype=torch.float64, requires_grad=True)]
        loss = PointmapLoss(form)
        assert torch.autograd.gradcheck(
            lambda x, s: evaluate(loss, x, target, valid, s)["loss"], inputs, eps=1e-7, atol=1e-4
        )

    def test_half_precision_is_computed_in_float32(self, points, target, valid, form):
        low = points.detach().bfloat16()
        loss = evaluate(PointmapLoss(form), low, target, valid, torch.ones(2, 1).bfloat16())["loss"]
        assert loss.dtype == torch.float32
        assert loss == evaluate(PointmapLoss(form), low.float(), target, valid)["loss"]

    def test_autocast_changes_nothing(self, points, target, valid, form):
        expected = evaluate(PointmapLoss(form), points, target, valid)["loss"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert evaluate(PointmapLoss(form), points, target, valid)["loss"] == expected


def test_negative_depths_have_a_defined_loss(points, target, valid):
    behind = points.detach().clone()
    behind[:, 2] = -1.0
    behind.requires_grad_()
    losses = evaluate(PointmapLoss(), behind, target, valid)
    assert all(value.isfinite() for value in losses.values())
    # In SiLog a depth of at most 0 counts as 1e-4.
    expected = []
    for depth, inside in zip(target[:, 2], valid[:, 0]):
        d = depth[inside].double().log() - math.log(1e-4)
        expected.append((d.square().mean() - 0.5 * d.mean() ** 2).sqrt().item())
    assert losses["silog"].item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    losses["loss"].backward()
    # Together they are pulled to the front, though the logarithm has no gradient there.
    assert behind.grad[:, 2].sum() < 0


def test_errors(points, target, valid):
    with pytest.raises(ValueError, match=r"form must be one of \['paper', 'release'\], got 'l1'"):
        PointmapLoss("l1")
    with pytest.raises(ValueError, match=r"valid \(B, 1, H, W\), got .*\(2, 8, 6\)"):
        evaluate(PointmapLoss(), points, target, valid[:, 0])
    with pytest.raises(ValueError, match=r"expected a scale \(B, 1\) and a true one \(B,\) for 2 images, got \(2,\)"):
        evaluate(PointmapLoss(), points, target, valid, torch.ones(2))
