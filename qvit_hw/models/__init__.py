# SPDX-License-Identifier: Apache-2.0
"""The float side: models and images that calibration starts from.

`load_model` brings a float network by name, `images.load_images` raw uint8 images for it, and
`images.normalise` makes of these what the network eats. Nothing here knows of integers:
quantisation starts where this package ends.
"""

from .registry import LoadedModel, check_name, load_model

__all__ = ["LoadedModel", "check_name", "load_model"]
