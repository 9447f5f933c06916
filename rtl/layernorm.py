# SPDX-License-Identifier: Apache-2.0
"""LayerNorm of power-of-two-factor codes: the RTL of :mod:`golden.layernorm`.

Two phases, each on its own row: sums while a row arrives, then one multiplication per element and
the affine step. Between them a pipeline turns the sums into two factors per row,

    CR = C * R  and  SR = S * R - 2**(n-1),   so that   rs((C*X - S) * R, n) = (X*CR - SR) >> n

exactly: one multiplier per lane where the formula as written would take two. (With affine "shift" the
half is not in SR: each lane's last adder rounds instead, for nothing.)
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from golden.bounds import Interval
from golden.cycles import RowPipeline, tree_levels
from golden.fixedpoint import integer
from golden.layernorm import (
    INTERP_BITS,
    RSQRT_BITS,
    LayerNormSpec,
    layernorm_pipeline,
)
from rtl.arith import carried, look_up, normalise, one_of_four, product, shift_right, squares
from rtl.layernorm_banks import LayerNormBanks
from rtl.row import (
    OUTPUT_DEPTH,
    PARAM_WRITE,
    OutputQueue,
    RowStore,
    delayed,
    popcount,
    row_places,
    tree,
)

__all__ = ["PtfLayerNorm"]
class PtfLayerNorm(wiring.Component):
    """Streaming LayerNorm unit; the formula is :mod:`golden.layernorm`'s, bit for bit.

    Parameters
    ----------
    spec : LayerNormSpec
        Widths, affine step and the longest row.
    lanes : int
        Elements per beat, 1 to 32. No result depends on it.
    port_bits : int
        Width of the wider port of the target's multipliers, 18 to 27: 27 for UltraScale+ (one slice a
        product), 18 for ECP5 and others (wide products in two pieces, smaller block RAMs). Neither
        results nor cycles depend on it.

    Latency and initiation interval: ``pipeline``; ceil(C / lanes) cycles a row, row after row.

    Members
    -------
    i : In(stream.Signature(...))
        ``code``: lanes signed codes; ``keep``: a prefix of ones, all ones but in the last beat of a
        row; ``last``: ends a row. The row's length is counted, not configured.
    o : Out(stream.Signature(...))
        ``code``: lanes signed codes; ``keep`` and ``last`` as they came in.
    params : In(stream.Signature(...))
        ``golden.layernorm.LayerNormParams.words``. Writes fill the bank that no row uses (the port
        waits for it); ``commit`` makes it current for rows whose first beat comes later.
    """

    def __init__(self, spec: LayerNormSpec, *, lanes: int, port_bits: int = 27) -> None:
        self._spec, self._lanes = spec, lanes
        self._port_bits = integer(port_bits, "Multiplier port width", 18, 27)
        self._pipeline = layernorm_pipeline(spec, lanes)
        beat_in = {"code": data.ArrayLayout(signed(spec.in_bits), lanes), "keep": lanes, "last": 1}
        beat_out = {"code": data.ArrayLayout(signed(spec.out_bits), lanes), "keep": lanes, "last": 1}
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout(beat_in))),
                "o": Out(stream.Signature(data.StructLayout(beat_out))),
                "params": In(stream.Signature(PARAM_WRITE)),
            }
        )

    @property
    def spec(self) -> LayerNormSpec:
        """Widths, affine step and the longest row."""
        return self._spec

    @property
    def lanes(self) -> int:
        """Elements per beat."""
        return self._lanes

    @property
    def port_bits(self) -> int:
        """Width of the wider port of the target's multipliers."""
        return self._port_bits

    @property
    def pipeline(self) -> RowPipeline:
        """Exact cycle model."""
        return self._pipeline

    @property
    def _max_shift(self) -> int:
        """Largest shift n behind R: for a variance that fills its register and p = 0."""
        return self._spec.variance_bits // 2 + RSQRT_BITS - 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        _spec, bounds = self._spec, self._spec.bounds
        x_shape = signed(bounds["x"].bits)
        scaled_row = bounds["centered"] * bounds["rsqrt"] + Interval(-(1 << self._max_shift), 0)
        row = {
            "factor": unsigned(self._count_bits + RSQRT_BITS),
            "origin": signed((scaled_row | bounds["total"] * bounds["rsqrt"]).bits + 1),
            "shift": range(self._max_shift + 1),
            "bank": 1,
        }
        m.submodules.rows = rows = RowStore(
            data.StructLayout({"x": data.ArrayLayout(x_shape, self._lanes), "keep": self._lanes}),
            data.StructLayout(row),
            max_beats=self._pipeline.max_beats,
            slack=self._pipeline.slack,
        )
        m.submodules.output = output = OutputQueue(
            self.o.signature.members["payload"].shape, OUTPUT_DEPTH
        )
        # Families of 18-bit multipliers have block RAMs of 18 kb at most, the others of 36.
        deepest = 2048 if self._port_bits == 18 else 4096
        params = LayerNormBanks(m, self._spec, self._lanes, self.params, deepest)
        sums = self._sums(m, rows, params)
        self._statistics(m, rows, params, *sums)
        self._affine(m, rows, params, output)
        wiring.connect(m, output.o, wiring.flipped(self.o))
        return m

    @property
    def _count_bits(self) -> int:
        """Width of C."""
        return self._spec.max_channels.bit_length()

    def _sums(self, m: Module, rows: RowStore, params: LayerNormBanks) -> tuple[Signal, ...]:
        """Phase 1: X of each arriving beat, stored; S, Q and C of the row. Done 7 + levels cycles
        after the beat is taken; returns (S, Q, C, ended), where ended = (beat counted, row ends).
        """
        spec, lanes, bounds = self._spec, self._lanes, self._spec.bounds
        beat, taken = self.i.payload, Signal()
        m.submodules.queued = queued = row_places()
        m.d.comb += [
            self.i.ready.eq(rows.room & queued.room),
            taken.eq(self.i.valid & self.i.ready),
            rows.take.eq(taken),
            queued.take.eq(taken & beat.last),
            queued.give.eq(delayed(m, rows.done, 1, "row_given")),
        ]
        opening = Signal(init=1)
        with m.If(taken):
            m.d.sync += opening.eq(beat.last)
        shifts, zero_point = params.arrive(m, taken, opening, beat.last)
        code = delayed(m, beat.code, 1, "code")
        keep = delayed(m, beat.keep, 1, "keep")
        terms, deviations, shifted = [], [], []
        for lane in range(lanes):
            u = Signal(signed(spec.in_bits + 1), name=f"u_{lane}", reset_less=True)
            m.d.sync += u.eq(Mux(keep[lane], code[lane] - zero_point, 0))
            shift = carried(m, shifts[lane], 1, f"shift_{lane}")
            x = Signal(signed(bounds["x"].bits), name=f"x_{lane}")
            m.d.sync += x.eq(_chosen([u << choice for choice in range(spec.max_shift + 1)], shift))
            m.d.comb += rows.beat_in.x[lane].eq(x)
            terms.append(x)
            deviations.append(u)
            shifted.append(delayed(m, shift, 3, f"shift_late_{lane}"))
        x_squared = []
        for lane, square in enumerate(squares(m, deviations, "square")):
            wide = Signal(bounds["square"].bits, name=f"x_squared_{lane}", reset_less=True)
            choices = [square << 2 * choice for choice in range(spec.max_shift + 1)]
            m.d.sync += wide.eq(_chosen(choices, shifted[lane]))
            x_squared.append(wide)
        m.d.comb += [
            rows.write.eq(delayed(m, taken, 3, "taken")),
            rows.beat_in.keep.eq(delayed(m, keep, 2, "stored_keep")),
        ]
        levels = tree_levels(lanes)
        add = {"node": lambda a, b: a + b}
        early = delayed(m, Cat(taken, opening), 3 + levels, "early")
        total = self._accumulate(m, tree(m, terms, name="sum", **add), early, "total")
        late = delayed(m, early, 3, "late")
        probe_squares = self._accumulate(
            m, tree(m, x_squared, name="square_sum", **add), late, "probe_squares"
        )
        ones = Signal(range(lanes + 1))
        m.d.sync += ones.eq(popcount(beat.keep))
        count = self._accumulate(m, delayed(m, ones, 5 + levels, "ones"), late, "count")
        ended = delayed(m, Cat(taken, taken & beat.last), 7 + levels, "ended")
        probe_total = Signal.like(total)
        probe_total_valid, probe_squares_valid = Signal(), Signal()
        m.d.comb += [
            probe_total.eq(delayed(m, total, 3, "total")),
            probe_total_valid.eq(ended[1]),
            probe_squares_valid.eq(ended[1]),
        ]
        return probe_total, probe_squares, count, ended

    def _accumulate(self, m: Module, term: Value, flags: Value, name: str) -> Signal:
        """Sum of a row's terms, visible one cycle later; ``flags`` = (term is valid, row begins)."""
        widths = {
            "total": signed(self._spec.bounds["total"].bits),
            "probe_squares": unsigned(self._spec.bounds["squares"].bits),
            "count": unsigned(self._count_bits),
        }
        result = Signal(widths[name], name=name)
        with m.If(flags[0]):
            m.d.sync += result.eq(Mux(flags[1], 0, result) + term)
        return result

    def _statistics(
        self,
        m: Module,
        rows: RowStore,
        params: LayerNormBanks,
        total: Signal,
        squares: Signal,
        count: Signal,
        ended: Value,
    ) -> None:
        """The row's factors, 13 cycles after its sums: D (4), leading zeros (3), R (3), CR, SR (3)."""
        spec, port = self._spec, {"port_bits": self._port_bits}
        bank = delayed(m, params.arriving, 6 + tree_levels(self._lanes), "arriving")
        probe_variance = Signal(spec.variance_bits)
        difference = Signal(spec.variance_bits)
        # Adders of UltraScale+ take in the multiplexer of their wider operand: E with the top of the rest.
        eps = params.eps[delayed(m, bank, 3, "bank")]
        m.d.sync += [
            difference.eq(
                product(m, count, squares, "count_squares", **port)
                - product(m, total, total, "total_squared", **port)
            ),
            probe_variance.eq(Cat(eps, difference[len(eps) :]) + difference[: len(eps)]),
        ]
        segment_bits = spec.table_bits - 1
        leading, zeros = normalise(m, probe_variance, 1 + segment_bits + INTERP_BITS, "leading")

        # An even count of zeros leaves v in [2, 4), the upper half of the table.
        index = Cat(leading[INTERP_BITS:-1], ~zeros[0])
        base, slope = Signal(RSQRT_BITS), Signal(max(s for _, s in spec.rsqrt).bit_length())
        m.d.sync += [
            base.eq(look_up([b for b, _ in spec.rsqrt], index, RSQRT_BITS)),
            slope.eq(look_up([s for _, s in spec.rsqrt], index, len(slope))),
        ]
        chord = Signal(len(slope) + INTERP_BITS)
        probe_rsqrt = Signal(RSQRT_BITS)
        m.d.sync += [
            chord.eq(slope * delayed(m, leading[:INTERP_BITS], 1, "part")),
            probe_rsqrt.eq(delayed(m, base, 1, "base") - (chord >> INTERP_BITS)),
        ]
        probe_rsqrt_shift = Signal(range(self._max_shift + 1))
        pairs = delayed(m, (zeros >> 1)[: range(self._max_shift + 1).stop.bit_length()], 2, "pairs")
        point = params.point[delayed(m, bank, 9, "bank_late")]
        m.d.sync += probe_rsqrt_shift.eq(self._max_shift - pairs - point)

        factor = Signal(rows.row_in.factor.shape())
        m.d.sync += factor.eq(delayed(m, count, 10, "count") * probe_rsqrt)
        total_late = delayed(m, total, 10, "total_late")
        scaled_total = product(m, probe_rsqrt, total_late, "scaled_total", **port)
        origin = Signal(rows.row_in.origin.shape())
        if spec.affine == "dyadic":
            half = Signal(self._max_shift)
            m.d.sync += half.eq((1 << probe_rsqrt_shift) >> 1)
            m.d.sync += origin.eq(scaled_total - delayed(m, half, 1, "half"))
        else:  # rounds in its last adder
            m.d.sync += origin.eq(scaled_total)
        strobes = {name: Signal(name=f"{name}_valid") for name in _LATE_PROBES}
        for name, cycles in _LATE_PROBES.items():
            m.d.comb += strobes[name].eq(delayed(m, ended[1], cycles, f"{name}_ended"))
        done = delayed(m, ended, 13, "row_done")
        m.d.comb += [
            rows.count.eq(done[0]),
            rows.count_last.eq(done[1]),
            rows.row_in.factor.eq(delayed(m, factor, 2, "factor")),
            rows.row_in.origin.eq(origin),
            rows.row_in.shift.eq(delayed(m, probe_rsqrt_shift, 3, "row_shift")),
            rows.row_in.bank.eq(delayed(m, bank, 13, "row_bank")),
        ]

    def _affine(
        self, m: Module, rows: RowStore, params: LayerNormBanks, output: OutputQueue
    ) -> None:
        """Phase 2: the z-score, gain, offset, rounding and saturation of each element."""
        spec = self._spec
        m.d.comb += [rows.go.eq(output.room), output.take.eq(rows.step)]
        # Block RAMs answer late in the cycle: their output goes straight into a register, without a reset, so
        # that it can be the RAM's own.
        beat = carried(m, rows.beat_out, 1, "beat")
        row = delayed(m, rows.row_out, 1, "row")
        gains, offsets = params.leave(m, rows)
        # Operands rest in a register of their own, which can sit next to the multiplier.
        factor = delayed(m, row.factor, 1, "row_factor")
        origin = delayed(m, row.origin, 3, "row_origin")
        shift = delayed(m, row.shift, 4, "row_shift_now")
        port = {"port_bits": self._port_bits}
        for lane in range(self._lanes):
            x = delayed(m, beat.x[lane], 1, f"operand_{lane}")
            scaled = product(m, x, factor, f"scaled_{lane}", **port)
            centered = Signal(signed(len(origin)), name=f"centered_{lane}")
            m.d.sync += centered.eq(scaled - origin)
            gain = delayed(m, gains[lane], 1, f"gain_{lane}")
            moved = Signal(signed(spec.bounds["scaled"].bits + 1), name=f"moved_{lane}")
            score_bits = spec.bounds["score"].bits
            if spec.affine == "dyadic":
                score = shift_right(m, centered, shift, score_bits, f"score_{lane}")
                gained = product(m, gain.as_signed(), score, f"gained_{lane}", **port)
                m.d.sync += moved.eq(gained + offsets[lane])
            else:
                doubled = Cat(Const(0, 1), centered)
                halves = shift_right(m, doubled, shift, score_bits + 1, f"score_{lane}")
                gained, carry = self._shifted(m, halves, gain, f"gained_{lane}")
                # The carry enters below the lowest bit.
                raised = Cat(carry, gained).as_signed() + Cat(carry, offsets[lane]).as_signed()
                m.d.sync += moved.eq(raised >> 1)
            code = moved[spec.output_shift :].as_signed()
            over = code[spec.out_bits - 1 : -1] != code[-1].replicate(len(code) - spec.out_bits)
            limit = Cat((~code[-1]).replicate(spec.out_bits - 1), code[-1])
            m.d.sync += output.payload.code[lane].eq(
                Mux(over, limit, code[: spec.out_bits]).as_signed()
            )
        valid, last = delayed(m, Cat(rows.valid, rows.last), 12, "result")
        m.d.sync += output.payload.keep.eq(delayed(m, beat.keep, 10, "keep_out"))
        m.d.comb += [output.payload.last.eq(last), output.write.eq(valid)]

    def _shifted(self, m: Module, halves: Value, gain: Value, name: str) -> tuple[Value, Value]:
        """(a, carry), 2 cycles later: a + carry = t << gain, where t = (halves >> 1) + halves[0].

        With as many copies of the rounding bit behind the score, the shift and the carry round it:
        r * (2**gain - 1) + r = r << gain.
        """
        r = halves[0]
        padded = Cat(r.replicate(self._spec.gain_range.high), halves[1:])
        # By 7 - gain to the right; its first digit is left to the adder's own LUTs.
        choices = [padded.as_signed() >> 3 - digit for digit in range(4)]
        fine = carried(m, one_of_four(choices, gain).as_signed(), 1, f"{name}_fine")
        carry, coarse = delayed(m, Cat(r, ~gain[2]), 2, f"{name}_carry")
        fine = carried(m, fine, 1, f"{name}_late")
        return Mux(coarse, fine >> 4, fine), carry


def _chosen(choices: list[Value], index: Value) -> Value:
    """``choices[index]``."""
    return one_of_four(choices, index) if len(choices) <= 4 else Array(choices)[index]


_LATE_PROBES = {"probe_variance": 4, "probe_rsqrt": 10, "probe_rsqrt_shift": 10}
"""Cycles from a row's sums to each of its later statistics."""
