# SPDX-License-Identifier: Apache-2.0
"""From a float network and images to the calibrated model: every method a preset names, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from qvit_hw.calibrated import CalibratedModel
from qvit_hw.correction import attention_gains, correct_bias
from qvit_hw.network import Network
from qvit_hw.observation import Observations, observe, observe_inputs
from qvit_hw.plan import make_plan
from qvit_hw.presets import Preset
from qvit_hw.quantize import plan_softmax
from qvit_hw.weights import Moments

__all__ = ["CORRECTION_IMAGES", "Preparation", "Watch", "calibrate_network", "prepare"]

CORRECTION_IMAGES = 32
"""At most so many images correct biases: they run at once."""

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
        """The calibrated model with these widths (see :func:`qvit_hw.plan.make_plan`), biases as they are."""
        plan = make_plan(
            self.network, self.seen, self.preset, self.affine, bits, self.gains, self.moments
        )
        return CalibratedModel(self.network, plan)

    def finish(
        self, bits: Mapping[str, int] | None = None, watch: Watch | None = None
    ) -> CalibratedModel:
        """The calibrated model with these widths, biases corrected where the preset says so."""
        calibrated = self.build(bits)
        if self.preset.correct_bias:
            some = self.images[:CORRECTION_IMAGES]
            correct_bias(
                calibrated, some, _told(watch, "correcting biases", len(self.network.nodes))
            )
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

    ``bits``: widths of single weights and tensors, see :func:`qvit_hw.plan.make_plan`.
    """
    prepared = prepare(network, images, preset, affine, watch)
    return prepared.finish(bits, watch), prepared.seen


def _told(watch: Watch | None, what: str, steps: int) -> Callable[[int], None] | None:
    return None if watch is None else watch(what, steps)
