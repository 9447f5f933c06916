# SPDX-License-Identifier: Apache-2.0
"""What a person runs: calibrate, generate, simulate, report, demo. Only here torch and timm are used."""
