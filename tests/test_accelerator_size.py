# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the accelerator's size: latches are found, flip-flops are none, units add up to all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

libyosys = pytest.importorskip("pyosys.libyosys")

from benchmarks.accelerator_size import by_unit, latches  # noqa: E402


@pytest.mark.parametrize(
    ("body", "count"), [("always @* if (e) q = d;", 1), ("always @(posedge e) q <= d;", 0)]
)
def test_latches(tmp_path: Path, body: str, count: int) -> None:
    (tmp_path / "top.v").write_text(f"module top(input e, d, output reg q); {body} endmodule")
    design = libyosys.Design()
    libyosys.run_pass(f"read_verilog {tmp_path / 'top.v'}", design)
    assert len(latches(design, tmp_path).splitlines()) == count


def test_units_add_up_to_all() -> None:
    found: dict[str, Any] = {
        "\\top": {"num_cells_by_type": {"top.core": 1, "top.bus": 1, "LUT2": 1}},
        "\\top.bus": {"num_cells_by_type": {"LUT2": 2}},
        "\\top.core": {"num_cells_by_type": {"top.core.array": 1, "LUT2": 4}},
        "\\top.core.array": {"num_cells_by_type": {"LUT2": 8, "top.core.array.part": 2}},
        "\\top.core.array.part": {"num_cells_by_type": {"LUT2": 16}},
    }
    counts = {unit: count["LUT2"] for unit, count in by_unit(found).items()}
    assert counts == {"bus": 2, "array": 40, "memories, wires": 5, "total": 47}
