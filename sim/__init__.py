# SPDX-License-Identifier: Apache-2.0
"""Simulation of emitted Verilog with cocotb; sees golden and the manifest, never `rtl`."""
