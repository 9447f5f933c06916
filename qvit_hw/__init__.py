# SPDX-License-Identifier: Apache-2.0
"""What a person runs: calibrate, generate, simulate, report, demo. Torch and timm live here alone."""
