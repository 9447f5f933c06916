# SPDX-License-Identifier: Apache-2.0
"""``python -m qvit_hw`` is ``qvit-hw``."""

from .cli import main

if __name__ == "__main__":
    main()
