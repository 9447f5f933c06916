# SPDX-License-Identifier: Apache-2.0
"""Why some places of the Verilog are never reached: (kind, expression on module and text, reason).

Every line of a unit and every bit of its ports needs a reason of its own. Inside a core, bits are counted and
listed, but no name of a signal stands here, so that the cores can change: what their logic does with
each bit is held by the mutants and the proofs.
"""

from __future__ import annotations

__all__ = ["REASONS"]

BEAT = r"(keep|expected|payload|entry|stored|beat|row)"

REASONS: tuple[tuple[str, str, str], ...] = (
    ("line", r"if \(wake_up_\d+ ?\)", "wakes the process at time zero and does nothing (rtl.emit)"),
    (
        "line",
        r"_core 2'h3:",
        "the highest bits of a shift of 6 bits, which ends at w/2 + 13, below 48 (golden.layernorm)",
    ),
    (
        "toggle",
        r"^qvit_attention (beat|row)\[",
        "counts places in tables of a row's channels, of which codes and v have none (rtl.stream)",
    ),
    ("toggle", r"\brows\b", "a counter of 32 bits: so many rows take hours"),
    ("toggle", r"s_axil_rdata\b", "no register has the bit, or only the counter of rows, which takes hours"),
    ("toggle", r"s_axil_a[rw]addr\[[01]\]", "accesses are of whole words"),
    ("toggle", r"s_axil_[br]resp\[0\]", "OKAY, SLVERR and DECERR: bit 0 only falls with bit 1"),
    ("toggle", rf" \S*{BEAT}\S*:1->0", "lane 0 of a beat is always kept: its bit is 1 from the first on"),
    ("toggle", r" (m_axis_tdata|out_\d+)\b", "codes are narrower than their bytes: zeros above them"),
    ("toggle", r"\b(outside|status|clear|found)\b", "elements that fill their bytes are never outside"),
    ("toggle", r"s_axis_tdata\b", "elements are narrower than their bytes: their sign above them"),
    ("toggle", r"\bparams__ready\b", "a parameter that is always taken at once"),
    (
        "toggle",
        r"^\w+_core",
        "inside a core: its width is the interval that golden.bounds gives for all specs and parameters",
    ),
)
"""The first that fits counts."""
