# SPDX-License-Identifier: Apache-2.0
"""The trade-off between accuracy and hardware: what can be chosen, what it gives, and the page of it."""
