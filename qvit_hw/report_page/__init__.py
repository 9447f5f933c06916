# SPDX-License-Identifier: Apache-2.0
"""The parts of the report: what simulate left, what the bundle holds, pictures, the page itself."""
