# SPDX-License-Identifier: Apache-2.0
"""The models of one network on the same pixels, image by image.

Every function here takes a :class:`Subject` and gives sums that can be added up: results do not depend on how
images are dealt out to batches and processes, to the last bit, if the sums are added in the order of the
images. The float models see one image at a time, on one thread, because the last bits of a float product
depend on its shape; the golden model's results depend on nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import TorchFunctionMode

from golden.vit import VitModel
from qvit_hw.bundle import Bundle
from qvit_hw.calibrated import CalibratedModel
from qvit_hw.errors import UserError
from qvit_hw.evaluation import MODELS, pairs_of
from qvit_hw.fqvit_grids import FqCalibrated, rebuild_fqvit
from qvit_hw.models import LoadedModel, load_model
from qvit_hw.models.images import normalise
from qvit_hw.network import IMAGE, Linear, Network, Node, PatchEmbed
from qvit_hw.stored_plan import is_golden_only, rebuild

__all__ = [
    "SUMS",
    "Outcome",
    "Subject",
    "compare_outputs",
    "compare_tensors",
    "dot",
    "one_thread",
    "rounded_weights",
    "weight_error",
]

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
TIE = 1e-3
"""Distance from a rounding boundary, in codes, within which float rounding may decide."""
OTHER_WEIGHTS = 0.5
"""A :func:`weight_error` from which on the weights are not those that were rounded."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread, so that its sums always have the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class Subject:
    """The models of one network.

    calibrated: None for a preset that is for the golden model alone; then ``fqvit`` tells what the golden
    model's integers mean.
    """

    loaded: LoadedModel
    calibrated: CalibratedModel | None
    golden: VitModel
    fqvit: FqCalibrated | None = None

    @classmethod
    def load(cls, bundle: Bundle, *, checkpoint: Path | None, pretrained: bool) -> Subject:
        """Return the models of a bundle; UserError where its model is another one."""
        about = bundle.manifest["model"]
        loaded = load_model(
            str(about.get("name")),
            checkpoint=checkpoint,
            pretrained=pretrained,
            image_size=_square(bundle.network.input_size),
        )
        calibrated, fqvit = None, None
        if is_golden_only(bundle):
            fqvit = rebuild_fqvit(bundle, loaded.network)
            rounded = fqvit.rounded(loaded.network)
        else:
            calibrated = rebuild(bundle, loaded.network)
            rounded = rounded_weights(calibrated)
        if weight_error(rounded) > OTHER_WEIGHTS:
            raise UserError(
                f"Bundle {str(bundle.path)!r} was made of other weights ({about.get('source')}) than "
                f"{loaded.source}: give the --checkpoint or --pretrained that it was calibrated with."
            )
        return cls(loaded, calibrated, bundle.network, fqvit)

    @property
    def image_size(self) -> int | None:
        """Height and width in pixels; None if they differ."""
        return _square(self.golden.input_size)

    @property
    def network(self) -> Network:
        """The float network that the others are of."""
        return self.loaded.network

    @property
    def models(self) -> tuple[str, ...]:
        """Those of MODELS that there are."""
        return MODELS if self.calibrated is not None else (MODELS[0], MODELS[-1])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every tensor, in order of execution."""
        return tuple(node.name for node in self.network)

    @torch.no_grad()
    def float_output(self, image: Pixels) -> Floats:
        """Output [K] of timm's forward pass for one image [1, C, H, W]."""
        out: torch.Tensor = self.loaded.model(normalise(image, self.loaded))
        return np.asarray(out[0].double().numpy())

    def outputs(self, images: Pixels) -> Floats:
        """Outputs [models, B, K] for images [B, C, H, W]."""
        found = [np.stack([self.float_output(image[None]) for image in images])]
        if self.calibrated is not None:
            found.append(np.concatenate([self.calibrated_outputs(each[None]) for each in images]))
        found.append(
            self.values(self.network.output.name, {self.golden.output: self.golden(images)})
        )
        assert len(found) == len(self.models)
        return np.stack(found)

    def calibrated_outputs(self, images: Pixels, active: Collection[str] | None = None) -> Floats:
        """Outputs [B, K] of the calibrated model with these quantisers (None: all of them)."""
        assert self.calibrated is not None
        return np.asarray(self.calibrated.run(torch.tensor(images), active).double().numpy())

    def values(self, name: str, golden: Mapping[str, Any]) -> Floats:
        """What the golden model's integers, a mapping by node, say of a tensor of the network."""
        if self.calibrated is not None:
            return np.ascontiguousarray(self.calibrated.values(name, golden[name]))
        assert self.fqvit is not None
        place = self.fqvit.places[name]
        return np.ascontiguousarray(self.fqvit.values(place, golden[place]))


def _square(input_size: tuple[int, int, int]) -> int | None:
    _, height, width = input_size
    return height if height == width else None


def rounded_weights(calibrated: CalibratedModel) -> Iterator[tuple[Floats, Floats]]:
    """The weights [out, in] of every layer, the float network's and the rounded ones, in one unit."""
    for name, planned in calibrated.plan.weights.items():
        node = calibrated.network[name]
        assert isinstance(node, Linear | PatchEmbed)
        unit = 1.0 if IMAGE in node.inputs else calibrated.plan.affine(node.inputs[0]).scale
        rounded = np.asarray(planned.codes * np.reshape(planned.scale, (-1, 1)), np.float64)
        yield node.weight.double().numpy() * unit, rounded


def weight_error(weights: Iterable[tuple[Floats, Floats]]) -> float:
    """Noise of rounded weights, as a share of their energy, from pairs (exact, rounded), one a layer.

    The median over all layers: about 0.01 at 4 bits, about 2 for the weights of another network.
    """
    errors = [
        dot(error := rounded - exact, error) / max(dot(exact, exact), np.finfo(float).tiny)
        for exact, rounded in weights
    ]
    return float(np.median(errors))


# ----------------------------------------------------------------------------------------- outputs


@dataclass(frozen=True)
class Outcome:
    """What the models make of one image; tuples are in the order of the models, or of their pairs.

    first: the largest output's number.  rank: how many classes come before the label, 0 if it is the
    first guess; None without a label.  energy: of the outputs.  noise, cosine: of a pair's outputs.  equal:
    whether a pair's outputs are equal.
    """

    first: tuple[int, ...]
    rank: tuple[int, ...] | None
    energy: tuple[float, ...]
    noise: tuple[float, ...]
    cosine: tuple[float, ...]
    equal: tuple[bool, ...]


def compare_outputs(
    subject: Subject, images: Pixels, labels: Sequence[int] | None = None
) -> list[Outcome]:
    """Run all models on images [B, C, H, W] and compare what comes out, image by image."""
    outputs, models = subject.outputs(images), subject.models
    pairs = [(models.index(one), models.index(other)) for one, other in pairs_of(models)]
    return [
        _outcome(outputs[:, place], pairs, None if labels is None else int(labels[place]))
        for place in range(len(images))
    ]


def _outcome(outputs: Floats, pairs: Sequence[tuple[int, int]], label: int | None) -> Outcome:
    energies = [dot(out, out) for out in outputs]
    return Outcome(
        first=tuple(int(out.argmax()) for out in outputs),
        rank=None if label is None else tuple(_rank(out, label) for out in outputs),
        energy=tuple(energies),
        noise=tuple(dot(d := outputs[b] - outputs[a], d) for a, b in pairs),
        cosine=tuple(
            _cosine(dot(outputs[a], outputs[b]), energies[a], energies[b]) for a, b in pairs
        ),
        equal=tuple(bool((outputs[a] == outputs[b]).all()) for a, b in pairs),
    )


def _rank(outputs: Floats, label: int) -> int:
    """Classes before the label; of equal ones the first comes first, as argmax has it."""
    before, own = outputs[:label], outputs[label]
    return int((outputs > own).sum() + (before == own).sum())


def dot(one: Floats, other: Floats) -> float:
    """Sum of products in an order that depends on the shape alone (a BLAS promises none)."""
    return float((one * other).sum())


def _cosine(dot: float, one: float, other: float) -> float:
    return dot / float(np.sqrt(one * other)) if one > 0 and other > 0 else float(one == other)


# ----------------------------------------------------------------------------------------- tensors

SUMS = (
    "elements",
    "signal",
    "noise_golden",
    "energy_golden",
    "dot_golden",
    "noise_calibrated",
    "energy_calibrated",
    "dot_calibrated",
    "end_to_end",
    "operator",
    "ties",
)
"""What is summed up over each tensor, in this order; see :class:`qvit_hw.evaluation.Tensor`. From
noise_calibrated on 0 without a calibrated model."""


def compare_tensors(subject: Subject, image: Pixels) -> tuple[Floats, float]:
    """Compare every tensor of one image [1, C, H, W]: (sums [tensors, SUMS], error of lowering).

    The error of lowering is the largest difference between timm's output and the network's in float, as
    a share of the largest output.
    """
    golden = subject.golden.trace(image)
    calibrated = subject.calibrated
    recorded = {} if calibrated is None else calibrated.record(torch.tensor(image))
    known: Mapping[str, Any] = {IMAGE: image, **golden}
    sums: dict[str, list[float]] = {}

    def tap(node: Node, out: torch.Tensor) -> torch.Tensor:
        name = node.name
        exact = out.double().numpy()
        row = [float(exact.size), dot(exact, exact), *_against(subject.values(name, golden), exact)]
        if calibrated is not None:
            row += _against(subject.values(name, recorded), exact)
            row.append(float((golden[name] != recorded[name]).sum()))
            row += _compare_operator(calibrated, node, known)
        sums[name] = row + [0.0] * (len(SUMS) - len(row))
        return out

    lowered = subject.network.run(torch.tensor(image), tap)[0].double().numpy()
    plain = subject.float_output(image)
    largest = float(np.abs(plain).max())
    wrong = float(np.abs(lowered - plain).max()) / largest if largest else 0.0
    return np.array([sums[name] for name in subject.names]), wrong


def _against(values: Floats, exact: Floats) -> list[float]:
    """Noise, energy and product of values beside exact ones."""
    error = values - exact
    return [dot(error, error), dot(values, values), dot(values, exact)]


class _Roundings(TorchFunctionMode):
    """Keeps what the calibrated model rounds: its one rounding is ``torch.floor(x + 0.5)``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Floats] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.floor:
            self.seen.append(args[0].double().numpy() - 0.5)
        return func(*args, **(kwargs or {}))

    def last(self, shape: tuple[int, ...]) -> Floats | None:
        """The last numbers of this shape that rounding changed; None if there were none."""
        fit = (x for x in reversed(self.seen) if x.shape == shape and (x != np.floor(x)).any())
        return next(fit, None)


def _compare_operator(
    calibrated: CalibratedModel, node: Node, codes: Mapping[str, Any]
) -> tuple[float, float]:
    """(codes that differ, those of them that are ties) of one operator on the golden model's inputs."""
    golden = codes[node.name]
    with _Roundings() as roundings:
        found = calibrated.step(node.name, {each: codes[each] for each in node.inputs})
    wrong = found != golden
    exact = roundings.last(wrong.shape) if wrong.any() else None
    if exact is None:
        return float(wrong.sum()), 0.0
    distance = np.abs(exact - np.floor(exact) - 0.5)[wrong]
    return float(wrong.sum()), float((distance <= TIE).sum())
