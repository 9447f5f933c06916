# SPDX-License-Identifier: Apache-2.0
"""The exceptions that mean: the input is at fault, or the machine; not the program."""

import importlib.util

__all__ = ["MissingTool", "Unsupported", "UserError", "check_packages"]


class UserError(Exception):
    """Bad input, told in one clear sentence; the command line prints it and exits with status 2."""


class Unsupported(UserError):
    """A network is sound, but the accelerator cannot run it."""


class MissingTool(UserError):
    """A simulator, a compiler or a package is not installed; the command line exits with status 3."""


def check_packages(extra: str, *packages: str) -> None:
    """Raise MissingTool for the first package that is not installed; ``extra`` of ours brings them all."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingTool(f"{package} is not installed: pip install 'qvit-hw[{extra}]'.")
