# SPDX-License-Identifier: Apache-2.0
"""An evaluation made up of plausible numbers, as large as wanted, with or without labels."""

import numpy as np

from qvit_hw.evaluation import (
    MODELS,
    PAIRS,
    Accuracy,
    Agreement,
    Cost,
    Difference,
    Evaluation,
    Example,
    Sensitivity,
    Share,
    Speed,
    Tensor,
)
from qvit_hw.models.labelled import Labelled

BLOCK = (
    ("norm1", "layernorm", "LayerNorm", 38),
    ("attn.qkv", "linear", "q, k, v", 34),
    ("attn.scores", "scores", "scores", 30),
    ("attn", "softmax", "softmax", 16),
    ("attn.attend", "attend", "A·V", 20),
    ("attn.proj", "linear", "sums", 21),
    ("residual1", "residual", "residual stream", 33),
    ("norm2", "layernorm", "LayerNorm", 31),
    ("mlp.fc1", "linear", "GELU", 28),
    ("mlp.act", "gelu", "GELU", 23),
    ("mlp.fc2", "linear", "sums", 24),
    ("residual2", "residual", "residual stream", 32),
)
"""(name, operator, group, dB in the first block) of the tensors of a block."""


def tensors(blocks: int, differing: int) -> list[Tensor]:
    rng = np.random.default_rng(blocks)
    plan = [("patch_embed", "patch_embed", "sums", "embedding", 50.0)]
    plan.append(("embed", "embed", "residual stream", "embedding", 42.0))
    for block in range(blocks):
        for name, op, group, level in BLOCK:
            noise = rng.normal(0, 0.8) - 0.8 * block
            plan.append((f"blocks.{block}.{name}", op, group, f"blocks.{block}", level + noise))
    plan += [
        ("norm", "layernorm", "LayerNorm", "head", 21.0),
        ("head", "linear", "sums", "head", 19.0),
    ]
    found = []
    for place, (name, op, group, part, level) in enumerate(plan):
        apart = int(differing * rng.lognormal(0, 1.5)) if place % 3 == 0 else 0
        numbers = (level, 0.99, level + 0.01, 0.99, 3 * apart, apart, apart - apart // 20)
        found.append(Tensor(name, op, group, part, 1_000_000, *numbers))
    return found


def cost(name: str, group: str, part: str, noise: float, count: int = 1) -> Cost:
    alone = -10 * float(np.log10(noise))
    return Cost(name, group, part, count, noise, alone, 19.0 + 40 * noise, 40 * noise)


def sensitivity(found: list[Tensor]) -> Sensitivity:
    rng = np.random.default_rng(3)
    singles = []
    for tensor in found:
        if tensor.op == "linear" or tensor.op == "patch_embed":
            singles.append(cost(f"{tensor.name}.weight", "weights", tensor.part, 1e-5))
        if tensor.group != "sums":
            noise = float(10 ** (-tensor.sqnr_db / 10) / 30 * rng.lognormal(0, 0.5))
            singles.append(cost(tensor.name, tensor.group, tensor.part, noise))

    def sets(field: str) -> tuple[Cost, ...]:
        names = dict.fromkeys(getattr(each, field) for each in singles)
        chosen = {name: [c for c in singles if getattr(c, field) == name] for name in names}
        return tuple(
            cost(name, name if field == "group" else "", name if field == "part" else "",
                 sum(each.noise for each in some), len(some))
            for name, some in chosen.items()
        )  # fmt: skip

    return Sensitivity(4, 18.4, sets("group"), sets("part"), tuple(singles))


def sample(
    *,
    blocks: int = 2,
    labelled: bool = True,
    differing: int = 0,
    tried: bool = True,
    timed: bool = True,
    images: int = 359,
) -> Evaluation:
    """``differing``: about how many of a million codes differ in some tensors."""
    found = tensors(blocks, differing)
    golden = images - 10
    accuracies = [
        Accuracy(name, Share.of(right, images), Share.of(images - 1, images))
        for name, right in zip(MODELS, (images - 9, golden, golden), strict=True)
    ]
    differences = [
        Difference.of(model, against, *((1, 2) if against == "float" else (0, 0)), images)
        for against, model in PAIRS
    ]
    same = Share.of(images - 3, images) if labelled else None
    agreements = [Agreement(m, a, same, 19.2, 0.994, 0.971, 0) for a, m in PAIRS[:2]]
    all_same = Share.of(images, images) if labelled else None
    agreements.append(Agreement(*reversed(PAIRS[2]), all_same, None, 1.0, 1.0, images))
    speeds = [
        Speed("float", 0.0164, 0.0151, 8, 240 << 20, 420 << 20, 2),
        Speed("calibrated", 0.141, 0.155, 8, 240 << 20, 1030 << 20, 2),
        Speed("golden", 0.0271, 0.0233, 8, 31 << 20, 190 << 20, 2),
    ]
    examples = [
        Example(5, "digits-test-0005", 4, (4, 9, 9)),
        Example(17, "digits-test-0017", 1, (7, 1, 1)),
        Example(30, "digits-test-0030", 8, (3, 5, 5)),
    ]
    return Evaluation(
        model={"name": "sample", "source": "made up", "input_size": [1, 8, 8]},
        bundle={"name": "bundle", "sha256": "0123456789abcdef" * 4, "preset": "w8a8p4"},
        data="digits, the held-out split" if labelled else "natural images that come along",
        images=images,
        classes=tuple("0123456789") if labelled else None,
        accuracies=tuple(accuracies) if labelled else (),
        differences=tuple(differences) if labelled else (),
        agreements=tuple(agreements),
        traced=16,
        lowering=3e-7,
        tensors=tuple(found),
        sensitivity=sensitivity(found) if tried else None,
        speeds=tuple(speeds) if timed else (),
        examples=tuple(examples) if labelled else (),
        notes=() if labelled else ("Model 'sample' has no classifier.",),
    )


def pictures(channels: int = 1, side: int = 8, count: int = 359) -> Labelled:
    """Noise in place of the images."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, channels, side, side), np.uint8)
    names = tuple(f"noise-{number}" for number in range(count))
    return Labelled("noise", names, None, pixels.__getitem__)
