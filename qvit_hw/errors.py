# SPDX-License-Identifier: Apache-2.0
"""The exceptions that mean: the input is at fault, or the machine; not the program."""

__all__ = ["MissingTool", "Unsupported", "UserError"]


class UserError(Exception):
    """Bad input, told in one clear sentence; the command line prints it and exits with status 2."""


class Unsupported(UserError):
    """A network is sound, but the accelerator cannot run it."""


class MissingTool(UserError):
    """A simulator, a compiler or a package is not installed; the command line exits with status 3."""
