# SPDX-License-Identifier: Apache-2.0
"""Why some places of the Verilog are never reached: (kind, expression on module and text, reason).

Every line of a unit and every bit of its ports needs a reason of its own. Inside a core, bits are counted and
listed, but no name of a signal stands here, so that the cores can change: what their logic does with
each bit is held by the mutants and the proofs.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ACCELERATOR_REASONS", "REASONS"]

BEAT = r"(keep|expected|payload|entry|stored|beat|row)"

WAKE_UP = {r"if \(wake_up_\d+ ?\)": "wakes the process at time zero and does nothing (rtl.emit)"}


def _reasons(**tables: Mapping[str, str]) -> tuple[tuple[str, str, str], ...]:
    """Entries, from a table for each kind of place: why, by expression."""
    return tuple((kind, place, why) for kind, table in tables.items() for place, why in table.items())


REASONS = _reasons(
    line=WAKE_UP
    | {
        r"_core 2'h3:": (
            "the highest bits of a shift of 6 bits, which ends at w/2 + 13, below 48 (golden.layernorm)"
        ),
    },
    toggle={
        r"^qvit_attention (beat|row)\[": (
            "counts places in tables of a row's channels, of which codes and v have none (rtl.stream)"
        ),
        r"\brows\b": "a counter of 32 bits: so many rows take hours",
        r"s_axil_rdata\b": "no register has the bit, or only the counter of rows, which takes hours",
        r"s_axil_a[rw]addr\[[01]\]": "accesses are of whole words",
        r"s_axil_[br]resp\[0\]": "OKAY, SLVERR and DECERR: bit 0 only falls with bit 1",
        rf" \S*{BEAT}\S*:1->0": "lane 0 of a beat is always kept: its bit is 1 from the first on",
        r" (m_axis_tdata|out_\d+)\b": "codes are narrower than their bytes: zeros above them",
        r"\b(outside|status|clear|found)\b": "elements that fill their bytes are never outside",
        r"s_axis_tdata\b": "elements are narrower than their bytes: their sign above them",
        r"\bparams__ready\b": "a parameter that is always taken at once",
        r"^\w+_core": (
            "inside a core: its width is the interval that golden.bounds gives for all specs and parameters"
        ),
    },
)
"""The first that fits counts."""

ACCELERATOR_REASONS = _reasons(
    line=WAKE_UP
    | {
        r"_core_sequencer default: ;": "the states have numbers up to 8, in a register of 4 bits",
    },
    toggle={
        r" (rows|block|working|\w+__payload(\$\d+)?)\[": (
            "bits of a whole record: each is there under the name of its field, too"
        ),
        r"(params|table)__payload\S*address": "a table's places: 64 channels and 256 codes at most",
        r" record\[": "of 32 bits of a parameter's address 14 count, for 64 channels at most",
        r" (image_address|program_address|m_axi_araddr|offset)\S*\[[0-5]\]": "multiples of 64 bytes",
        r"_bus rest\[": "bursts end at multiples of 64 bytes, where every region begins",
        r" m_axi_arlen\S*\[[4-7]\]": "a burst has 16 words at most",
        r" m_axi_ar(burst|cache|prot|size)": "constant",
        r"(gelu_params|softmax_params|params|table)__ready": (
            "a parameter of GELU or softmax is always taken at once"
        ),
        r"_core_sequencer half": "two words for one of the memory: only where the stream is wider",
        r"_core_sequencer place": "a word of 4 bytes holds no more than one record",
        r"_core_softmax i__payload\.mask": "the network masks nothing",
        r"_core_(layernorm|softmax) [io]__ready": "neither refuses the other",
        r"_core_(layernorm|softmax) [io]__payload\.keep\[0\]": "lane 0 of a beat is always kept",
    },
)
"""Likewise, of the accelerator's own modules."""
