# SPDX-License-Identifier: Apache-2.0
"""The bit-accurate integer model, and the specification of every operator. NumPy only, no float."""
