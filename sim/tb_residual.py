# SPDX-License-Identifier: Apache-2.0
"""cocotb tests of the residual top: one for each case of the job."""

from __future__ import annotations

from typing import Any

import cocotb

from sim.bench import load_job, run_case

JOB = load_job()


@cocotb.test()
@cocotb.parametrize(case=list(range(len(JOB.cases))))
async def rows(dut: Any, case: int) -> None:
    """Send the rows of a case, compare every beat, every cycle that is known, and the registers."""
    await run_case(dut, JOB, case)
