# SPDX-License-Identifier: Apache-2.0
"""Softmax to log2 codes: the RTL of :mod:`golden.softmax`, one row each ceil(N / lanes) cycles.

Three phases, each on its own row: the maximum while a row arrives; distances, exponentials and
their sum; codes. No multiplier, no divider.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from golden.cycles import RowPipeline, tree_levels
from golden.softmax import ALIGN_STEPS, SoftmaxSpec, softmax_pipeline
from rtl.arith import carried, look_up
from rtl.row import (
    OUTPUT_DEPTH,
    PARAM_WRITE,
    Credits,
    OutputQueue,
    RowStore,
    delayed,
    row_places,
    tree,
)

__all__ = ["Log2Softmax"]


class Log2Softmax(wiring.Component):
    """Streaming softmax unit; the formula is :mod:`golden.softmax`'s, bit for bit.

    Parameters
    ----------
    spec : SoftmaxSpec
        Widths, tables and the longest row.
    lanes : int
        Elements per beat, 1 to 32. No result depends on it.

    Latency and initiation interval: ``pipeline``; ceil(N / lanes) cycles a row, row after row.

    Members
    -------
    i : In(stream.Signature(...))
        ``score``: lanes signed scores; ``mask``: a one takes the element out of the row; ``keep``: a
        prefix of ones, all ones but in the last beat of a row; ``last``: ends a row.
    o : Out(stream.Signature(...))
        ``code``: lanes codes; ``keep`` and ``last`` as they came in.
    params : In(stream.Signature(...))
        Word 0: the scores' fraction bits; a row samples it with its first beat.
    """

    def __init__(self, spec: SoftmaxSpec, *, lanes: int) -> None:
        self._spec, self._lanes = spec, lanes
        self._pipeline = softmax_pipeline(spec, lanes)
        score = data.ArrayLayout(signed(spec.score_bits), lanes)
        beat_in = {"score": score, "mask": lanes, "keep": lanes, "last": 1}
        code = data.ArrayLayout(unsigned(spec.code_bits), lanes)
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout(beat_in))),
                "o": Out(
                    stream.Signature(data.StructLayout({"code": code, "keep": lanes, "last": 1}))
                ),
                "params": In(stream.Signature(PARAM_WRITE)),
            }
        )

    @property
    def spec(self) -> SoftmaxSpec:
        """Widths, tables and the longest row."""
        return self._spec

    @property
    def lanes(self) -> int:
        """Elements per beat."""
        return self._lanes

    @property
    def pipeline(self) -> RowPipeline:
        """Exact cycle model."""
        return self._pipeline

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        spec, lanes = self._spec, self._lanes
        score = data.ArrayLayout(signed(spec.score_bits), lanes)
        distance = data.ArrayLayout(unsigned(spec.distance_bits), lanes)
        most = spec.bounds["log_total"].high + (1 << (spec.code_shift - 1))  # the rounding half is in it
        shape = {"max_beats": self._pipeline.max_beats, "slack": self._pipeline.slack}
        m.submodules.scores = scores = RowStore(
            data.StructLayout({"score": score, "active": lanes, "keep": lanes}),
            data.StructLayout({"maximum": signed(spec.score_bits), "align": range(ALIGN_STEPS)}),
            **shape,
        )
        m.submodules.distances = distances = RowStore(
            data.StructLayout({"distance": distance, "keep": lanes}),
            data.StructLayout({"log_total": range(most + 1)}),
            **shape,
        )
        m.submodules.output = output = OutputQueue(
            self.o.signature.members["payload"].shape, OUTPUT_DEPTH
        )
        m.submodules.rows = rows = row_places()
        self._maximum(m, scores, rows)
        self._exponentials(m, scores, distances)
        self._codes(m, distances, output)
        m.d.comb += rows.give.eq(delayed(m, distances.done, 1, "row_given"))
        wiring.connect(m, output.o, wiring.flipped(self.o))
        return m

    def _maximum(self, m: Module, scores: RowStore, rows: Credits) -> None:
        """Phase 1: store the beat as it arrives; the largest active score of the row.

        Scores are compared with their sign bit flipped: then 0 is the lowest, and comparing them is a
        borrow and nothing more.
        """
        spec, lanes = self._spec, self._lanes
        beat, taken = self.i.payload, Signal()
        align = Signal(range(ALIGN_STEPS))  # F - f
        m.d.comb += [self.params.ready.eq(1), taken.eq(self.i.valid & self.i.ready)]
        with m.If(self.params.valid & (self.params.payload.address == 0)):
            m.d.sync += align.eq(spec.frac_bits - self.params.payload.data[:3])
        m.d.comb += [
            self.i.ready.eq(scores.room & rows.room),
            scores.take.eq(taken),
            rows.take.eq(taken & beat.last),
            scores.write.eq(taken),
            scores.beat_in.score.eq(beat.score),
            scores.beat_in.active.eq(beat.keep & ~beat.mask),
            scores.beat_in.keep.eq(beat.keep),
        ]
        opening = Signal(init=1)  # the next beat is a row's first
        row_align = Signal.like(align)
        with m.If(taken):
            m.d.sync += opening.eq(beat.last)
            with m.If(opening):
                m.d.sync += row_align.eq(align)

        candidates = []
        for lane in range(lanes):
            candidate = Signal(spec.score_bits, name=f"candidate_{lane}", reset_less=True)
            active = scores.beat_in.active[lane]
            m.d.sync += candidate.eq(Mux(active, _flipped(beat.score[lane]), 0))
            candidates.append(candidate)
        largest = tree(m, candidates, lambda a, b: Mux(a > b, a, b), "largest")
        levels = tree_levels(lanes)
        first = delayed(m, opening, 1 + levels, "first")
        counted = delayed(m, Cat(taken, taken & beat.last), 2 + levels, "counted")
        align_now = delayed(m, row_align, 1 + levels, "row_align")

        maximum = Signal(spec.score_bits)
        probe_maximum = Signal(signed(spec.score_bits))
        probe_maximum_valid = Signal()
        with m.If(delayed(m, taken, 1 + levels, "arrived")):
            with m.If(first | (largest > maximum)):
                m.d.sync += maximum.eq(largest)
        m.d.comb += [
            probe_maximum.eq(_flipped(maximum)),
            probe_maximum_valid.eq(counted.all()),
            scores.count.eq(counted[0]),
            scores.count_last.eq(counted[1]),
            scores.row_in.maximum.eq(probe_maximum),
            scores.row_in.align.eq(align_now),
        ]

    def _exponentials(self, m: Module, scores: RowStore, distances: RowStore) -> None:
        """Phase 2: distances from the maximum, their exponentials, the sum and its logarithm."""
        spec, lanes = self._spec, self._lanes
        m.d.comb += [scores.go.eq(distances.room), distances.take.eq(scores.step)]
        # Block RAMs answer late in the cycle: their output goes straight into a register, without a reset, so
        # that it can be the RAM's own.
        beat = carried(m, scores.beat_out, 1, "beat")
        row = delayed(m, scores.row_out, 1, "row")
        align = delayed(m, row.align, 1, "align")
        terms = []
        for lane in range(lanes):
            gap = Signal(spec.score_bits, name=f"gap_{lane}")
            active = Signal(name=f"active_{lane}")
            m.d.sync += [gap.eq(row.maximum - beat.score[lane]), active.eq(beat.active[lane])]
            aligned = Array(gap << step for step in range(ALIGN_STEPS))[align]
            distance = Signal(spec.distance_bits, name=f"distance_{lane}", reset_less=True)
            m.d.sync += distance.eq(aligned)
            with m.If(~active | aligned[spec.distance_bits :].any()):
                m.d.sync += distance.eq(spec.bounds["distance"].high)
            m.d.comb += distances.beat_in.distance[lane].eq(distance)
            terms.append(self._exponential(m, distance, f"exponential_{lane}"))
        total = tree(m, terms, lambda a, b: a + b, "partial")
        levels = tree_levels(lanes)
        m.d.comb += [
            distances.write.eq(delayed(m, scores.valid, 3, "valid")),
            distances.beat_in.keep.eq(delayed(m, beat.keep, 2, "keep")),
        ]
        valid, first, last = delayed(
            m, Cat(scores.valid, scores.first, scores.last), 5 + levels, "summand"
        )
        probe_total = Signal(spec.bounds["total"].bits)
        probe_total_valid = Signal()
        with m.If(valid):
            m.d.sync += probe_total.eq(Mux(first, 0, probe_total) + total)
        ended = delayed(m, Cat(valid, valid & last), 1, "ended")
        m.d.comb += probe_total_valid.eq(ended[1])
        self._logarithm(m, probe_total, ended, distances)

    def _exponential(self, m: Module, distance: Signal, name: str) -> Signal:
        """``EXP2[d mod 2**F] >> (d div 2**F)`` in two cycles: table and fine shift, coarse shift.

        Table and two bits of shift are one function of F + 2 bits: a single LUT6 per bit at F = 4.
        """
        spec = self._spec
        table = [
            spec.exp2[index % (1 << spec.frac_bits)] >> (index >> spec.frac_bits)
            for index in range(4 << spec.frac_bits)
        ]
        fine = Signal(spec.exp_bits, name=f"{name}_fine")
        octave = distance[spec.frac_bits :]
        m.d.sync += fine.eq(look_up(table, distance[: spec.frac_bits + 2], spec.exp_bits))
        coarse = delayed(m, octave[2:], 1, f"{name}_octave")
        exponential = Signal(spec.exp_bits, name=name)
        m.d.sync += exponential.eq(fine >> (coarse << 2))
        return exponential

    def _logarithm(
        self, m: Module, total: Signal, ended: Value, distances: RowStore
    ) -> None:
        """L in three cycles: down to the leading one by 4s, by 1s, and what the table tells of the bits
        behind it; the rounding half is added to it.

        A total below 1.0 is 0 (all masked), and 0 has L = 0 by the table's first entry.
        """
        spec = self._spec
        point = spec.exp_bits - 1
        behind = point - spec.log_index_bits
        window = Signal(spec.log_index_bits + 4)  # the leading one is in the upper four
        fours = Signal(range(max(-(-(len(total) - point) // 4), 2)))
        m.d.sync += [window.eq(total[behind:]), fours.eq(0)]
        for four in range(1, -(-(len(total) - point) // 4)):  # later ones win
            with m.If(total[point + 4 * four : point + 4 * four + 4].any()):
                m.d.sync += [window.eq(total[behind + 4 * four :]), fours.eq(four)]
        upper, ones = window[spec.log_index_bits :], Signal(2)
        m.d.comb += ones.eq(Mux(upper[2:].any(), Cat(upper[3], 1), upper[1]))
        index = Signal(spec.log_index_bits)
        whole = Signal(spec.bounds["log_total"].bits - spec.frac_bits or 1)
        m.d.sync += [index.eq(window >> ones), whole.eq(Cat(ones, fours))]
        probe_log_total = Signal(spec.bounds["log_total"].bits)
        probe_log_total_valid = Signal()
        m.d.sync += probe_log_total.eq(Cat(look_up(spec.log2, index, spec.frac_bits), whole))
        counted = delayed(m, ended, 3, "row_ended")
        m.d.comb += [
            probe_log_total_valid.eq(counted[1]),
            distances.count.eq(counted[0]),
            distances.count_last.eq(counted[1]),
            distances.row_in.log_total.eq(probe_log_total + (1 << (spec.code_shift - 1))),
        ]

    def _codes(self, m: Module, distances: RowStore, output: OutputQueue) -> None:
        """Phase 3: add, shift, saturate."""
        spec = self._spec
        m.d.comb += [distances.go.eq(output.room), output.take.eq(distances.step)]
        beat = carried(m, distances.beat_out, 1, "stored")
        log_total = delayed(m, distances.row_out.log_total, 1, "log_total")
        code = Signal.like(output.payload.code, reset_less=True)
        m.d.comb += output.payload.code.eq(code)
        for lane in range(self._lanes):
            rounded = (log_total + beat.distance[lane]) >> spec.code_shift
            m.d.sync += code[lane].eq(rounded)
            with m.If(rounded[spec.code_bits :].any()):
                m.d.sync += code[lane].eq(spec.last_code)
        valid, last = delayed(m, Cat(distances.valid, distances.last), 2, "result")
        m.d.sync += output.payload.keep.eq(beat.keep)
        m.d.comb += [output.payload.last.eq(last), output.write.eq(valid)]


def _flipped(score: Value) -> Value:
    """``score`` with its sign bit flipped: unsigned in the same order, or signed again."""
    return Cat(score[:-1], ~score[-1])
