# SPDX-License-Identifier: Apache-2.0
"""LayerNorm of power-of-two-factor codes: the RTL of :mod:`golden.layernorm`.

Two phases, each on its own row: sums while a row arrives, then one multiplication per element and
the affine step. Between them a pipeline turns the sums into two factors per row,

    CR = C * R  and  SR = S * R - 2**(n-1),   so that   rs((C*X - S) * R, n) = (X*CR - SR) >> n

exactly: one multiplier per lane where the formula as written would take two.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from golden.bounds import Interval
from golden.cycles import QUEUE_DEPTH, RowPipeline, tree_levels
from golden.fixedpoint import integer
from golden.layernorm import (
    INTERP_BITS,
    RSQRT_BITS,
    TABLE,
    WORD,
    LayerNormSpec,
    layernorm_pipeline,
)
from rtl.arith import look_up, normalise, product, shift_right, square
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

CHANNEL_BITS = 12
ROWS_UNDER_WAY = QUEUE_DEPTH + 31
"""Rows that may use a bank at once: those queued, one arriving, and those inside the pipelines."""


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
        product), 18 for ECP5 and others (wide products in two pieces). Neither results nor cycles
        depend on it.

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
        params = _Parameters(m, self._spec, self._lanes, self.params)
        sums = self._sums(m, rows, params)
        self._statistics(m, rows, params, *sums)
        self._affine(m, rows, params, output)
        wiring.connect(m, output.o, wiring.flipped(self.o))
        return m

    @property
    def _count_bits(self) -> int:
        """Width of C."""
        return self._spec.max_channels.bit_length()

    def _sums(self, m: Module, rows: RowStore, params: _Parameters) -> tuple[Signal, ...]:
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
            queued.give.eq(rows.done),
        ]
        opening = Signal(init=1)
        with m.If(taken):
            m.d.sync += opening.eq(beat.last)
        shifts, zero_point = params.arrive(m, taken, opening, beat.last)
        code = delayed(m, beat.code, 1, "code")
        keep = delayed(m, beat.keep, 1, "keep")
        terms, squares = [], []
        for lane in range(lanes):
            u = Signal(signed(spec.in_bits + 1), name=f"u_{lane}")
            shift = Signal(range(spec.max_shift + 1), name=f"shift_{lane}")
            m.d.sync += [u.eq(Mux(keep[lane], code[lane] - zero_point, 0)), shift.eq(shifts[lane])]
            x = Signal(signed(bounds["x"].bits), name=f"x_{lane}")
            m.d.sync += x.eq(u << shift)
            m.d.comb += rows.beat_in.x[lane].eq(x)
            terms.append(x)
            magnitude = Signal(spec.in_bits, name=f"magnitude_{lane}")
            m.d.sync += magnitude.eq(Mux(u < 0, -u, u))
            narrow = square(m, magnitude, f"square_{lane}")
            wide = Signal(bounds["square"].bits, name=f"x_squared_{lane}")
            m.d.sync += wide.eq(narrow << (delayed(m, shift, 3, f"shift_{lane}") << 1))
            squares.append(wide)
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
            m, tree(m, squares, name="square_sum", **add), late, "probe_squares"
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
        params: _Parameters,
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
        m.d.sync += [
            difference.eq(
                product(m, count, squares, "count_squares", **port)
                - product(m, total, total, "total_squared", **port)
            ),
            probe_variance.eq(difference + params.eps[delayed(m, bank, 3, "bank")]),
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
        half = Signal(self._max_shift)
        m.d.sync += [
            factor.eq(delayed(m, count, 10, "count") * probe_rsqrt),
            half.eq((1 << probe_rsqrt_shift) >> 1),
        ]
        total_late = delayed(m, total, 10, "total_late")
        scaled_total = product(m, probe_rsqrt, total_late, "scaled_total", **port)
        origin = Signal(rows.row_in.origin.shape())
        m.d.sync += origin.eq(scaled_total - delayed(m, half, 1, "half"))
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
        self, m: Module, rows: RowStore, params: _Parameters, output: OutputQueue
    ) -> None:
        """Phase 2: the z-score, gain, offset, rounding and saturation of each element."""
        spec = self._spec
        m.d.comb += [rows.go.eq(output.room), output.take.eq(rows.step)]
        # Block RAMs answer late in the cycle: their output goes straight into a register.
        beat = Signal.like(rows.beat_out, name="beat")
        row = Signal.like(rows.row_out, name="row")
        m.d.sync += [beat.eq(rows.beat_out), row.eq(rows.row_out)]
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
            score = shift_right(m, centered, shift, spec.bounds["score"].bits, f"score_{lane}")
            gain = delayed(m, gains[lane], 1, f"gain_{lane}")
            if spec.affine == "dyadic":
                gained = product(m, gain.as_signed(), score, f"gained_{lane}", **port)
            else:
                gained = delayed(m, score << gain, 2, f"gained_{lane}")
            moved = Signal(signed(spec.bounds["scaled"].bits + 1), name=f"moved_{lane}")
            m.d.sync += moved.eq(gained + offsets[lane])
            code = moved[spec.output_shift :].as_signed()
            over = code[spec.out_bits - 1 : -1] != code[-1].replicate(len(code) - spec.out_bits)
            limit = Cat((~code[-1]).replicate(spec.out_bits - 1), code[-1])
            m.d.sync += output.payload.code[lane].eq(
                Mux(over, limit, code[: spec.out_bits]).as_signed()
            )
        valid, last = delayed(m, Cat(rows.valid, rows.last), 12, "result")
        m.d.sync += output.payload.keep.eq(delayed(m, beat.keep, 10, "keep_out"))
        m.d.comb += [output.payload.last.eq(last), output.write.eq(valid)]


_LATE_PROBES = {"probe_variance": 4, "probe_rsqrt": 10, "probe_rsqrt_shift": 10}
"""Cycles from a row's sums to each of its later statistics."""


class _Parameters:
    """Two banks of parameters: one for arriving rows, the other being written.

    A row keeps the bank that was current at its first beat. The port is ready while no row uses the
    bank that is not current, so that a write never reaches a row under way.
    """

    def __init__(self, m: Module, spec: LayerNormSpec, lanes: int, port: Any) -> None:
        self._spec, self._lanes = spec, lanes
        self._beats = -(-spec.max_channels // lanes)
        self.current = Signal(name="current_bank")
        self.arriving = Signal(name="arriving_bank")
        self.eps = Array(Signal(spec.eps_bits, name=f"eps_{bank}") for bank in range(2))
        self.point = Array(Signal(range(spec.max_point + 1), name=f"point_{b}") for b in range(2))
        self._zero_point = Array(
            Signal(signed(spec.in_bits), name=f"zero_point_{bank}") for bank in range(2)
        )
        self._users = Array(Signal(range(ROWS_UNDER_WAY + 1), name=f"users_{b}") for b in range(2))
        offset_bits = spec.bounds["offset"].bits + 1  # the rounding half is added in
        self._columns = {
            "shift": self._memories(m, "shift", max(spec.max_shift.bit_length(), 1)),
            "gain": self._memories(m, "gain", spec.gain_range.bits),
            "offset": self._memories(m, "offset", offset_bits),
        }
        self._write(m, port)

    def _memories(self, m: Module, name: str, width: int) -> list[Memory]:
        """One memory per lane, with the bank as the highest address bit."""
        depth = 2 << max(self._beats - 1, 1).bit_length()
        # Deep and narrow ones would otherwise end up in LUTs, at several LUTs a bit.
        attrs = {"ram_style": "block"} if depth > 128 else {}
        memories = []
        for lane in range(self._lanes):
            memories.append(Memory(shape=unsigned(width), depth=depth, init=[], attrs=attrs))
            m.submodules[f"{name}_memory_{lane}"] = memories[-1]
        return memories

    def _address(self, bank: Value, beat: Value) -> Value:
        bits = max(self._beats - 1, 1).bit_length()
        return Cat(beat[:bits], *[0] * (bits - len(beat[:bits])), bank)

    def _write(self, m: Module, port: Any) -> None:
        """Decode a write in one cycle, carry it out in the next; a commit acts at once."""
        spec, idle, bank = self._spec, ~self.current, Signal(name="write_bank")
        m.d.comb += port.ready.eq(self._users[idle] == 0)
        write, word = Signal(name="write"), Signal(32, name="write_data")
        address = Signal(len(port.payload.address), name="write_address")
        row = Signal(CHANNEL_BITS, name="write_row")
        lane = Signal(range(max(self._lanes, 2)), name="write_lane")
        channel = port.payload.address[:CHANNEL_BITS]
        # channel div lanes; for lanes that are no power of two by an exact reciprocal.
        quotient = (channel * -(-(1 << 17) // self._lanes)) >> 17
        m.d.sync += [
            write.eq(port.valid & port.ready),
            word.eq(port.payload.data),
            address.eq(port.payload.address),
            row.eq(quotient),
            lane.eq(channel - quotient * self._lanes),
            bank.eq(idle),
        ]
        with m.If(port.valid & port.ready & (port.payload.address == WORD["commit"])):
            m.d.sync += self.current.eq(idle)
        scalar = write & (address[CHANNEL_BITS:] == 0)
        half = 1 << (spec.output_shift - 1)
        for index in range(2):
            for name, target in (
                ("zero_point", self._zero_point[index]),
                ("point", self.point[index]),
                ("eps_low", self.eps[index][:32]),
                ("eps_high", self.eps[index][32:]),
            ):
                hit = scalar & (address[:CHANNEL_BITS] == WORD[name]) & (bank == index)
                with m.If(hit):
                    m.d.sync += target.eq(word)
        for name, memories in self._columns.items():
            value = (word.as_signed() + half) if name == "offset" else word
            for index, memory in enumerate(memories):
                writer = memory.write_port()
                hit = write & (address[CHANNEL_BITS:] == TABLE[name] >> CHANNEL_BITS)
                m.d.comb += [
                    writer.en.eq(hit & (lane == index)),
                    writer.addr.eq(self._address(bank, row)),
                    writer.data.eq(value),
                ]

    def _read(self, m: Module, name: str, bank: Value, beat: Value) -> list[Value]:
        """One column's entries of a beat, a cycle after its address."""
        entries = []
        for memory in self._columns[name]:
            reader = memory.read_port()
            m.d.comb += reader.addr.eq(self._address(bank, beat))
            entries.append(reader.data)
        return entries

    def arrive(
        self, m: Module, taken: Value, opening: Value, last: Value
    ) -> tuple[list[Value], Value]:
        """Choose the bank of an arriving row; shifts and zero point one cycle after each beat."""
        beat = Signal(range(max(self._beats, 2)), name="arriving_beat")
        bank = Mux(opening, self.current, self.arriving)
        with m.If(taken):
            m.d.sync += [beat.eq(Mux(last, 0, beat + 1)), self.arriving.eq(bank)]
        self._arrived = taken & opening
        return self._read(m, "shift", bank, beat), self._zero_point[self.arriving]

    def leave(self, m: Module, rows: RowStore) -> tuple[list[Value], list[Value]]:
        """Gains and offsets, 7 and 10 cycles after a beat's ``rows.valid``; releases the bank."""
        beat = Signal(range(max(self._beats, 2)), name="leaving_beat")
        with m.If(rows.valid):
            m.d.sync += beat.eq(Mux(rows.last, 0, beat + 1))
        bank = delayed(m, rows.row_out.bank, 5, "leaving_bank")
        beat = delayed(m, beat, 5, "leaving_beat")
        gain = self._read(m, "gain", bank, beat)
        bank, beat = delayed(m, bank, 3, "offset_bank"), delayed(m, beat, 3, "offset_beat")
        offset = self._read(m, "offset", bank, beat)
        released = delayed(m, rows.valid & rows.last, 9, "released")
        released_bank = delayed(m, bank, 1, "released_bank")
        for index in range(2):
            enters = self._arrived & (self.current == index)
            leaves = released & (released_bank == index)
            with m.If(enters & ~leaves):
                m.d.sync += self._users[index].eq(self._users[index] + 1)
            with m.Elif(leaves & ~enters):
                m.d.sync += self._users[index].eq(self._users[index] - 1)
        gains = [delayed(m, entry, 1, f"gain_{lane}") for lane, entry in enumerate(gain)]
        offsets = [
            delayed(m, entry.as_signed(), 1, f"offset_{lane}") for lane, entry in enumerate(offset)
        ]
        return gains, offsets
