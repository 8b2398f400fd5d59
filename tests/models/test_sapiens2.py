"""What the backbone does beside the published numbers: config, outputs, masking, freezing, checkpointing."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from s2kit.models import Sapiens2, backbone_config, create_backbone, list_backbones

TINY = {"embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_dim": 24}


def tiny(image_size: tuple[int, int] = (32, 48), **overrides) -> Sapiens2:
    torch.manual_seed(0)
    return create_backbone("sapiens2_nano", image_size, **{**TINY, **overrides}).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def test_unknown_names_list_the_right_ones():
    with pytest.raises(ValueError, match=r"unknown backbone '0.4b' \(did you mean sapiens2_0.4b\?\)"):
        create_backbone("0.4b")
    with pytest.raises(ValueError, match=r"unknown backbone 'sapiens2_2b'.*did you mean sapiens2_\d"):
        create_backbone("sapiens2_2b")
    with pytest.raises(ValueError, match=r"unknown field mlp_ratio for sapiens2_1b; fields: .*mlp_dim"):
        create_backbone("sapiens2_1b", mlp_ratio=4)
    assert list_backbones()[0] == "sapiens2_0.1b"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"embed_dim": 18}, "multiple of 4 x num_heads = 8, got 18"),
        ({"num_kv_heads": 3, "full_attention_ends": 0}, "num_kv_heads must divide num_heads = 2, got 3"),
        ({"rope_dtype": "bf16"}, r"rope_dtype must be one of \['bfloat16', 'float32'\], got 'bf16'"),
        ({"checkpointing": True}, "checkpointing must be one of"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"frozen_stages": 4}, "frozen_stages must be from 0 to depth = 3, got 4"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"rope_base": None}, "rope_base"),
        ({"image_size": (30, 48)}, "multiples of the patch size 16, got 30 x 48 .nearest: 32 x 48"),
    ],
)
def test_wrong_values_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        create_backbone("sapiens2_nano", **{**TINY, **overrides})


def test_grouped_blocks_lie_in_the_middle():
    """Spec 1.1: full attention in the first and the last eight blocks."""
    config = backbone_config("sapiens2_0.4b")
    assert [config.kv_heads(i) for i in range(24)] == [16] * 8 + [8] * 8 + [16] * 8
    assert {backbone_config("sapiens2_0.1b").kv_heads(i) for i in range(12)} == {12}
    model = tiny(num_heads=4, num_kv_heads=1, full_attention_ends=1)
    assert [block.attn.wk.out_features for block in model.blocks] == [16, 4, 16]


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(1, 3, 32, 50), ValueError, "multiples of the patch size 16, got 32 x 50 .nearest: 32 x 48"),
        (torch.zeros(1, 4, 32, 48), ValueError, r"\(B, 3, H, W\), got \(1, 4, 32, 48\)"),
        (torch.zeros(3, 32, 48), ValueError, r"got \(3, 32, 48\)"),
        (torch.zeros(1, 3, 32, 48, dtype=torch.uint8), TypeError, "float images .* got torch.uint8"),
    ],
)
def test_wrong_images_are_refused(image, error, message):
    with pytest.raises(error, match=message):
        tiny()(image)


def test_outputs_agree(images):
    model = tiny()
    output = model(images)
    tokens = model.forward_tokens(images)
    assert output.cls.shape == (2, 16)
    assert output.registers.shape == (2, 8, 16)
    assert output.patches.shape == (2, 16, 2, 3)
    assert tokens.shape == (2, 9 + 6, 16)
    assert torch.equal(output.cls, tokens[:, 0])
    assert torch.equal(output.registers, tokens[:, 1:9])
    assert torch.equal(output.patches[:, :, 1, 2], tokens[:, 9 + 1 * 3 + 2])
    assert model.grid_size(64, 48) == (4, 3)


def test_patches_are_row_major(images):
    """Changing the bottom-left patch changes that token most, before attention mixes anything."""
    model = tiny()
    changed = images.clone()
    changed[:, :, 16:, :16] += 1
    before, _, _ = model._embed(images)
    after, _, _ = model._embed(changed)
    assert (before != after).any(dim=2)[0].tolist() == [False, False, False, True, False, False]


def test_intermediate(images):
    model = tiny()
    last, first, again = model.intermediate(images, [-1, 0, 2])
    assert torch.equal(last, model(images).patches)
    assert torch.equal(last, again)
    tokens, height, width = model._embed(images)
    rope = model.rope_embed(height, width, 9, tokens.device)
    expected = model.blocks[0](model._with_prefix(tokens), rope)[:, 9:]
    assert torch.equal(first.flatten(2).transpose(1, 2), expected)
    with pytest.raises(IndexError, match=r"from -3 to 2, got \[3\]"):
        model.intermediate(images, [3])


def test_intermediate_stops_early(images):
    model = tiny()
    model.blocks[2].forward = None
    assert len(model.intermediate(images, [1])) == 1


@pytest.mark.parametrize("rope_dtype", ["float32", "bfloat16"])
def test_visible_with_all_patches_is_the_full_forward(images, rope_dtype):
    model = tiny(rope_dtype=rope_dtype)
    full = model(images)
    visible = model.forward_visible(images, torch.arange(6).repeat(2, 1))
    assert torch.equal(visible.cls, full.cls)
    assert torch.equal(visible.tokens, full.patches.flatten(2).transpose(1, 2))


def test_visible_order_does_not_matter_but_positions_do(images):
    """Tokens are a set with positions: permuting `keep` permutes the output, and each image has its own subset."""
    model = tiny()
    keep = torch.tensor([[5, 0, 3], [1, 2, 4]])
    visible = model.forward_visible(images, keep)
    other = model.forward_visible(images, keep[:, [2, 0, 1]])
    torch.testing.assert_close(other.tokens, visible.tokens[:, [2, 0, 1]], rtol=0, atol=1e-5)
    torch.testing.assert_close(other.cls, visible.cls, rtol=0, atol=1e-5)
    single = model.forward_visible(images[1:], keep[1:])
    torch.testing.assert_close(single.tokens, visible.tokens[1:], rtol=0, atol=1e-5)
    # The same patch contents at other positions give another result.
    uniform = images[:1, :, :16, :16].repeat(1, 1, 2, 3)
    near, far = (model.forward_visible(uniform, torch.tensor([pair])).cls for pair in ([0, 1], [0, 5]))
    assert (near - far).abs().max() > 1e-4


def test_visible_does_not_see_the_rest(images):
    model = tiny()
    changed = images.clone()
    changed[:, :, :16, :16] = 9.0
    keep = torch.tensor([[1, 2, 5], [5, 4, 3]])
    for before, after in zip(model.forward_visible(images, keep), model.forward_visible(changed, keep)):
        assert torch.equal(before, after)
    with pytest.raises(ValueError, match=r"int64 of shape \(B, K\) with B = 2, got torch.int32"):
        model.forward_visible(images, keep.int())


def test_freezing_survives_train(images):
    model = tiny(frozen_stages=2, drop_path=0.5).train()
    assert [block.training for block in model.blocks] == [False, False, True]
    assert not model.patch_embed.training
    trainable = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad
    }
    assert trainable == {"blocks.2", "ln1.weight"}
    model(images).cls.sum().backward()
    assert model.blocks[1].ffn.w3.weight.grad is None
    assert model.blocks[2].ffn.w3.weight.grad is not None
    everything = tiny(frozen_stages=3)
    assert not any(p.requires_grad for p in everything.parameters())
    assert all(p.requires_grad for p in tiny(frozen_stages=-1).parameters())


def _gradients(model: Sapiens2, images: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(3)
    model.train()
    model(images).patches.square().sum().backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("overrides", [{"drop_path": 0.5}, {"window_tokenizer_depth": 1, "window_size": 2}])
def test_checkpointing_changes_no_gradient(images, overrides):
    image_size = (32, 64) if "window_size" in overrides else (32, 48)
    batch = torch.randn(2, 3, *image_size, generator=torch.Generator().manual_seed(2))
    plain = _gradients(tiny(image_size, **overrides), batch)
    recomputed = _gradients(tiny(image_size, **overrides, checkpointing="full"), batch)
    for a, b in zip(plain, recomputed, strict=True):
        assert (a is None) == (b is None)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_checkpointing_recomputes_each_block(images):
    model = tiny(checkpointing="full").train()
    calls = []
    for index, block in enumerate(model.blocks):
        block.ffn.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    model(images).cls.sum().backward()
    assert sorted(calls) == [0, 0, 1, 1, 2, 2]
    calls.clear()
    model.eval()(images)
    assert calls == [0, 1, 2]


def test_drop_path_grows_with_depth():
    assert [block.drop_path.rate for block in tiny(drop_path=0.2).blocks] == [0.0, 0.1, 0.2]


def test_meta_then_reset_is_a_fresh_model(images):
    with torch.device("meta"):
        model = create_backbone("sapiens2_nano", (32, 48), **TINY)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    model.reset_parameters()
    expected = tiny()
    for (name, got), want in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(got, want) or got.std() == pytest.approx(want.std(), rel=0.5), name
    assert torch.isfinite(model.eval()(images).cls).all()


def test_copy_and_pickle(images):
    model = tiny()
    expected = model(images).cls
    assert torch.equal(copy.deepcopy(model)(images).cls, expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(images).cls, expected)


def test_compiled_blocks_agree(images):
    """Per-block compilation, as training uses it, traces without a break."""
    model = tiny(num_heads=4, full_attention_ends=1)
    expected = model(images).patches
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(images).patches, expected)


class TestWindowTokenizer:
    """The 4K variant (spec 1.9)."""

    SIZE = (64, 128)

    @pytest.fixture
    def model(self) -> Sapiens2:
        return tiny(self.SIZE, window_tokenizer_depth=2, window_size=4, patch_size=8)

    @pytest.fixture
    def image(self) -> torch.Tensor:
        return torch.randn(2, 3, *self.SIZE, generator=torch.Generator().manual_seed(1))

    def test_each_window_becomes_one_token(self, model, image):
        """Against a loop over the windows: class token first, position added, blocks, element 0."""
        grid = model.patch_embed.projection(image)
        tokens = model.tokenizer(grid)
        assert tokens.shape == (2, 16, 2, 4)
        for row in range(2):
            for column in range(4):
                window = grid[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                x = torch.stack([window[:, :, i, j] for i in range(4) for j in range(4)], dim=1)
                x = torch.cat([model.tokenizer.w_cls.expand(2, -1, -1), x], dim=1)
                x = x + model.tokenizer.local_pos_embed
                for block in model.tokenizer.blocks:
                    x = block(x)
                torch.testing.assert_close(tokens[:, :, row, column], x[:, 0], rtol=0, atol=1e-5)

    def test_chunks_change_nothing(self, model, image, monkeypatch):
        expected = model(image).patches
        monkeypatch.setattr("s2kit.models.window_tokenizer.WINDOWS_PER_CHUNK", 3)
        torch.testing.assert_close(model(image).patches, expected, rtol=0, atol=1e-5)

    def test_training_gives_every_tokenizer_parameter_a_gradient(self, model, image):
        model.train()(image).patches.square().sum().backward()
        for name, parameter in model.tokenizer.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name

    def test_sizes_must_divide_into_windows(self, model):
        with pytest.raises(ValueError, match=r"patch size x window = 8 x 4 = 32, got 64 x 72 \(nearest: 64 x 64\)"):
            model(torch.zeros(1, 3, 64, 72))

    def test_grid_of_the_4k_model(self):
        assert backbone_config("sapiens2_1b_4k").image_size == (4096, 3072)
        config = backbone_config("sapiens2_1b_4k")
        assert (4096 // config.stride, 3072 // config.stride) == (64, 48)
        with pytest.raises(ValueError, match="multiples of patch size x window"):
            create_backbone("sapiens2_1b_4k", (1000, 768))

    def test_masking_comes_after_the_windows(self, model, image):
        full = model(image)
        visible = model.forward_visible(image, torch.arange(8).repeat(2, 1))
        assert torch.equal(visible.tokens, full.patches.flatten(2).transpose(1, 2))

    def test_tokens_keep_the_patches_dtype_under_autocast(self, model, image):
        with torch.autocast("cpu", torch.bfloat16):
            assert model._embed(image)[0].dtype == torch.bfloat16
