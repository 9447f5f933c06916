# SPDX-License-Identifier: Apache-2.0
"""The stream units as the proofs about streams build them: narrow specs, two sets of parameters, two rows.

Control does not depend on widths, so that narrow units say as much about it as wide ones. It does depend on
the depth of queues: with the depths of the catalogue no stall reaches the input within a provable number of
cycles. :meth:`Subject.build` therefore takes depths, and the proofs about stalls use shallow ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import rtl.row
from golden.attend_unit import attend_pipeline, attend_words
from golden.attention import AttendSpec, attend
from golden.gelu import GeluParams, GeluSpec, gelu, gelu_pipeline
from golden.layernorm import LayerNormParams, LayerNormSpec, layernorm, layernorm_pipeline
from golden.requant import RequantParams, RequantSpec, requant_pipeline, requantise
from golden.residual import ResidualParams, ResidualSpec, residual, residual_pipeline
from golden.softmax import SoftmaxParams, SoftmaxSpec, softmax, softmax_pipeline
from qvit_hw.proofs.circuit import Circuit
from rtl.attention import ShiftAttend
from rtl.gelu import GeluTable
from rtl.layernorm import PtfLayerNorm
from rtl.requant import Requantiser
from rtl.residual import PtfResidual
from rtl.row import OutputQueue, RowStore
from rtl.softmax import Log2Softmax

__all__ = ["SHALLOW", "SUBJECTS", "Depths", "Fields", "Subject", "fields_of"]

Fields = dict[str, tuple[int, int, int]]
"""Of a payload's fields: lowest bit, width of an element, elements."""


@dataclass(frozen=True)
class Depths:
    """Places of the output queue, of a ring of beats, and of a queue of rows."""

    output: int
    ring: int
    rows: int

    def __str__(self) -> str:
        return f"room for {self.output} beats at the output, {self.ring} in a ring, {self.rows} rows"


SHALLOW = Depths(output=4, ring=4, rows=2)
"""So shallow that every stall reaches the input after a few beats."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A unit and what goes through it.

    make: the component.  max_beats: of a row, 0 where any number is fine.  lanes: elements a beat.
    words: writes of each set of parameters.  rows: elements of each row, by field of the input's payload.
    codes: golden's codes of each row with each set, [set][row].  latency: golden's, of the longest row.
    before: beats of the stream ``v``, which come before any row.  late: of a set's words one that the rows
    read as late as any.  anything: which of the rows stand for all of their length; the solver takes so many.
    """

    name: str
    scope: str
    make: Callable[[], Any]
    lanes: int
    max_beats: int
    words: Sequence[Sequence[tuple[int, int]]]
    rows: Sequence[dict[str, list[int]]]
    codes: Sequence[Sequence[list[int]]]
    latency: int
    before: Sequence[int] = ()
    late: int = 0
    anything: Sequence[int] = (0, 1)

    @property
    def reduces(self) -> bool:
        """Whether a row becomes one beat: of attention's codes and v."""
        return bool(self.before)

    def beats(self, row: int) -> int:
        """Beats of a row."""
        return -(-len(next(iter(self.rows[row].values()))) // self.lanes)

    def build(self, depths: Depths | None = None) -> tuple[Circuit, Fields, Fields]:
        """The circuit, and the fields of its input and its output."""
        unit = self.make()
        circuit = Circuit.of(unit) if depths is None else _with_depths(unit, depths)
        return circuit, fields_of(unit.i.payload.shape()), fields_of(unit.o.payload.shape())


def _with_depths(unit: Any, depths: Depths) -> Circuit:
    """The unit's circuit with queues no deeper than that."""
    elaborate = unit.elaborate

    def shortened(platform: Any) -> Any:
        m = elaborate(platform)
        for name in m._named_submodules:
            part = m.submodules[name]
            if isinstance(part, OutputQueue):
                part._depth = min(part._depth, depths.output)
            elif isinstance(part, RowStore):
                part._depth = min(part._depth, depths.ring)
        return m

    vars(unit)["elaborate"] = shortened
    module = vars(rtl.row)
    rows, module["QUEUE_DEPTH"] = module["QUEUE_DEPTH"], depths.rows
    try:
        return Circuit.of(unit)
    finally:
        module["QUEUE_DEPTH"] = rows


def fields_of(layout: Any) -> Fields:
    """The fields of a payload's layout."""
    fields: Fields = {}
    for name, field in layout:
        count = getattr(field.shape, "length", field.width if name in ("keep", "mask") else 1)
        fields[name] = (field.offset, field.width // count, count)
    return fields


def _softmax() -> Subject:
    spec = SoftmaxSpec(
        max_tokens=4, score_bits=8, frac_bits=2, code_bits=3, exp_bits=12, log_index_bits=2
    )
    sets = [SoftmaxParams(frac=2), SoftmaxParams(frac=1)]
    scores, masks = [[5, -3, 2], [-8, 7, 7, 90]], [[0, 0, 0], [0, 0, 0, 1]]
    codes = [
        [
            softmax(np.array(t), spec, each, np.array(m, bool)).tolist()
            for t, m in zip(scores, masks, strict=True)
        ]
        for each in sets
    ]
    return Subject(
        name="softmax",
        anything=(1,),
        scope="2 lanes, rows of 1 or 2 beats, 8-bit scores, 3-bit codes",
        make=lambda: Log2Softmax(spec, lanes=2),
        latency=softmax_pipeline(spec, 2).latency(4),
        lanes=2,
        max_beats=2,
        words=[each.words(spec) for each in sets],
        rows=[{"score": t, "mask": m} for t, m in zip(scores, masks, strict=True)],
        codes=codes,
    )


def _layernorm() -> Subject:
    spec = LayerNormSpec(
        max_channels=4, in_bits=4, out_bits=3, max_shift=1, eps_bits=8, affine="shift", table_bits=4
    )
    sets = [
        LayerNormParams(
            zero_point=-1,
            eps=1,
            point=7,
            shift=np.array([0, 1, 0]),
            gain=np.array([5, 6, 4]),
            offset=np.array([0, 3 << 13, -(1 << 14)]),
        ),
        LayerNormParams(
            zero_point=2,
            eps=9,
            point=6,
            shift=np.array([1, 0, 1]),
            gain=np.array([7, 6, 7]),
            offset=np.array([1 << 14, 0, 1 << 13]),
        ),
    ]
    rows = [[5, -3, 2], [-8, 7, 6]]
    return Subject(
        name="layernorm",
        anything=(1,),
        late=12,
        scope="2 lanes, rows of 1 or 2 beats, 4-bit codes, affine 'shift'",
        make=lambda: PtfLayerNorm(spec, lanes=2),
        latency=layernorm_pipeline(spec, 2).latency(4),
        lanes=2,
        max_beats=2,
        words=[each.words(spec) for each in sets],
        rows=[{"code": q} for q in rows],
        codes=[[layernorm(np.array(q), spec, each).tolist() for q in rows] for each in sets],
    )


def _gelu() -> Subject:
    spec = GeluSpec(in_bits=4, out_bits=3)
    every = np.arange(-8, 8)
    sets = [GeluParams(table=np.clip(every, -4, 3)), GeluParams(table=(3 * every + 1) % 8 - 4)]
    rows = [[5, -3, 2], [-8, 7]]
    return Subject(
        name="gelu",
        late=2,
        scope="2 lanes, 4-bit codes in, 3-bit codes out",
        make=lambda: GeluTable(spec, lanes=2),
        latency=gelu_pipeline(spec, 2).latency(2),
        lanes=2,
        max_beats=0,
        words=[each.words(spec) for each in sets],
        rows=[{"code": q} for q in rows],
        codes=[[gelu(np.array(q), spec, each).tolist() for q in rows] for each in sets],
    )


def _requant() -> Subject:
    spec = RequantSpec(acc_bits=8, out_bits=3)
    sets = [
        RequantParams(multiplier=np.array(m), shift=np.array(n), zero_point=z)
        for m, n, z in (([40000, 33000, 65535], [21, 20, 19], -1), ([32768, 50001, 47000], [20, 22, 18], 2))
    ]
    rows = [[100, -57, 9], [-128, 127, -3]]
    return Subject(
        name="requant",
        scope="2 lanes, 8-bit accumulators, 3-bit codes",
        make=lambda: Requantiser(spec, lanes=2),
        latency=requant_pipeline(spec, 2).latency(2),
        lanes=2,
        max_beats=0,
        words=[each.words(spec) for each in sets],
        rows=[{"acc": a} for a in rows],
        codes=[[requantise(np.array(a), spec, each).tolist() for a in rows] for each in sets],
    )


def _residual() -> Subject:
    spec = ResidualSpec(acc_bits=8, gain_bits=16, max_shift=1)
    # Factors of a bit or two: the solver multiplies any elements by either set's.
    sets = [
        ResidualParams(
            in_zero_point=3,
            in_shift=np.array([0, 1]),
            gain=1 << 15,
            multiplier=np.array([1 << 10, 1 << 15]),
            shift=15,
            zero_point=-4,
            out_shift=np.array([1, 0]),
        ),
        ResidualParams(
            in_zero_point=-7,
            in_shift=np.array([1, 0]),
            gain=1 << 14,
            multiplier=np.array([3 << 14, 1 << 13]),
            shift=16,
            zero_point=11,
            out_shift=np.array([0, 1]),
        ),
    ]
    rows = [([100, -57], [-9, 4]), ([-128, 127], [127, -128])]
    return Subject(
        name="residual",
        late=1,
        scope="1 lane, 8-bit codes and accumulators",
        make=lambda: PtfResidual(spec, lanes=1),
        latency=residual_pipeline(spec, 1).latency(1),
        lanes=1,
        max_beats=0,
        words=[each.words(spec) for each in sets],
        rows=[{"pair": [a & 255 | (q & 255) << 8 for q, a in zip(*row, strict=True)]} for row in rows],
        codes=[
            [residual(np.array(q), np.array(a), spec, each).tolist() for q, a in rows] for each in sets
        ],
    )


def _attend() -> Subject:
    softmax_spec = SoftmaxSpec(
        max_tokens=4, score_bits=8, frac_bits=2, code_bits=3, exp_bits=12, log_index_bits=2, base="sqrt2"
    )
    spec = AttendSpec(softmax=softmax_spec, value_bits=4, out_bits=4, codes="any")
    v = np.array([[5], [-8], [7]])
    sets = [
        RequantParams(multiplier=np.array([40000]), shift=np.array([19]), zero_point=-1),
        RequantParams(multiplier=np.array([65000]), shift=np.array([20]), zero_point=3),
    ]
    rows = [[1, 7, 2], [0, 3, 5]]
    codes = [
        [attend(np.array([[c]]), v[None], spec, each).reshape(-1).tolist() for c in rows] for each in sets
    ]
    last = len(v) - 1
    return Subject(
        name="attention",
        anything=(0,),
        late=2,
        scope="1 lane, rows of up to 4 codes of 3 bits, base sqrt 2, v of 4 bits",
        make=lambda: ShiftAttend(spec, lanes=1),
        latency=attend_pipeline(spec, 1).latency(4),
        lanes=1,
        max_beats=4,
        words=[attend_words(each, spec, 0) for each in sets],
        rows=[{"code": c} for c in rows],
        codes=codes,
        before=[int(x[0]) & 15 | (at == last) << 4 for at, x in enumerate(v)],
    )


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "softmax": _softmax,
    "layernorm": _layernorm,
    "gelu": _gelu,
    "requant": _requant,
    "residual": _residual,
    "attention": _attend,
}
"""By name."""
