# SPDX-License-Identifier: Apache-2.0
"""Mutants of the units: made, run against the testbenches, and compared with the originals."""
