# SPDX-License-Identifier: Apache-2.0
"""Proofs: units as formulas, golden on symbols, and a solver between them."""
