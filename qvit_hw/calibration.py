# SPDX-License-Identifier: Apache-2.0
"""From a float network and images to the calibrated model: every method a preset names, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from qvit_hw.calibrated import CalibratedModel
from qvit_hw.correction import attention_gains, correct_bias, refit_weights
from qvit_hw.network import Network
from qvit_hw.observation import Observations, observe, observe_inputs
from qvit_hw.plan import count_tokens
from qvit_hw.planner import make_plan
from qvit_hw.presets import Preset
from qvit_hw.quantize import plan_softmax
from qvit_hw.weights import Moments

__all__ = [
    "CORRECTION_IMAGES",
    "CORRECTION_TOKENS",
    "Preparation",
    "Watch",
    "calibrate_network",
    "prepare",
]

CORRECTION_IMAGES, CORRECTION_TOKENS = 32, 16384
"""Weights and biases are corrected on so many of the images, or as many more as it takes for so many tokens:
a stream of all of them is kept."""

Watch = Callable[[str, int], Callable[[int], None]]
"""Gets the name and the length of a long part, and returns what counts its steps."""


@dataclass(frozen=True, eq=False)
class Preparation:
    """All that calibration has to see before it decides, so that widths can be tried out."""

    network: Network
    images: Tensor
    preset: Preset
    affine: str
    seen: Observations
    gains: Mapping[str, float]
    moments: Mapping[str, Moments] | None

    def build(self, bits: Mapping[str, int] | None = None) -> CalibratedModel:
        """The model with these widths (see :func:`qvit_hw.planner.make_plan`), biases as they are."""
        plan = make_plan(
            self.network, self.seen, self.preset, self.affine, bits, self.gains, self.moments
        )
        return CalibratedModel(self.network, plan)

    def finish(
        self, bits: Mapping[str, int] | None = None, watch: Watch | None = None
    ) -> CalibratedModel:
        """The model with these widths, weights and biases corrected as the preset says.

        To refit weights moves the biases, too: the preset's ``correct_bias`` adds nothing then.
        """
        calibrated, refit = self.build(bits), self.preset.refit
        tokens = count_tokens(self.network, self.network.of("patch_embed")[0].name)
        some = self.images[: max(CORRECTION_IMAGES, CORRECTION_TOKENS // tokens)]
        layers = len(calibrated.plan.weights)
        if refit:
            refit_weights(calibrated, some, refit, _told(watch, "refitting weights", layers))
        elif self.preset.correct_bias:
            correct_bias(calibrated, some, _told(watch, "correcting biases", layers))
        return calibrated


def prepare(
    network: Network,
    images: Tensor,
    preset: Preset,
    affine: str = "dyadic",
    watch: Watch | None = None,
) -> Preparation:
    """Observe a float network on uint8 images."""
    count = len(images)
    seen = observe(network, images, preset, progress=_told(watch, "observing", 2 * count))
    spec, _ = plan_softmax(seen.peaks, preset.softmax_spec())
    gains = attention_gains(network, images, spec, _told(watch, "gains of attention", count))
    moments = None
    if preset.weights != "minmax":
        moments = observe_inputs(network, images, progress=_told(watch, "inputs of weights", count))
    return Preparation(network, images, preset, affine, seen, gains, moments)


def calibrate_network(
    network: Network,
    images: Tensor,
    preset: Preset,
    affine: str = "dyadic",
    bits: Mapping[str, int] | None = None,
    watch: Watch | None = None,
) -> tuple[CalibratedModel, Observations]:
    """Observe a float network on uint8 images and quantise it.

    ``bits``: widths of single weights and tensors, see :func:`qvit_hw.planner.make_plan`.
    """
    prepared = prepare(network, images, preset, affine, watch)
    return prepared.finish(bits, watch), prepared.seen


def _told(watch: Watch | None, what: str, steps: int) -> Callable[[int], None] | None:
    return None if watch is None else watch(what, steps)
