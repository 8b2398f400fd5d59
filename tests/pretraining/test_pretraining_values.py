"""Values that no curve shows at once: what is drawn, coloured, spread, sharpened and scheduled."""

import math

import numpy as np
import pytest
import ranks_run
import torch

from s2kit.pretraining import Pretraining
from s2kit.pretraining.views import crop_and_resize

#: What ``local_colours`` says of a crop that keeps its colours.
SAME = [1.0, 1, 1, 0, 0, 0, 0]


def module(**options) -> Pretraining:
    torch.manual_seed(0)
    return Pretraining(**{**ranks_run.TASK, **options})


def test_crops_have_the_areas_aspects_and_flips_that_were_asked_for_and_each_its_own():
    size, seeds = (1024, 768), range(400)  # the network input's aspect, so that almost every crop fits
    task = module(crop_scale=(0.5, 0.8), local_scale=(0.1, 0.3), crop_aspect=(0.8, 1.25), flip=0.5)
    drawn = task.multi_crop.draw([size] * len(seeds), seeds)
    boxes = torch.cat([drawn["boxes"], drawn["local_boxes"]]).double().unflatten(0, (2 + 4, -1))
    flips = torch.cat([drawn["flips"], drawn["local_flips"]]).unflatten(0, (2 + 4, -1))
    left, top, right, bottom = boxes.unbind(-1)
    assert (boxes >= 0).all() and (right <= 768.001).all() and (bottom <= 1024.001).all()
    areas = (right - left) * (bottom - top) / (1024 * 768)
    for found, (low, high) in ((areas[:2], (0.5, 0.8)), (areas[2:], (0.1, 0.3))):
        assert low - 1e-4 < found.min() < low + 0.01 and high - 0.01 < found.max() < high + 1e-4
        assert found.mean().item() == pytest.approx((low + high) / 2, abs=0.02)
    aspects = (right - left) / (bottom - top) / (768 / 1024)
    assert 0.8 - 1e-4 < aspects.min() < 0.81 and 1.24 < aspects.max() < 1.25 + 1e-4
    assert aspects.log().mean().item() == pytest.approx(0, abs=0.01)
    for i in range(6):
        assert flips[i].float().mean().item() == pytest.approx(0.5, abs=0.1)  # four standard deviations
        for j in range(i):
            assert (boxes[i] != boxes[j]).any(-1).all(), "two views of a picture are one crop"
            assert (flips[i] == flips[j]).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert len(boxes[0].unique(dim=0)) == len(seeds)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_crops_are_flipped_never_or_always(flip):
    drawn = module(flip=flip).multi_crop.draw([(64, 48)] * 20, range(20))
    assert (drawn["flips"] == bool(flip)).all() and (drawn["local_flips"] == bool(flip)).all()


def test_local_crops_change_their_colours_where_it_was_drawn_and_global_ones_never():
    task = module(colours={"jitter": 0.4, "grayscale": 0.1, "blur": 0.0, "solarise": 0.2})
    batch = task.draw_views(ranks_run.batches(1, 4)[0], training=True)
    plain = crop_and_resize(batch["image"].repeat(4, 1, 1, 1), batch["local_boxes"], batch["local_flips"], (16, 8))
    difference = (task.local_views(batch) - task.normalise(plain)).abs().amax((1, 2, 3))
    changed = (batch["local_colours"] != torch.tensor(SAME)).any(1)
    assert 3 < changed.sum() < 13
    assert (difference[changed] > 0.02).all() and (difference[~changed] < 1e-4).all()
    whole = crop_and_resize(batch["image"].repeat(2, 1, 1, 1), batch["boxes"], batch["flips"], (32, 24))
    torch.testing.assert_close(task.global_views(batch), task.normalise(whole))


def test_without_any_probability_local_crops_keep_their_colours():
    task = module(colours={"jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "solarise": 0.0})
    batch = task.draw_views(ranks_run.batches(1, 4)[0], training=True)
    assert (batch["local_colours"] == torch.tensor(SAME)).all()
    plain = crop_and_resize(batch["image"].repeat(4, 1, 1, 1), batch["local_boxes"], batch["local_flips"], (16, 8))
    torch.testing.assert_close(task.local_views(batch), task.normalise(plain), atol=1e-4, rtol=0)


def test_koleo_is_the_mean_over_global_views_of_the_distances_to_nearest_neighbours():
    task = module().eval()
    batch = task.draw_views(ranks_run.batches(1, 5)[0], training=True)
    cls = task.backbone.forward_visible(task.global_views(batch), batch["keep"]).cls.detach().double().numpy()
    by_view = []
    for unit in (cls / np.linalg.norm(cls, axis=1, keepdims=True)).reshape(2, 5, -1):
        distances = np.linalg.norm(unit[:, None] - unit, axis=-1)
        distances[np.diag_indices(5)] = np.inf
        by_view.append(-np.log(distances.min(1)).mean())
    assert abs(by_view[0] - by_view[1]) > 1e-2
    assert task.training_losses(batch)["koleo"].item() == pytest.approx(np.mean(by_view), rel=1e-4)


def test_the_teacher_softens_with_the_steps_as_far_as_is_said():
    task = module(teacher_temperature=(0.065, 0.07), temperature_steps=1000).eval()
    torch.nn.init.normal_(task.centring.centre, std=0.2)
    batch = task.draw_views(ranks_run.batches(1, 3)[0], training=True)
    views = task.global_views(batch)
    with torch.no_grad():
        logits = task.teacher["head"](task.teacher["backbone"](views).cls).view(2, 3, -1)
    centred = (logits - task.centring.centre).double().numpy()
    for step, temperature in ((0, 0.065), (500, 0.0675), (1000, 0.07), (2000, 0.07)):
        powers = np.exp(centred / temperature)
        expected = powers / powers.sum(-1, keepdims=True)
        np.testing.assert_allclose(task.teacher_probabilities(views, step), expected, rtol=1e-4, err_msg=f"{step=}")


class Length:
    """A trainer of known length."""

    fast_dev_run = False
    global_step = 0

    def __init__(self, steps: int) -> None:
        self.max_steps = steps


def test_the_optimiser_has_the_momenta_given_and_a_learning_rate_that_peaks_and_ends_as_given():
    options = {"lr": 2e-3, "final_lr": 3e-5, "warmup_steps": 4, "schedule": "cosine", "betas": (0.8, 0.97)}
    task = module(**options)
    task._trainer = Length(20)
    built = task.configure_optimizers()
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    assert isinstance(optimizer, torch.optim.AdamW) and built["lr_scheduler"]["interval"] == "step"
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.97)] * len(optimizer.param_groups)
    rates = []
    for _ in range(21):
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([2e-3 * (1e-3 + (1 - 1e-3) * step / 4) for step in range(5)])
    assert rates[4] == pytest.approx(2e-3) and max(rates) == rates[4]
    assert rates[12] == pytest.approx((2e-3 + 3e-5) / 2)
    # The cosine comes to its end when the last step is made; that step itself is 15/16 of the way.
    assert rates[19] == pytest.approx(3e-5 + (2e-3 - 3e-5) * 0.5 * (1 + math.cos(math.pi * 15 / 16)))
    assert rates[20] == pytest.approx(3e-5)


def test_a_weight_decay_that_begins_at_0_is_followed_also_by_a_run_that_goes_on(tmp_path, monkeypatch):
    seen = []
    original = Pretraining.optimizer_step

    def optimizer_step(task, epoch, batch_idx, optimizer, optimizer_closure=None):
        original(task, epoch, batch_idx, optimizer, optimizer_closure)
        seen.append({name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]})

    monkeypatch.setattr(Pretraining, "optimizer_step", optimizer_step)
    options = {"task": {"weight_decay": 0.0, "final_weight_decay": 0.4}}
    recorder = ranks_run.train(tmp_path / "whole", 4, 2, **options)
    for step, decay in enumerate((0.0, 0.1, 0.3, 0.4)):
        assert seen[step]["backbone.blocks.0.attn.wq.weight"] == pytest.approx(decay)
        assert seen[step]["decoder.pixels.weight"] == pytest.approx(decay)
        for name in ("backbone.cls_token", "backbone.blocks.0.ln1.weight", "decoder.pixels.bias"):
            assert seen[step][name] == 0, name
    start = str(tmp_path / "whole" / "step2.ckpt")
    resumed = ranks_run.train(tmp_path / "resumed", 4, 2, start_from=start, **options)
    assert seen[4:] == seen[2:4]
    for name, value in recorder.states[-1].items():
        assert torch.equal(resumed.states[-1][name], value), name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"centring": "softmx"}, "centring must be one of softmax, sinkhorn, got 'softmx'"),
        ({"export": "techer"}, "export must be one of teacher, student, got 'techer'"),
        ({"schedule": "lineer"}, "schedule must be one of linear, cosine, constant, got 'lineer'"),
        (
            {"colours": {"jiter": 0}},
            "colours has no field jiter; fields: jitter, brightness, contrast, saturation, hue,",
        ),
        ({"colours": {"blur": 1.5}}, r"colours\.blur must be from 0 to 1, got 1\.5"),
        ({"colours": {"hue": 0.6}}, r"colours\.hue must be from 0 to 0\.5, got 0\.6"),
        (
            {"colours": {"sigma": (2.0, 0.1)}},
            r"colours\.sigma must be a range with 0 < low <= high, got \(2\.0, 0\.1\)",
        ),
        ({"decoder": {"dimm": 8}}, "decoder has no field dimm; fields: dim, depth, num_heads, mlp_dim$"),
        ({"decoder": {"embed_dim": 8}}, "decoder has no field embed_dim"),
        ({"decoder": {"dimm": 8}, "reconstruction": 0.0}, "decoder has no field dimm"),
        ({"decoder": {"num_heads": 0}}, "num_heads=0"),
        (
            {"head": {"by_arch": {"sapiens2_nano": {"dim": 8}}}},
            "head has no field dim; fields: hidden_dim, bottleneck_dim",
        ),
        ({"head": {"prototypes": 0}}, "at least 1.*prototypes=0"),
        ({"views": 0}, "views=0"),
        ({"koleo": -1.0}, "must not be negative"),
        ({"koleo": math.nan}, "must not be negative"),
        ({"reconstruction": 0.0, "contrast": 0.0, "koleo": 0.0}, "nor all 0"),
        (
            {"reconstruction": 0.0, "contrast": 0.0},
            "koleo alone only spreads .* give reconstruction or contrast a weight",
        ),
        ({"views": 1, "local_views": 0}, "contrast needs two views"),
        ({"student_temperature": 0.0}, "student_temperature must be positive, got 0.0"),
        ({"teacher_temperature": (0.065, 0.0)}, "teacher_temperature must be two positive numbers"),
        ({"teacher_temperature": (0.065, math.nan)}, "teacher_temperature must be two positive numbers"),
        ({"centre_momentum": 1.1}, "centre_momentum must be from 0 to 1, got 1.1"),
        ({"teacher_momentum": -0.1}, "teacher_momentum must be from 0 to 1, got -0.1"),
        ({"final_teacher_momentum": 2}, "final_teacher_momentum must be from 0 to 1, got 2"),
        ({"flip": 50}, "flip must be from 0 to 1, got 50"),
        ({"blockwise": -0.4}, "blockwise must be from 0 to 1, got -0.4"),
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale must be a range with 0 < low <= high <= 1, got \(0.0, 1.0\)"),
        ({"crop_scale": (0.5,)}, "crop_scale must be a range"),
        ({"local_scale": (0.7, 0.2)}, "local_scale must be a range"),
        ({"local_scale": (0.2, 1.2)}, "local_scale must be a range"),
        ({"crop_aspect": (4 / 3, 3 / 4)}, "crop_aspect must be a range with 0 < low <= high, got"),
        ({"crop_aspect": (-1, 1)}, "crop_aspect must be a range"),
        ({"final_weight_decay": -0.1}, "final_weight_decay must be at least 0, got -0.1"),
    ],
)
def test_wrong_values_are_refused_when_the_task_is_built(options, said):
    with pytest.raises(ValueError, match=said):
        module(**options)


def test_the_limits_of_what_is_possible_are_possible():
    module(flip=0, blockwise=1, centre_momentum=0, teacher_momentum=1, final_teacher_momentum=1, crop_scale=(1, 1))
    module(colours={"jitter": 1, "hue": 0.5, "brightness": 0}, crop_aspect=[1, 1], contrast=0.0, reconstruction=0.1)
