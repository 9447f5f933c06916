# SPDX-License-Identifier: Apache-2.0
"""Three models of one network on the same pixels, image by image.

Every function here takes a :class:`Subject` and gives sums that can be added up: results do not depend on how
images are dealt out to batches and processes, to the last bit, if the sums are added in the order of the
images. The float models see one image at a time, on one thread, because the last bits of a float product
depend on its shape; the golden model's results depend on nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
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
from qvit_hw.evaluation import MODELS, PAIRS
from qvit_hw.models import LoadedModel, load_model
from qvit_hw.models.images import normalise
from qvit_hw.network import IMAGE, Linear, Network, Node, PatchEmbed
from qvit_hw.stored_plan import rebuild

__all__ = [
    "SUMS",
    "Outcome",
    "Subject",
    "compare_outputs",
    "compare_tensors",
    "dot",
    "one_thread",
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
    """The three models of one network."""

    loaded: LoadedModel
    calibrated: CalibratedModel
    golden: VitModel

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
        calibrated = rebuild(bundle, loaded.network)
        if weight_error(calibrated) > OTHER_WEIGHTS:
            raise UserError(
                f"Bundle {str(bundle.path)!r} was made of other weights ({about.get('source')}) than "
                f"{loaded.source}: give the --checkpoint or --pretrained that it was calibrated with."
            )
        return cls(loaded, calibrated, bundle.network)

    @property
    def image_size(self) -> int | None:
        """Height and width in pixels; None if they differ."""
        return _square(self.golden.input_size)

    @property
    def network(self) -> Network:
        """The float network that the calibrated model is of."""
        return self.calibrated.network

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
        """Outputs [3, B, K] of the models, in the order of MODELS, for images [B, C, H, W]."""
        found = np.stack(
            [
                np.stack([self.float_output(image[None]) for image in images]),
                np.concatenate([self.calibrated_outputs(image[None]) for image in images]),
                self.calibrated.values(self.golden.output, self.golden(images)),
            ]
        )
        assert len(found) == len(MODELS)
        return found

    def calibrated_outputs(self, images: Pixels, active: Collection[str] | None = None) -> Floats:
        """Outputs [B, K] of the calibrated model with these quantisers (None: all of them)."""
        return np.asarray(self.calibrated.run(torch.tensor(images), active).double().numpy())


def _square(input_size: tuple[int, int, int]) -> int | None:
    _, height, width = input_size
    return height if height == width else None


def weight_error(calibrated: CalibratedModel) -> float:
    """Noise of the rounded weights against the float network's, as a share of their energy.

    The median over all layers: about 0.01 at 4 bits, about 2 for the weights of another network.
    """
    errors = []
    for name, planned in calibrated.plan.weights.items():
        node = calibrated.network[name]
        assert isinstance(node, Linear | PatchEmbed)
        unit = 1.0 if IMAGE in node.inputs else calibrated.plan.affine(node.inputs[0]).scale
        exact = node.weight.double().numpy() * unit
        error = planned.codes * np.reshape(planned.scale, (-1, 1)) - exact
        errors.append(dot(error, error) / max(dot(exact, exact), np.finfo(float).tiny))
    return float(np.median(errors))


# ----------------------------------------------------------------------------------------- outputs


@dataclass(frozen=True)
class Outcome:
    """What the models make of one image; tuples are in the order of MODELS or PAIRS.

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
    """Run all three models on images [B, C, H, W] and compare what comes out, image by image."""
    outputs = subject.outputs(images)
    return [
        _outcome(outputs[:, place], None if labels is None else int(labels[place]))
        for place in range(len(images))
    ]


def _outcome(outputs: Floats, label: int | None) -> Outcome:
    energies = [dot(out, out) for out in outputs]
    pairs = [(MODELS.index(one), MODELS.index(other)) for one, other in PAIRS]
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
"""What is summed up over each tensor, in this order; see :class:`qvit_hw.evaluation.Tensor`."""


def compare_tensors(subject: Subject, image: Pixels) -> tuple[Floats, float]:
    """Compare every tensor of one image [1, C, H, W]: (sums [tensors, SUMS], error of lowering).

    The error of lowering is the largest difference between timm's output and the network's in float, as
    a share of the largest output.
    """
    golden = subject.golden.trace(image)
    recorded = subject.calibrated.record(torch.tensor(image))
    known: Mapping[str, Any] = {IMAGE: image, **golden}
    sums: dict[str, list[float]] = {}

    def tap(node: Node, out: torch.Tensor) -> torch.Tensor:
        name = node.name
        exact = out.double().numpy()
        row = [float(exact.size), dot(exact, exact)]
        for codes in (golden[name], recorded[name]):
            values = np.ascontiguousarray(subject.calibrated.values(name, codes))
            error = values - exact
            row += [dot(error, error), dot(values, values), dot(values, exact)]
        row.append(float((golden[name] != recorded[name]).sum()))
        sums[name] = [*row, *_compare_operator(subject, node, known)]
        return out

    lowered = subject.network.run(torch.tensor(image), tap)[0].double().numpy()
    plain = subject.float_output(image)
    largest = float(np.abs(plain).max())
    wrong = float(np.abs(lowered - plain).max()) / largest if largest else 0.0
    return np.array([sums[name] for name in subject.names]), wrong


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
    subject: Subject, node: Node, codes: Mapping[str, Any]
) -> tuple[float, float]:
    """(codes that differ, those of them that are ties) of one operator on the golden model's inputs."""
    golden = codes[node.name]
    with _Roundings() as roundings:
        found = subject.calibrated.step(node.name, {each: codes[each] for each in node.inputs})
    wrong = found != golden
    exact = roundings.last(wrong.shape) if wrong.any() else None
    if exact is None:
        return float(wrong.sum()), 0.0
    distance = np.abs(exact - np.floor(exact) - 0.5)[wrong]
    return float(wrong.sum()), float((distance <= TIE).sum())
