"""Vision transformers of timm as backbones: the same outputs as ours, in every task, trained by the same rules."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

from s2kit.models import create_backbone, create_head
from s2kit.models.heads import HEADS
from s2kit.optim import layer_multiplier, parameter_groups

TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2}
# Name, its own patch, tokens beside class and patches, whether it has a class token.
MODELS = [
    ("vit_tiny_patch16_224", 16, 0, True),
    ("vit_small_patch14_dinov2", 14, 0, True),
    ("vit_small_patch14_reg4_dinov2", 14, 4, True),
    ("vit_small_patch16_dinov3", 16, 4, True),
    ("eva02_tiny_patch14_224", 14, 0, True),
    ("vit_base_patch8_224", 8, 0, True),
    ("vit_base_patch32_224", 32, 0, True),
    ("vit_base_patch16_siglip_224", 16, 0, False),
    ("vit_medium_patch16_gap_240", 16, 0, False),
]
NAMES = [name for name, *_ in MODELS if timm.is_model(name)]


def tiny(name: str = "vit_small_patch14_dinov2", image_size: tuple[int, int] = (64, 48), **options):
    torch.manual_seed(0)
    return create_backbone(f"timm/{name}", image_size, **{**TINY, **options}).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "patch", "registers", "has_class"), [row for row in MODELS if row[0] in NAMES])
def test_outputs_have_the_form_of_ours(name, patch, registers, has_class, images):
    model = tiny(name)
    assert (model.config.embed_dim, model.config.depth, model.config.patch_size) == (32, 3, patch)
    assert model.config.arch == f"timm/{name}"
    assert model.num_prefix == registers + has_class
    output = model(images)
    assert output.cls.shape == (2, 32)
    assert output.registers.shape == (2, registers, 32)
    assert output.patches.shape == (2, 32, 4, 3)
    tokens = model.forward_tokens(images)
    assert torch.equal(output.patches.flatten(2).transpose(1, 2), tokens[:, model.num_prefix :])
    assert torch.equal(output.cls, tokens[:, 0] if has_class else output.patches.mean(dim=(2, 3)))
    last, first = model.intermediate(images, [-1, 0])
    torch.testing.assert_close(last, output.patches)
    assert first.shape == last.shape
    assert model(torch.randn(1, 3, 32, 80)).patches.shape == (1, 32, 2, 5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_base_patch8_224"])
def test_each_token_sees_its_own_sixteen_pixels(name, images):
    """Before attention mixes anything, a change inside one 16 x 16 square changes that token alone."""
    model = tiny(name, depth=1)
    changed = images.clone()
    changed[:, :, 36:44, 20:28] += 5  # inside row 2, column 1; the resize reaches a pixel or two
    embed = model.model.patch_embed

    def embedded(x):
        resized, *_ = model._resize(x)
        return embed(resized).flatten(1, -2)

    different = (embedded(images) - embedded(changed)).abs().amax(dim=(0, 2)) > 1e-5
    assert different.nonzero().flatten().tolist() == [2 * 3 + 1]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_trains(name, images):
    model = tiny(name).train()
    output = model(images)
    (output.patches.square().sum() + output.cls.square().sum()).backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("name", [n for n in NAMES if "dinov" in n or "tiny" in n])
def test_layer_decay_follows_the_depth(name):
    model = torch.nn.ModuleDict({"backbone": tiny(name), "decode_head": torch.nn.Linear(2, 2)})
    found = {}
    for group in parameter_groups(model.named_parameters(), 1.0, 0.1, 0.5, model["backbone"].config.depth):
        found |= dict.fromkeys(group["names"], group["lr"])
    assert len(found) == len(list(model.parameters()))
    for key, lr in found.items():
        inner = key.removeprefix("backbone.model.")
        if inner.startswith("blocks."):
            assert lr == 0.5 ** (3 - int(inner.split(".")[1])), key
        elif inner.startswith(("patch_embed", "cls_token", "reg_token", "pos_embed")):
            assert lr == 0.5**4, key
        else:
            assert lr == 1.0, key
    assert layer_multiplier("backbone.model.blocks.11.norm1.weight", 12, 0.5) == 0.5


def test_frozen_stages_stay_frozen_after_train(images):
    model = tiny(frozen_stages=2, drop_path=0.5)
    torch.nn.ModuleList([model]).train()
    assert [block.training for block in model.model.blocks] == [False, False, True]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(name.startswith(("model.blocks.2.", "model.norm.")) for name in trained)
    model(images).patches.sum().backward()
    assert model.model.cls_token.grad is None
    assert model.model.blocks[2].attn.qkv.weight.grad is not None


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_checkpointing_changes_no_gradient(name, images):
    if name not in NAMES:
        pytest.skip(f"timm {timm.__version__} has no {name}")
    gradients, calls = [], []
    for mode in ("none", "full"):
        model = tiny(name, checkpointing=mode).train()
        model.model.blocks[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        model(images).patches.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert len(calls) == 1 + 2
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_drop_path_reaches_the_blocks():
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in tiny(drop_path=0.2).model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_compiled_blocks_agree_and_survive_copies(images, monkeypatch):
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: real(self, backend="eager", **options))
    expected = tiny()(images).patches
    model = tiny(compile=True)
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert each.model.blocks[0]._compiled_call_impl is not None
        torch.testing.assert_close(each(images).patches, expected)


def test_weights_come_from_timms_own_files(images, tmp_path):
    """With positions of another grid, as a published file has."""
    torch.manual_seed(3)
    options = {**TINY, "num_classes": 0}
    source = timm.create_model("vit_small_patch14_dinov2", img_size=(70, 70), dynamic_img_size=True, **options).eval()
    path = tmp_path / "dinov2.safetensors"
    save_file(source.state_dict(), path)
    given = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    model = tiny(image_size=(80, 80), **given)
    small = torch.randn(1, 3, 80, 80)
    resized = torch.nn.functional.interpolate(small, (70, 70), mode="bilinear", antialias=True)
    torch.testing.assert_close(model.forward_tokens(small), source.forward_features(resized))
    assert tiny(image_size=(64, 48), **given)(images).patches.shape == (2, 32, 4, 3)


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise FileNotFoundError("cannot find the requested files. Please check your connection")

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **o: refuse() if o.get("pretrained") else real(*a, **o))
    with pytest.raises(RuntimeError, match=r"weights of vit_small_patch14_dinov2 .*give a file.*\{file: PATH\}"):
        tiny(pretrained=True)


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("channels", [32, 384])
def test_every_task_has_a_head_for_it(task, channels):
    options = {"image_size": (1024, 768)} if task == "pointmap" else {}
    with torch.device("meta"):
        head = create_head(task, "timm/vit_small_patch14_dinov2", channels, **options)
        like = create_head(task, "sapiens2_nano" if channels == 32 else "sapiens2_0.4b", channels, **options)
    assert {k: v.shape for k, v in head.state_dict().items()} == {k: v.shape for k, v in like.state_dict().items()}
    with pytest.raises(ValueError, match="needs in_channels"):
        create_head(task, "timm/vit_small_patch14_dinov2")


def test_a_task_is_rebuilt_from_its_checkpoint_without_the_file_it_started_from(tmp_path):
    from lightning import Trainer

    from s2kit.tasks import NormalsTask

    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(tiny().model.state_dict(), path)
    options = {**TINY, "pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}, "drop_path": 0.1}
    head = {"upsample_channels": (8, 8, 8, 8), "conv_channels": (8,)}
    task = NormalsTask(arch="timm/vit_small_patch14_dinov2", image_size=(64, 48), backbone=options, head=head)
    assert torch.equal(task.backbone.model.cls_token, tiny().model.cls_token)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    path.unlink()
    again = NormalsTask.load_from_checkpoint(tmp_path / "run.ckpt", map_location="cpu")
    assert again.hparams.backbone == {**TINY, "drop_path": 0.1}
    for (name, a), b in zip(task.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_task_trains_and_predicts_with_it():
    import numpy as np
    from lightning import Trainer
    from torch.utils.data import DataLoader

    from data_modules.collate import collate_training
    from s2kit.tasks import NormalsTask

    torch.manual_seed(0)
    task = NormalsTask(
        arch="timm/vit_small_patch14_reg4_dinov2",
        image_size=(64, 48),
        backbone={**TINY, "drop_path": 0.1, "frozen_stages": 1},
        head={"upsample_channels": (8, 8, 8, 8), "conv_channels": (8,)},
        layer_decay=0.5,
        warmup_steps=0,
        lr=1e-2,
    )
    normals = np.zeros((3, 64, 48), np.float32)
    normals[2] = 1
    image = np.random.default_rng(0).integers(0, 255, (3, 64, 48), np.uint8)
    item = {"key": "a", "image": image, "normals": normals, "valid": normals[2:] != 0}
    before = {name: value.clone() for name, value in task.state_dict().items()}
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(task, DataLoader([item] * 4, batch_size=2, collate_fn=collate_training))
    moved = {name for name, value in task.state_dict().items() if not torch.equal(value, before[name])}
    assert "backbone.model.blocks.2.attn.qkv.weight" in moved
    assert not any(name.startswith(("backbone.model.blocks.0.", "backbone.model.patch_embed")) for name in moved)
    prediction = task.predict(image.transpose(1, 2, 0)[:50, :30].copy())[0]
    assert prediction.shape == (50, 30, 3)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vit_tiny_patch16_225", {}, ["has no model 'vit_tiny_patch16_225'", "vit_tiny_patch16_224"]),
        ("resnet18", {}, ["timm/resnet18 is no plain vision transformer", "timm.list_models"]),
        ("swin_tiny_patch4_window7_224", {}, ["no plain vision transformer"]),
        ("vit_tiny_patch16_224", {"mlp_dim": 3}, ["cannot build vit_tiny_patch16_224", "mlp_dim"]),
        ("vit_tiny_patch16_224", {"checkpointing": "selective"}, ["none or full", "'selective'"]),
        ("vit_tiny_patch16_224", {"frozen_stages": 13}, ["from 0 to depth = 12, got 13"]),
        ("vit_tiny_patch16_224", {"drop_path": 1.5}, ["drop_path must be in [0, 1), got 1.5"]),
        ("vit_tiny_patch16_224", {"image_size": (60, 48)}, ["multiples of 16, got 60 x 48 (nearest: 64 x 48)"]),
    ],
)
def test_mistakes_are_named(name, options, words):
    with pytest.raises(ValueError) as error:
        create_backbone(f"timm/{name}", **{"image_size": (64, 48), **options})
    assert all(word in str(error.value) for word in words), error.value


def test_wrong_images_are_refused(images):
    model = tiny()
    with pytest.raises(ValueError, match="multiples of 16, got 64 x 50"):
        model(torch.zeros(1, 3, 64, 50))
    with pytest.raises(ValueError, match=r"float images .* got torch.uint8"):
        model(torch.zeros(1, 3, 64, 48, dtype=torch.uint8))
    with pytest.raises(IndexError, match=r"from -3 to 2, got \[3\]"):
        model.intermediate(images, [3])
    fixed = create_backbone("timm/beit_base_patch16_224", (64, 48), **TINY)
    assert fixed(images).patches.shape == (2, 32, 4, 3)
    with pytest.raises(ValueError, match=r"images of one size, \(64, 48\), got \(64, 64\)"):
        fixed(torch.zeros(1, 3, 64, 64))
