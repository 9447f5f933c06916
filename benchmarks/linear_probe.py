# SPDX-License-Identifier: Apache-2.0
"""A linear probe on DINOv2 features of digits: ``python benchmarks/linear_probe.py [PRESET[:REFIT] ...]``.

scikit-learn's digits, enlarged to 98 x 98 pixels (50 tokens), go through the pretrained DINOv2 ViT-S/14.
A logistic regression on the float network's features is compared with one on the golden model's: as it
would be used, fitted to the features that it will get, and, harder, fitted to the float features and
handed the golden ones. One of 359 held-out digits is 0.28 %, so everything is done SUBSETS times, each
time calibrated on other digits of the training split, and the mean counts. Needs the weights of
``make dinov2``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from golden.vit import VitModel
from qvit_hw.calibration import calibrate_network
from qvit_hw.integers import export
from qvit_hw.models import load_model
from qvit_hw.models.digits import digits_images
from qvit_hw.presets import adapt, find_preset

SIZE = 98
CALIBRATION, SUBSETS = 128, 3
"""Images of a calibration, and how many calibrations there are; no two share an image."""


def enlarged(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (uint8 [n, 3, SIZE, SIZE], labels) of a split."""
    digits, labels = digits_images(split)
    pictures = [Image.fromarray(digit[0]).resize((SIZE, SIZE), Image.BICUBIC) for digit in digits]
    grey = np.stack([np.asarray(picture) for picture in pictures])
    return np.repeat(grey[:, None], 3, axis=1), np.asarray(labels)


def main() -> None:
    """Print top-1 of the probe on float and golden features, for each preset named (w8a8p4).

    A number behind a preset's name is the damping of ``calibrate --refit``.
    """
    network = load_model("dinov2", image_size=SIZE).network
    train, train_labels = enlarged("train")
    test, test_labels = enlarged("test")

    def features(images: np.ndarray) -> np.ndarray:
        parts = torch.tensor(images).split(32)
        return torch.cat([network.run(part) for part in parts]).numpy()

    def probe(known: np.ndarray) -> Callable[[np.ndarray], float]:
        """Fit to features of the training split; return what gives top-1 of features of the other."""
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        fitted.fit(known, train_labels)
        return lambda found: 100 * float((fitted.predict(found) == test_labels).mean())

    exact, transferred = features(test), probe(features(train))
    print(f"{len(test)} held-out digits; float features: {transferred(exact):.2f} %", flush=True)
    for name in sys.argv[1:] or ["w8a8p4"]:
        rows, (preset, _, refit) = [], name.partition(":")
        chosen = adapt(find_preset(preset), refit=float(refit) if refit else None)
        for subset in range(SUBSETS):
            picked = torch.tensor(train[subset :: len(train) // CALIBRATION][:CALIBRATION])
            twin, _ = calibrate_network(network, picked, chosen)
            golden = VitModel(export(network, twin.plan), network.input_size)
            known, found = (twin.values(golden.output, golden(images)) for images in (train, test))
            noise = 10 * np.log10((exact**2).sum() / ((found - exact) ** 2).sum())
            rows.append((probe(known)(found), transferred(found), noise))
            print(f"{name}, calibration {subset + 1}: {told(rows[-1])}", flush=True)
        print(f"{name}, mean: {told(np.mean(rows, axis=0))}", flush=True)


def told(row: Sequence[float]) -> str:
    own, other, noise = row
    return f"golden features {own:.2f} %, with the float features' probe {other:.2f} %; {noise:.1f} dB SQNR"


if __name__ == "__main__":
    main()
