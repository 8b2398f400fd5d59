"""The reconstruction objective: what is computed from what, and that it learns."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_modules.collate import collate_training
from data_modules.transforms import PretrainTransform
from s2kit.cli import main
from s2kit.models.mae_decoder import MAEDecoder
from s2kit.pretraining import Pretraining
from s2kit.tasks import NormalsTask

BACKBONE = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2, "mlp_dim": 64}
DECODER = {"dim": 24, "depth": 1, "num_heads": 2}
HEAD = {"hidden_dim": 24, "bottleneck_dim": 12, "prototypes": 20}
JOINT = {"contrast": 0.4, "koleo": 0.04}


def module(**options) -> Pretraining:
    torch.manual_seed(0)
    sizes = {"arch": "sapiens2_nano", "image_size": (32, 24), "backbone": BACKBONE, "decoder": DECODER, "head": HEAD}
    options = {**sizes, "contrast": 0.0, "koleo": 0.0, **options}
    return Pretraining(**options)


def batch_of(count: int, canvas=(40, 32)) -> dict:
    transform = PretrainTransform(canvas)
    items = []
    for number in range(count):
        rng = np.random.default_rng([7, number])
        height, width = 36 + 4 * (number % 2), 32 - 4 * (number % 2)
        # Smooth pictures: noise cannot be filled in.
        y, x = np.mgrid[:height, :width] / 10
        phase = rng.uniform(0, 6, (3, 2))
        image = np.stack([127 + 120 * np.sin(x + a) * np.cos(y + b) for a, b in phase], -1).astype(np.uint8)
        items.append(transform({"key": f"p{number}", "image": image}, rng))
    return collate_training(items)


def test_views_are_cut_from_the_picture_without_a_change_of_colour():
    task, batch = module(), batch_of(4)
    drawn = task.draw_views(batch, training=True)
    assert drawn["boxes"].shape == (8, 4) and drawn["keep"].shape == (8, 3) and drawn["masked"].shape == (8, 12)
    assert (drawn["masked"].sum(1) == 9).all()
    sizes = batch["size"].repeat(2, 1)
    assert (drawn["boxes"][:, :2] >= 0).all()
    assert (drawn["boxes"][:, 2] <= sizes[:, 1] + 1e-3).all() and (drawn["boxes"][:, 3] <= sizes[:, 0] + 1e-3).all()
    views = task.global_views(drawn) * task.pixel_std + task.pixel_mean
    for index, view in enumerate(views):
        left, top, right, bottom = drawn["boxes"][index].tolist()
        view = view.flip(-1) if drawn["flips"][index] else view
        row, column = 13, 17
        x, y = left + (column + 0.5) * (right - left) / 24 - 0.5, top + (row + 0.5) * (bottom - top) / 32 - 0.5
        picture = batch["image"][index % 4].double()
        x0, y0 = int(np.floor(x)), int(np.floor(y))
        corners = picture[:, y0 : y0 + 2, x0 : x0 + 2]
        weights = torch.tensor([[1 - (y - y0)], [y - y0]]) * torch.tensor([[1 - (x - x0), x - x0]])
        torch.testing.assert_close(view[:, row, column], (corners * weights).sum((1, 2)).float(), atol=0.02, rtol=0)


def test_crops_and_masks_follow_from_the_samples_number_alone():
    task = module()
    whole = task.draw_views(batch_of(4), training=True)
    part = task.draw_views({**batch_of(4), **{name: batch_of(4)[name][2:] for name in ("size", "seed")}}, training=True)
    for view in range(2):
        for name in ("boxes", "flips", "masked", "keep"):
            assert torch.equal(whole[name][4 * view + 2 : 4 * view + 4], part[name][2 * view : 2 * view + 2]), name
    evaluated = task.draw_views(batch_of(4), training=False)["centre"]
    assert len(evaluated["boxes"]) == 4 and not evaluated["flips"].any()


def test_hidden_pixels_reach_the_target_only():
    task = module().eval()
    drawn = task.draw_views(batch_of(2), training=True)
    views = task.global_views(drawn)
    expected = task(views, drawn["keep"])
    hidden = drawn["masked"].reshape(-1, 1, 4, 3).repeat_interleave(8, 2).repeat_interleave(8, 3)
    torch.testing.assert_close(task(torch.where(hidden, torch.randn_like(views), views), drawn["keep"]), expected)
    changed = task(torch.where(hidden, views, views + 1), drawn["keep"])
    assert (changed - expected).abs().max() > 1e-3


def test_loss_is_that_of_a_loop_over_views_and_patches():
    task = module().eval()
    drawn = task.draw_views(batch_of(2), training=True)
    views = task.global_views(drawn)
    prediction = task(views, drawn["keep"]).detach().double().numpy()
    errors = []
    for v in range(4):
        for p in np.flatnonzero(drawn["masked"][v].numpy()):
            row, column = divmod(int(p), 3)
            pixels = views[v, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            patch = pixels.permute(1, 2, 0).double().numpy().ravel()
            target = (patch - patch.mean()) / np.sqrt(patch.var() + 1e-6)
            errors.append(((prediction[v, p] - target) ** 2).mean())
    assert task.training_losses(drawn)["loss"].item() == pytest.approx(np.mean(errors), rel=1e-5)


def test_decoder_puts_visible_tokens_at_their_places():
    torch.manual_seed(0)
    decoder = MAEDecoder(16, 4, dim=24, depth=2, num_heads=2).eval()
    cls, visible = torch.randn(1, 16), torch.randn(1, 3, 16)
    keep = torch.tensor([[7, 0, 4]])
    output = decoder(cls, visible, keep, (3, 4))
    assert output.shape == (1, 12, 48)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(decoder(cls, visible[:, order], keep[:, order], (3, 4)), output)
    assert (decoder(cls, visible, torch.tensor([[6, 0, 4]]), (3, 4)) - output).abs().max() > 1e-4


def test_every_parameter_but_none_of_the_frozen_gets_a_gradient():
    task = module()
    task.training_losses(task.draw_views(batch_of(2), training=True))["loss"].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in task.parameters())


def test_eight_pictures_are_learned_by_heart():
    task = module(backbone={**BACKBONE, "embed_dim": 64, "mlp_dim": 128, "layer_scale_init": 1.0}, views=1)
    drawn = task.draw_views(batch_of(8), training=True)
    optimizer = torch.optim.AdamW(task.parameters(), lr=6e-3, betas=(0.9, 0.95))
    first = None
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 6e-3 * min(1, (step + 1) / 20) * (0.5 * (1 + np.cos(np.pi * step / 400)))
        loss = task.training_losses(drawn)["loss"]
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 5.0)
        optimizer.step()
    assert loss.item() < first / 10


def test_with_the_window_tokenizer_half_the_resolution_is_the_target():
    task = module(
        image_size=(64, 64), backbone={**BACKBONE, "patch_size": 4, "window_tokenizer_depth": 1, "window_size": 4}
    )
    drawn = task.draw_views(batch_of(2, canvas=(64, 64)), training=True)
    assert task.grid == (4, 4) and task.patch_pixels == 8
    assert task(task.global_views(drawn), drawn["keep"]).shape == (4, 16, 8 * 8 * 3)
    assert task.training_losses(drawn)["loss"].item() > 0


def test_the_joint_loss_is_the_sum_of_its_terms_on_one_pass_of_the_student():
    task = module(**JOINT).eval()
    drawn = task.draw_views(batch_of(3), training=True)
    assert drawn["local_boxes"].shape == (12, 4) and drawn["local_colours"].shape == (12, 7)
    losses = task.training_losses(drawn)
    expected = losses["reconstruction"] + 0.4 * losses["contrast"] + 0.04 * losses["koleo"]
    torch.testing.assert_close(losses["loss"], expected)
    views, locals_ = task.global_views(drawn), task.local_views(drawn)
    assert locals_.shape == (12, 3, 16, 8)
    seen = task.backbone.forward_visible(views, drawn["keep"]).cls
    student = [*task.head(seen).split(3), *task.head(task.backbone(locals_).cls).split(3)]
    teacher = [torch.softmax(x / 0.065, -1) for x in task.teacher["head"](task.teacher["backbone"](views).cls).split(3)]
    pairs = [
        -(t * torch.log_softmax(s / 0.1, -1)).sum(-1).mean()
        for i, t in enumerate(teacher)
        for j, s in enumerate(student)
        if i != j
    ]
    assert len(pairs) == 2 + 2 * 4
    torch.testing.assert_close(losses["contrast"], torch.stack(pairs).mean())
    alone = module(**{**JOINT, "reconstruction": 0.0})
    assert set(alone.training_losses(drawn)) == {"loss", "contrast", "koleo"} | {
        f"collapse/{name}"
        for name in ("mean_entropy", "sample_entropy", "information", "effective_rank", "feature_deviation")
    }


def test_gradients_reach_the_student_and_never_the_teacher_which_follows_by_its_momentum():
    task = module(**JOINT, teacher_momentum=0.75).train()
    assert not task.teacher.training
    before = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    task.training_losses(task.draw_views(batch_of(3), training=True))["loss"].backward()
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    for part in (task.backbone, task.decoder, task.head):
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    assert not any("teacher" in name for name, parameter in task.named_parameters() if parameter.requires_grad)
    with torch.no_grad():
        for parameter in task.backbone.parameters():
            parameter.add_(1)
    task.trainer = None
    from s2kit.pretraining.teacher import update_teacher

    update_teacher(task.teacher["backbone"], task.backbone, task.hparams.teacher_momentum)
    name = "backbone.blocks.0.attn.wq.weight"
    torch.testing.assert_close(task.teacher.state_dict()[name], before[name] + 0.25)


def test_local_colours_change_and_identity_changes_nothing():
    from s2kit.pretraining.colours import ColourChanges, change_colours

    torch.manual_seed(0)
    images = torch.rand(4, 3, 8, 6)
    never = ColourChanges(jitter=0, grayscale=0, blur=0, solarise=0)
    same = torch.from_numpy(np.stack([never.draw(np.random.default_rng(i)) for i in range(4)]))
    torch.testing.assert_close(change_colours(images, same), images, atol=1e-5, rtol=0)
    gray = torch.tensor([[1.0, 1, 1, 0, 1, 0, 0]] * 4)
    found = change_colours(images, gray)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    torch.testing.assert_close(found, (images * weights).sum(1, keepdim=True).expand(-1, 3, -1, -1), atol=1e-4, rtol=0)
    solarised = change_colours(images, torch.tensor([[1.0, 1, 1, 0, 0, 0, 1]] * 4))
    torch.testing.assert_close(solarised, torch.where(images >= 0.5, 1 - images, images), atol=1e-5, rtol=0)
    darker = change_colours(images, torch.tensor([[0.5, 1, 1, 0, 0, 0, 0]] * 4))
    torch.testing.assert_close(darker, images / 2, atol=1e-5, rtol=0)
    blurred = change_colours(images, torch.tensor([[1.0, 1, 1, 0, 0, 1.5, 0]] * 4))
    assert blurred.std() < 0.7 * images.std()
    assert blurred.mean().item() == pytest.approx(images.mean().item(), abs=0.03)
    # What happens to one image does not depend on the others of its batch.
    drawn = torch.from_numpy(np.stack([ColourChanges().draw(np.random.default_rng(i)) for i in range(4)]))
    torch.testing.assert_close(change_colours(images, drawn)[2:3], change_colours(images[2:3], drawn[2:3]))


def test_meters_tell_a_collapse():
    from s2kit.pretraining.meters import collapse_meters

    one = torch.zeros(8, 10)
    one[:, 3] = 1
    meters = collapse_meters(one, torch.ones(8, 5))
    assert meters["mean_entropy"] == 0 and meters["sample_entropy"] == 0
    assert meters["feature_deviation"] < 1e-6
    spread = collapse_meters(torch.eye(10), torch.eye(10))
    assert spread["mean_entropy"].item() == pytest.approx(1) and spread["sample_entropy"] == 0
    assert spread["effective_rank"].item() == pytest.approx(9, rel=1e-3)
    line = torch.outer(torch.tensor([-1.0, 1.0, -1.0, 1.0]), torch.arange(1.0, 4))
    assert collapse_meters(torch.full((4, 10), 0.1), line)["effective_rank"].item() == pytest.approx(1, abs=1e-3)
    assert collapse_meters(torch.full((4, 10), 0.1), line)["sample_entropy"].item() == pytest.approx(1)


def test_no_decay_of_tokens_norms_and_biases():
    task = module()
    decayed = {name for name, parameter in task.named_parameters() if task.decays(name, parameter)}
    assert "backbone.blocks.0.attn.wq.weight" in decayed and "decoder.pixels.weight" in decayed
    assert not any(name.endswith(("_token", "_tokens", ".bias")) or ".ln" in name for name in decayed)


def test_other_backbones_are_refused():
    with pytest.raises(ValueError, match="only Sapiens2 backbones can leave patches out"):
        Pretraining(arch="timm/vit_tiny_patch16_224", image_size=(64, 48))


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_normals, experiments):
    """A run of the shipped config on a few tiny pictures."""
    folder = tmp_path_factory.mktemp("pretraining")
    config = str(experiments / "pretrain.yaml")
    tiny = [option for option in tiny_normals if not option.startswith("--model")]
    options = ["--model.image_size=[32, 24]", "--model.warmup_steps=1", f"--run.folder={folder}"]
    assert main(["fit", "--config", config, *tiny, *options]) == 0
    return folder / "pretrain" / "version_0"


def test_the_command_line_leaves_panels_scores_and_a_backbone_that_tasks_take(run):
    assert list((run / "panels").glob("test_step*.png"))
    description = json.loads((run / "model.json").read_text())
    metrics = description["metrics"]
    assert 0 < metrics["test/reconstruction"] < 10
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["probe/knn_view"]]
    assert len(rows) == 2 and all(0 <= float(row["probe/linear_action"]) <= 100 for row in rows)
    assert metrics["test/baseline_reconstruction"] == pytest.approx(1, abs=0.05)
    state = load_file(run / "weights.safetensors")
    checkpoint = torch.load(next((run / "checkpoints").glob("step*.ckpt")), weights_only=True)["state_dict"]
    for name, value in state.items():
        assert torch.equal(value, checkpoint[f"teacher.backbone.{name}"]), name
    backbone = {"by_arch": {"sapiens2_nano": {**BACKBONE, "embed_dim": 128, "depth": 4, "mlp_dim": 384}}}
    head = {"upsample_channels": [32, 16, 16], "conv_channels": [8]}
    options = {"arch": "sapiens2_nano", "image_size": (64, 48), "backbone": backbone, "head": head}
    task = NormalsTask(**options, weights=str(run / "weights.safetensors"))
    for name, value in task.backbone.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert task.weights_from is None  # trained here, from nothing


def test_a_pretraining_goes_on_and_is_validated_from_its_checkpoint(run, tiny_normals, experiments, capsys):
    tiny = [option for option in tiny_normals if not option.startswith("--model")]
    options = ["--config", str(experiments / "pretrain.yaml"), *tiny, "--model.image_size=[32, 24]"]
    options += ["--model.warmup_steps=1", f"--run.folder={run.parent.parent}"]
    assert main(["validate", *options, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]) == 0
    again = ["--run.version=version_0", "--ckpt_path=last", "--trainer.max_steps=4"]
    assert main(["fit", *options, *again]) == 0
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert (
        checkpoint["NormalsDataModule" if "NormalsDataModule" in checkpoint else "PretrainingDataModule"]["loader"][
            "samples_seen"
        ]
        == 8
    )


def test_predict_fills_in_hidden_patches_of_pictures(run, tiny_normals, experiments, picture_folder, tmp_path):
    tiny = [option for option in tiny_normals if not option.startswith("--model")]
    options = ["--config", str(experiments / "pretrain.yaml"), *tiny, "--model.image_size=[32, 24]"]
    options += [f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", f"--data.predict_path={picture_folder}"]
    assert main(["predict", *options, f"--predictions.folder={tmp_path}"]) == 1  # one of the pictures is broken
    arrays = [np.load(path) for path in tmp_path.glob("*.npy")]
    assert arrays and all(array.shape == (32, 24, 3) and array.dtype == np.uint8 for array in arrays)
    assert len(list(tmp_path.glob("*.png"))) == len(arrays)
