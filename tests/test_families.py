# SPDX-License-Identifier: Apache-2.0
"""timm's VisionTransformer as a network: equal to timm's forward pass, or refused by name."""

import re
from functools import partial

import numpy as np
import pytest
import timm
import torch
from family_samples import BLOCK, DEPTH, MEAN, SIZE, STD, assert_equal, refused, shake, tiny_vit
from timm.layers import LayerNormFp32, LayerScale, RmsNorm, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn

from qvit_hw.errors import UserError
from qvit_hw.families import lower
from qvit_hw.models import load_model
from qvit_hw.models.images import load_images, normalise
from qvit_hw.network import Linear, PatchEmbed

# --------------------------------------------------------------------------------------- equality

VARIANTS = {
    "plain": {},
    "registers": {"reg_tokens": 4},
    "positions of patches alone": {"reg_tokens": 2, "no_embed_class": True},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "no tokens beside patches, no pooling": {"class_token": False, "global_pool": ""},
    "mean": {"global_pool": "avg", "reg_tokens": 1},
    "mean with prefix": {"global_pool": "avg", "reg_tokens": 1, "pool_include_prefix": True},
    "mean, norm before": {"global_pool": "avg", "fc_norm": False},
    "no pooling": {"global_pool": ""},
    "norm behind the pooling": {"fc_norm": True},
    "no final norm": {"final_norm": False},
    "norm before the blocks": {"pre_norm": True},
    "layer scale": {"init_values": 0.1},
    "layer scale without biases": {"init_values": 0.1, "proj_bias": False},
    "no bias of q, k, v": {"qkv_bias": False},
    "no classes": {"num_classes": 0},
    "no classes, mean": {"num_classes": 0, "global_pool": "avg"},
    "no classes, no pooling": {"num_classes": 0, "global_pool": ""},
    "no positions": {"pos_embed": "none"},
    "image that is no square": {"img_size": (12, 20)},
    "gelu of torch": {"act_layer": nn.GELU},
    "tanh gelu of torch": {"act_layer": partial(nn.GELU, approximate="tanh")},
    "gelu": {"act_layer": "gelu"},
    "tanh gelu": {"act_layer": "gelu_tanh"},
    "quick gelu": {"act_layer": "quick_gelu"},
    "silu": {"act_layer": "silu"},
    "relu": {"act_layer": "relu"},
    "layer norm in fp32": {"norm_layer": LayerNormFp32},
    "layer norm without affine": {"norm_layer": partial(nn.LayerNorm, elementwise_affine=False)},
    "layer norm without bias": {"norm_layer": partial(nn.LayerNorm, bias=False)},
    "layer norm with a large epsilon": {"norm_layer": partial(nn.LayerNorm, eps=0.1)},
    "dropout everywhere": {
        f"{where}_rate": 0.3
        for where in ("drop", "pos_drop", "patch_drop", "proj_drop", "attn_drop", "drop_path")
    },
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_vision_transformer(options):
    assert_equal(tiny_vit(**options))


DISTILLED = {
    "plain": {},
    "layer scale": {"init_values": 0.1},
    "no classes": {"num_classes": 0},
}


@pytest.mark.parametrize("options", DISTILLED.values(), ids=DISTILLED)
def test_distilled_heads_are_one_layer_on_two_tokens(options):
    model = tiny_vit(VisionTransformerDistilled, **options)
    network = assert_equal(model)
    assert network["pool"].tokens == (0, 1)
    assert network.output.weight.shape[1] == 2 * model.embed_dim


def test_one_channel():
    model = tiny_vit(in_chans=1)
    assert_equal(model, mean=MEAN[:1], std=STD[:1])


def test_the_comparison_sees_every_parameter():
    """The negative twin: whichever parameter is read wrongly, the outputs differ."""
    options = {"reg_tokens": 2, "pre_norm": True, "init_values": 0.1, "fc_norm": True}
    images = torch.randint(0, 256, (2, *SIZE), dtype=torch.uint8)
    for model in (tiny_vit(**options), tiny_vit(VisionTransformerDistilled)):
        want = lower(model, MEAN, STD).run(images)
        for name, parameter in model.named_parameters():
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.mul_(1.05).add_(0.02 * torch.randn_like(kept))
            got = lower(model, MEAN, STD).run(images)
            assert (got - want).abs().max() > 1e-3 * want.abs().max(), name
            with torch.no_grad():
                parameter.copy_(kept)
        assert torch.equal(lower(model, MEAN, STD).run(images), want)


def test_the_comparison_sees_the_function_and_the_epsilon():
    """The negative twin: near as gelu and its tanh form are, the outputs differ."""
    rng = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, *SIZE), dtype=torch.uint8, generator=rng)
    outputs = [
        lower(tiny_vit(**options), MEAN, STD).run(images)
        for options in (
            {"act_layer": "gelu"},
            {"act_layer": "gelu_tanh"},
            {"act_layer": "quick_gelu"},
            {"norm_layer": partial(nn.LayerNorm, eps=0.1)},
        )
    ]
    for other in outputs[1:]:
        assert (other - outputs[0]).abs().max() > 5e-5 * outputs[0].abs().max()


@pytest.mark.parametrize("name", ["digits", "deit_tiny_patch16_224"])
def test_loaded_models(name):
    loaded = load_model(name)
    images, _ = load_images(None, loaded, 2)
    network = lower(loaded.model, loaded.mean, loaded.std, loaded.input_size)
    with torch.no_grad():
        want = loaded.model(normalise(images, loaded))
    got = network.run(torch.from_numpy(np.array(images)))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_names_and_order():
    network = lower(tiny_vit(pre_norm=True, fc_norm=True, global_pool="avg"), MEAN, STD)
    blocks = [f"blocks.{i}.{name}" for i in range(DEPTH) for name in BLOCK]
    names = ["patch_embed", "embed", "norm_pre", "start", *blocks, "pool", "fc_norm", "head"]
    assert [node.name for node in network] == names
    assert network.input_size == SIZE


def test_the_model_stays_as_it_is():
    model = tiny_vit(init_values=0.1).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network = lower(model, MEAN, STD)
    assert model.training
    assert any(isinstance(module, LayerScale) for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(
        node.weight.requires_grad for node in network if isinstance(node, Linear | PatchEmbed)
    )


# --------------------------------------------------------------------------------------- refusals

NONE = "has no integer counterpart"
PARTS = {
    f"LayerNorm at 'blocks.0.attn.q_norm' {NONE}.": {"qk_norm": True},
    f"LayerNorm at 'blocks.0.attn.norm' {NONE}.": {"scale_attn_norm": True},
    f"LayerNorm at 'blocks.0.mlp.norm' {NONE}.": {"scale_mlp_norm": True},
    f"SwiGLU at 'blocks.0.mlp' {NONE}.": {"mlp_layer": SwiGLU},
    f"DiffAttention at 'blocks.0.attn' {NONE}.": {"attn_layer": "diff"},
    f"ResPostBlock at 'blocks.0' {NONE}.": {"block_fn": ResPostBlock},
    f"ParallelScalingBlock at 'blocks.0' {NONE}.": {"block_fn": ParallelScalingBlock},
    f"ParallelThingsBlock at 'blocks.0' {NONE}.": {"block_fn": ParallelThingsBlock},
    f"LayerNorm at 'patch_embed.norm' {NONE}.": {"embed_norm_layer": "layernorm"},
    f"AttentionPoolLatent at 'attn_pool' {NONE}.": {"global_pool": "map"},
    f"AttentionPoolPrr at 'attn_pool' {NONE}.": {"global_pool": "prr"},
    "Pooling of the model must be 'token', 'avg' or '', not 'max'.": {"global_pool": "max"},
    "Pooling of the model must be 'token', 'avg' or '', not 'avgmax'.": {"global_pool": "avgmax"},
    f"Hardswish at 'blocks.0.mlp.act' {NONE}.": {"act_layer": nn.Hardswish},
    f"RmsNorm at 'blocks.0.norm1' {NONE}.": {"norm_layer": RmsNorm},
    f"PatchEmbed at 'patch_embed' {NONE}: the image's size must be fixed, not dynamic_img_size.": {
        "dynamic_img_size": True
    },
    f"PatchEmbed at 'patch_embed' {NONE}: the image's size must be fixed.": {
        "dynamic_img_pad": True
    },
    f"Conv2d at 'patch_embed.proj' {NONE}: patches must be square and neither padded "
    "nor overlapping.": {"patch_size": (4, 2)},
    "Image size must be a multiple of the patch of 4 pixels, not 18 x 16.": {"img_size": (18, 16)},
}


@pytest.mark.parametrize("sentence", PARTS)
def test_parts_that_are_not_understood(sentence):
    refused(sentence, tiny_vit(**PARTS[sentence]))


def test_distilled_models_with_parts_that_they_never_use():
    model = tiny_vit(VisionTransformerDistilled, fc_norm=True)
    refused(f"LayerNorm at 'fc_norm' {NONE}.", model)
    model = tiny_vit(VisionTransformerDistilled, reg_tokens=2)
    refused(f"Parameter 'reg_token' {NONE}.", model)
    model = tiny_vit(VisionTransformerDistilled, no_embed_class=True)
    refused("Positions of the model must be 16, one per patch, not 18.", model)


@pytest.mark.parametrize(("part", "value"), [("stride", (2, 2)), ("padding", (1, 1))])
def test_patches_that_overlap_or_are_padded(part, value):
    model = tiny_vit()
    setattr(model.patch_embed.proj, part, value)
    refused(f"Conv2d at 'patch_embed.proj' {NONE}: patches must be square .*", model, exact=False)


class Adapted(nn.Linear):
    """A linear layer that computes something else."""

    def forward(self, x):
        return super().forward(x) + x.mean()


def test_what_was_put_into_the_model_is_refused():
    model = tiny_vit()
    model.blocks[1].attn.gate = nn.Linear(24, 24)
    refused(f"Linear at 'blocks.1.attn.gate' {NONE}.", model)

    model = tiny_vit()
    model.blocks[1].mlp.fc1 = Adapted(24, 48)
    refused(f"Adapted at 'blocks.1.mlp.fc1' {NONE}.", model)

    model = tiny_vit()
    model.blocks[0].adapter = nn.Sequential(nn.Linear(24, 24))
    refused(f"Linear at 'blocks.0.adapter.0' {NONE}.", model)

    model = tiny_vit()
    model.head_drop = nn.Tanh()
    refused(f"Tanh at 'head_drop' {NONE}.", model)

    model = tiny_vit()
    model.blocks[0].register_parameter("gain", nn.Parameter(torch.ones(1)))
    refused(f"Parameter 'blocks.0.gain' {NONE}.", model)

    model = tiny_vit()
    model.norm = nn.LayerNorm((17, 24))
    refused(f"LayerNorm at 'norm' {NONE}: it must normalise over the last axis.", model)


class Subclass(VisionTransformer):
    pass


@pytest.mark.parametrize("kind", [Subclass, nn.Linear])
def test_other_classes(kind):
    model = tiny_vit(Subclass) if kind is Subclass else nn.Linear(2, 2)
    known = "VisionTransformer, VisionTransformerDistilled or SwinTransformer"
    refused(f"Network must be timm's {known}, not {kind.__name__}.", model)


def test_sizes_that_do_not_fit():
    model = tiny_vit()
    sentence = f"Input of the model must be {SIZE}, not (3, 16, 20)."
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        lower(model, MEAN, STD, (3, 16, 20))
    sentence = "Mean and standard deviation must have 3 values, one per channel, not 1 and 3."
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        lower(model, MEAN[:1], STD)


@pytest.mark.parametrize(
    "name", ["vit_tiny_r_s16_p8_224", "levit_128s", "resnet18", "swinv2_tiny_window8_256"]
)
def test_other_architectures(name):
    model = timm.create_model(name)
    sentence = ".* at 'patch_embed' has no .*" if name.startswith("vit") else "Network must be .*"
    refused(sentence, shake(model), exact=False)
