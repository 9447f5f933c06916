# SPDX-License-Identifier: Apache-2.0
"""Amaranth components, one for each golden operator. Imports golden (specs, tables) and amaranth."""
