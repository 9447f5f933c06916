# SPDX-License-Identifier: Apache-2.0
"""Programs by hand for the machine, and small networks that the accelerator can run."""

import numpy as np
from networks import Builder

from golden.accelerator import AcceleratorSpec
from golden.layernorm import LayerNormSpec
from golden.program import Instruction, Op, Wait, instruction_words, parameter_words
from golden.residual import ResidualSpec
from golden.softmax import SoftmaxSpec
from golden.vit import VitModel

SQRT2 = SoftmaxSpec(max_tokens=64, base="sqrt2", code_bits=5)
BASE2 = SoftmaxSpec(max_tokens=64)


def small_spec(size: int = 4, **more) -> AcceleratorSpec:
    """An accelerator with memories of a few words."""
    memories = ("features", "queries", "keys", "values", "stream", "scores", "codes")
    depths = {**dict.fromkeys(memories, 128), "outputs": 16, "max_tokens": 16}
    return AcceleratorSpec(**{"size": size, "softmax": BASE2, **depths, **more})


def program(spec: AcceleratorSpec, *parts, image_words: int = 0, end: bool = True) -> np.ndarray:
    """A stream of instructions, (op, wait, operands, payload) each, between HEAD and END."""
    head = {"fingerprint": spec.fingerprint, "image_words": image_words}
    ends = [(Op.END, 0, {}, None)] if end else []
    words = []
    for op, wait, operands, payload in [(Op.HEAD, 0, head, None), *parts, *ends]:
        instruction = Instruction(op, Wait(wait), {name: int(x) for name, x in operands.items()})
        words.append(instruction_words(instruction, spec.size))
        if payload is not None:
            words.append(payload)
    return np.concatenate(words)


def block_words(size, bias, multiplier, shift, align, weight=None) -> np.ndarray:
    """Payload of a column block; weight [depth, columns, inputs]."""
    words = [parameter_words(bias, multiplier, shift, align)]
    if weight is not None:
        words.append(np.asarray(weight).astype(np.int8).view(np.uint8).reshape(-1, size))
    return np.concatenate(words)


def tiny_network(
    *,
    wide: bool = False,
    width: int = 12,
    heads: tuple[int, ...] = (2, 3),
    prefix: int = 2,
    pixels: tuple[int, int, int] = (3, 8, 12),
    patch: int = 4,
    head: bool = True,
    early: bool = False,
    softmax: SoftmaxSpec = BASE2,
    seed: int = 0,
) -> VitModel:
    """A ViT with a block for each of ``heads``, from the class token (0) to five classes.

    wide: a stream of 16 bits, 5-bit codes to base sqrt 2, GELU of 10 bits.  head: without it, codes come out.
    early: the token is selected before the last LayerNorm.
    """
    net = Builder(
        seed,
        ResidualSpec(in_bits=16, out_bits=16, multiplier_bits=24) if wide else ResidualSpec(),
        SQRT2 if wide else softmax,
        LayerNormSpec(max_channels=64 if width <= 64 else 3072, in_bits=16 if wide else 8),
    )
    channels, height, across = pixels
    area = patch * patch
    count = height * across // area
    x = net.patch_embed(patch, channels, width)
    x = net.embed(x, count, prefix, width, area * channels)
    for block, number in enumerate(heads):
        x = net.block(f"blocks.{block}", x, width, number, bits=10 if wide else 8)
    token = (1 if prefix > 1 else 0,)
    if early:
        x = net.norm("norm", net.add("pool", "select", x, tokens=token), width)
    else:
        x = net.add("pool", "select", net.norm("norm", x, width), tokens=token)
    if head:
        net.linear("head", x, width, 5)
    return net.model(*pixels)
