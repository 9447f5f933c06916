# SPDX-License-Identifier: Apache-2.0
"""Coverage of the emitted Verilog: what a simulator has counted, and why some of it is never reached."""
