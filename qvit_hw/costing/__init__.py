# SPDX-License-Identifier: Apache-2.0
"""What hardware costs, measured with open tools: units, targets, a cache, a baseline, the peers."""
