# SPDX-License-Identifier: Apache-2.0
"""Three models of a tiny random ViT, and noise for them to see."""

import numpy as np
import torch
from timm.layers import set_fused_attn
from timm.models.vision_transformer import VisionTransformer

from golden.vit import VitModel
from qvit_hw.calibration import calibrate_network
from qvit_hw.crew import Bench
from qvit_hw.integers import export
from qvit_hw.measuring import Subject
from qvit_hw.models import LoadedModel
from qvit_hw.models.labelled import Labelled
from qvit_hw.presets import find_preset

SIZE, CLASSES = (3, 12, 12), 5


def noise(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE), dtype=np.uint8)


def make_subject(seed: int = 0, preset: str = "w8a8p4", classes: int = CLASSES) -> Subject:
    """A random ViT of 10 tokens and 16 channels."""
    set_fused_attn(False)
    torch.manual_seed(seed)
    model = VisionTransformer(
        img_size=SIZE[1], patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=classes
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "pos" not in name:
                parameter.mul_(3)
    model = model.eval().requires_grad_(False)
    loaded = LoadedModel("tiny", "random", model, SIZE, (0.5,) * 3, (0.25,) * 3)
    calibrated, _ = calibrate_network(loaded.network, torch.tensor(noise(8)), find_preset(preset))
    golden = VitModel(export(loaded.network, calibrated.plan), SIZE)
    return Subject(loaded, calibrated, golden)


def make_bench(subject: Subject, count: int = 6, labelled: bool = True) -> Bench:
    images = noise(count, seed=2)
    labels = np.arange(count) % CLASSES if labelled else None
    data = Labelled("noise", tuple(f"n{i}" for i in range(count)), labels, images.__getitem__)
    return Bench(subject, data, {"name": "tiny"}, {"name": "made up", "preset": "w8a8p4"})
