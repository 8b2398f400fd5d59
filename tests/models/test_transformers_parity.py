"""Against an independent peer, the Hugging Face `transformers` port, with the same random weights in both.

The port keeps RoPE in the input's type, so our models here have `rope_dtype="float32"`. The release's bfloat16 rule is
pinned by the checksums of spec 1.6 and the outputs of spec 10.1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from s2kit.models import Sapiens2, create_backbone, create_head
from s2kit.models.checkpoints import from_huggingface, to_huggingface

TOLERANCE = 1e-3
IMAGE_SIZE = (256, 192)
#: Backbones: as the release has them, grouped in the middle; then head_dim 20 and one key-value head for four.
BACKBONES = {
    "tiny": {"embed_dim": 64, "depth": 18, "num_heads": 4, "mlp_dim": 128},
    "odd": {
        "embed_dim": 80,
        "depth": 5,
        "num_heads": 4,
        "mlp_dim": 96,
        "num_kv_heads": 1,
        "full_attention_ends": 1,
        "num_registers": 3,
    },
}
SHUFFLES = {"upsample_channels": (24, 20, 16, 12), "conv_channels": (10, 8, 6)}
HEADS = {
    "pose": {"upsample_channels": (40, 32), "conv_channels": (24, 20, 16)},
    "segmentation": {"upsample_channels": (24, 20, 16, 12), "conv_channels": (10, 8)},
    "normals": SHUFFLES,
    "pointmap": {**SHUFFLES, "scale_channels": (24, 16, 8), "scale_hidden": (12, 6), "image_size": IMAGE_SIZE},
    "matting": SHUFFLES,
}


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Weights under which every entry counts: no zero biases, no LayerScale of 1e-4; activations stay of order 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma.weight"):
            parameter.data = 0.5 + 0.1 * noise
        elif name.endswith("bias"):
            parameter.data = 0.1 * noise
        elif parameter.ndim == 1:
            parameter.data = 1 + 0.1 * noise
        else:
            parameter.data = noise / max(1, parameter[0].numel()) ** 0.5


def make_backbone(name: str = "tiny", **overrides) -> Sapiens2:
    options = {**BACKBONES[name], "rope_dtype": "float32", **overrides}
    return create_backbone("sapiens2_nano", IMAGE_SIZE, **options)


def make_task(task: str) -> nn.Module:
    backbone = make_backbone()
    head = create_head(task, "sapiens2_nano", backbone.config.embed_dim, **HEADS[task])
    model = nn.ModuleDict({"backbone": backbone, "decode_head": head}).eval()
    randomise(model)
    return model


def through_a_folder(state, content, folder) -> nn.Module:
    """The port as its users load it: from a folder with the port's file and config."""
    save_file(
        {name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(content))
    port_class = getattr(transformers, content["architectures"][0])
    model, report = port_class.from_pretrained(folder, output_loading_info=True)
    assert {kind: list(names) for kind, names in report.items() if names} == {}
    return model.eval()


def in_memory(state, content, folder=None) -> nn.Module:
    """The port built from the config, with its own names for the entries."""
    config = transformers.Sapiens2Config.from_dict(content)
    model = getattr(transformers, content["architectures"][0])(config)
    model.load_state_dict(state, strict=True)
    return model.eval()


@pytest.fixture(params=[through_a_folder, in_memory], ids=lambda route: route.__name__)
def carry(request, tmp_path) -> Callable[[nn.Module], nn.Module]:
    """Makes the port's model with the weights of ours, on each of the two routes."""

    def carry(model: nn.Module) -> nn.Module:
        backbone = model["backbone"] if isinstance(model, nn.ModuleDict) else model
        module_names = request.param is in_memory
        state, content = to_huggingface(model.state_dict(), backbone.config, module_names=module_names)
        return request.param(state, content, tmp_path)

    return carry


def images(height: int, width: int, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ours.abs().max() > 0.1, "outputs this small would agree whatever they are"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_backbone_at_three_resolutions(name, carry):
    ours = make_backbone(name).eval()
    randomise(ours)
    assert len({block.attn.num_kv_heads for block in ours.blocks}) == 2
    theirs = carry(ours)
    for size in ((64, 48), (96, 80), (256, 192)):
        x = images(*size)
        output = theirs(x)
        assert_same(ours.forward_tokens(x), output.last_hidden_state)
        assert_same(ours(x).cls, output.pooler_output)


@torch.no_grad()
def test_intermediate_feature_maps(tmp_path):
    """Ours leaves all but the last without the final norm, as the release does; the port can."""
    ours = make_backbone().eval()
    randomise(ours)
    state, content = to_huggingface(ours.state_dict(), ours.config)
    content |= {"architectures": ["Sapiens2Backbone"], "normalize_backbone_outputs": False, "out_indices": [1, 9, 18]}
    theirs = through_a_folder(state, content, tmp_path)
    x = images(96, 80)
    first, grouped, last = theirs(x).feature_maps
    ours_maps = ours.intermediate(x, [0, 8, 17])
    assert_same(ours_maps[0], first)
    assert_same(ours_maps[1], grouped)
    assert_same(ours_maps[2], ours.ln1(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("task", HEADS)
@torch.no_grad()
def test_task_outputs(task, carry):
    ours = make_task(task)
    theirs = carry(ours)
    x = images(*IMAGE_SIZE)
    output, peer = ours["decode_head"](ours["backbone"](x).patches), theirs(x)
    if task == "pointmap":
        assert_same(output.pointmap, peer.pointmaps)
        assert_same(output.scale, peer.scales)
    elif task == "matting":
        assert_same(output[:, :3], peer.foregrounds)
        assert_same(output[:, 3:], peer.alphas)
    else:
        (field,) = peer.keys()
        assert field == {"pose": "heatmaps", "segmentation": "logits", "normals": "normals"}[task]
        assert_same(output, peer[field])


def test_gradients(carry):
    """Fine-tuning takes the same first step: gradients, renamed as weights are, agree to 1e-3 of each one's largest.

    Biases before an InstanceNorm have none but for rounding, hence the least limit.
    """
    ours = make_task("normals")
    theirs = carry(ours)
    x = images(64, 48)
    weights = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(2)) / 100
    (ours["decode_head"](ours["backbone"](x).patches) * weights).sum().backward()
    (theirs(x).normals * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    renamed, _ = to_huggingface(gradients, ours["backbone"].config, module_names=True)
    peers = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert renamed.keys() == peers.keys()
    for name, gradient in renamed.items():
        limit = max(1e-3 * peers[name].abs().max().item(), 1e-5)
        torch.testing.assert_close(
            gradient, peers[name], rtol=0, atol=limit, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("task", [None, *HEADS])
@torch.no_grad()
def test_weights_made_by_the_port_load_strictly(task, carry):
    """A port's model with other weights, by its own names, back into ours: every value is used, and none is changed."""
    ours = make_task(task) if task else make_backbone().eval()
    theirs = carry(ours)
    for parameter in theirs.parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    state = from_huggingface(theirs.state_dict(), theirs.config.to_dict())
    ours.load_state_dict(state, strict=True)
    backbone = ours["backbone"] if task else ours
    again, _ = to_huggingface(ours.state_dict(), backbone.config, module_names=True)
    assert again.keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in theirs.state_dict().items())


@torch.no_grad()
def test_the_tolerance_tells_models_apart(carry):
    """The bfloat16 rule of RoPE, the smallest difference that matters here, is 10 times above the tolerance."""
    ours = make_backbone().eval()
    randomise(ours)
    theirs = carry(ours)
    x = images(64, 48)
    assert (rounded(ours).forward_tokens(x) - theirs(x).last_hidden_state).abs().max() > 10 * TOLERANCE


def rounded(model: Sapiens2) -> Sapiens2:
    """The same weights under the release's bfloat16 rule of RoPE."""
    with torch.device("meta"):
        twin = Sapiens2(replace(model.config, rope_dtype="bfloat16"))
    twin.load_state_dict(model.state_dict(), assign=True)
    return twin.eval()


@torch.no_grad()
def test_largest_effect_of_the_bfloat16_rule():
    """The first row of docs/parity.md on the rule."""
    worst = 0.0
    for seed in range(5):
        ours = make_backbone().eval()
        randomise(ours, seed)
        for size in ((64, 48), (96, 80), (256, 192)):
            x = images(*size, batch=1, seed=100 + seed)
            difference = rounded(ours).forward_tokens(x) - ours.forward_tokens(x)
            worst = max(worst, difference.abs().max().item())
    assert worst == pytest.approx(0.11, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "size"), [("sapiens2_0.1b", (1024, 768)), ("sapiens2_0.4b", (512, 384))])
@torch.no_grad()
def test_released_sizes(arch, size, capsys):
    """Parity at full width and depth, and the numbers of docs/parity.md on the bfloat16 rule (shown with -s)."""
    ours = create_backbone(arch, size, rope_dtype="float32").eval()
    randomise(ours)
    theirs = in_memory(*to_huggingface(ours.state_dict(), ours.config, module_names=True))
    x = images(*size, batch=1)
    tokens = ours.forward_tokens(x)
    peer = theirs(x).last_hidden_state
    assert_same(tokens, peer)
    difference = rounded(ours).forward_tokens(x) - tokens
    share = (difference.square().mean() / tokens.square().mean()).sqrt()
    with capsys.disabled():
        print(
            f"\n{arch} at {size[0]} x {size[1]}: largest output {tokens.abs().max():.2f}; largest difference from the "
            f"port {(tokens - peer).abs().max():.1e}, by the bfloat16 rule {difference.abs().max():.1e} "
            f"(root mean square {share:.1e} of the outputs')"
        )
    assert 1e-3 < difference.abs().max() < 0.2
    assert share < 0.01
