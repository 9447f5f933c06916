# SPDX-License-Identifier: Apache-2.0
"""The embedded default: a small Vision Transformer trained on scikit-learn's handwritten digits.

The data set is 1797 grey images of 8 x 8 pixels, light strokes on black, with values 0..16. They
are served as uint8, scaled by 15 to 0..240, so that they look like any other image. A fifth of each
class is held out: neither training nor calibration ever sees it. The weights lie beside this file
as fp16 safetensors; ``python -m qvit_hw.models.digits --train`` makes them again (one core, a few
minutes, bit-exact on the same CPU and torch version) and prints the held-out accuracy of the
*stored* values.
"""

from __future__ import annotations

import argparse
import math
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timm.layers import set_fused_attn
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

__all__ = [
    "CLASS_NAMES",
    "INPUT_SIZE",
    "MEAN",
    "STD",
    "WEIGHTS",
    "accuracy",
    "build",
    "digits_images",
    "load",
    "main",
    "train",
]

INPUT_SIZE = (1, 8, 8)
"""Channels, height, width."""
PIXEL_SCALE = 15
"""Data-set value 0..16 to uint8 0..240."""
MEAN = (0.287,)
"""Mean of the training pixels, in units of pixel / 255."""
STD = (0.354,)
"""Standard deviation of the training pixels, in units of pixel / 255."""
CLASS_NAMES = tuple("0123456789")
WEIGHTS = Path(__file__).with_name("digits.safetensors")
SPLIT_SEED = 2024
TRAIN_SEED = 0
EPOCHS = 150
BATCH = 64


@cache
def _split() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Both splits, each (uint8 images [n, 1, 8, 8], int64 labels [n]), shuffled and read-only."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images * PIXEL_SCALE).astype(np.uint8)[:, None]
    labels = data.target.astype(np.int64)
    rng = np.random.RandomState(SPLIT_SEED)  # frozen stream: the same split with every numpy
    test: list[int] = []
    for label in range(len(CLASS_NAMES)):
        members = rng.permutation(np.flatnonzero(labels == label))
        test.extend(members[: round(len(members) / 5)].tolist())
    order = rng.permutation(len(labels))
    held_out = np.isin(order, test)
    splits = {}
    for name, index in (("train", order[~held_out]), ("test", order[held_out])):
        splits[name] = (images[index], labels[index])
        for array in splits[name]:
            array.flags.writeable = False
    return splits


def digits_images(split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 [n, 1, 8, 8] with values 0..240, labels int64 [n]).

    ``test`` is the held-out fifth (359 images), ``train`` the rest (1438). The order is a fixed
    shuffle, so the first n images of a split are a fair sample of it.
    """
    if split not in ("train", "test"):
        raise ValueError(f"Split must be 'train' or 'test', not {split!r}")
    return _split()[split]


def build() -> VisionTransformer:
    """Return the untrained network: 17 tokens of 64 channels, 4 blocks of 4 heads, 10 classes."""
    set_fused_attn(False)  # read by Attention.__init__; the softmax must stay a tensor of its own
    return VisionTransformer(
        img_size=INPUT_SIZE[1:],
        patch_size=2,
        in_chans=INPUT_SIZE[0],
        num_classes=len(CLASS_NAMES),
        embed_dim=64,
        depth=4,
        num_heads=4,
        mlp_ratio=4.0,
    )


def load(weights: Path = WEIGHTS) -> VisionTransformer:
    """Return the trained network in fp32 and eval mode, from fp16 safetensors."""
    model = build()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    return model.eval().requires_grad_(False)


def _normalise(images: torch.Tensor) -> torch.Tensor:
    """Pixels 0..255 of any dtype to the network's float32 input."""
    return (images.float() / 255 - MEAN[0]) / STD[0]


@torch.no_grad()
def accuracy(model: nn.Module, split: Literal["train", "test"] = "test") -> float:
    """Return the share of a split's images (0..1) that the float model names correctly."""
    images, labels = digits_images(split)
    guesses = model(_normalise(torch.tensor(images))).argmax(dim=1)
    return float((guesses == torch.tensor(labels)).double().mean())


def _augment(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Turn by up to 12 degrees, scale by up to 12 %, shift by up to a pixel: float [n, 1, 8, 8]."""
    n = len(images)

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(n, generator=rng) * 2 - 1) * limit

    angle, zoom = uniform(math.radians(12)), 1 + uniform(0.12)
    pixel = 2 / images.shape[-1]  # grid_sample's coordinates span -1..1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle) * zoom
    theta[:, 0, 1] = -torch.sin(angle) * zoom
    theta[:, 1, 0] = torch.sin(angle) * zoom
    theta[:, 0, 2], theta[:, 1, 2] = uniform(pixel), uniform(pixel)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def train(out: Path = WEIGHTS, *, epochs: int = EPOCHS, seed: int = TRAIN_SEED) -> float:
    """Train from scratch, store fp16 weights in `out`; return the stored model's held-out accuracy.

    AdamW, one cosine cycle, label smoothing, and an exponential moving average of the weights. The
    held-out fifth is looked at once, after the last step.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    model = build().train()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    images, labels = (torch.tensor(array) for array in digits_images("train"))
    steps = len(images) // BATCH
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=2e-3, total_steps=epochs * steps, pct_start=0.1
    )
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=rng)
        total = 0.0
        for batch in order[: steps * BATCH].split(BATCH):
            inputs = _normalise(_augment(images[batch].float(), rng))
            loss = functional.cross_entropy(model(inputs), labels[batch], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            average.update_parameters(model)
            total += loss.item()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:3d}/{epochs}  loss {total / steps:.4f}", flush=True)
    state = average.module.state_dict()
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, out)
    return accuracy(load(out))


def main(argv: list[str] | None = None) -> int:
    """Train the weights again, or print the accuracy of those in the repository."""
    parser = argparse.ArgumentParser("python -m qvit_hw.models.digits", description=main.__doc__)
    parser.add_argument("--train", action="store_true", help="train from scratch and store")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="safetensors file (%(default)s)")
    args = parser.parse_args(argv)
    held_out = train(args.out) if args.train else accuracy(load(args.out))
    print(f"held-out accuracy {held_out:.4f} on {len(digits_images('test')[1])} images")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
