# SPDX-License-Identifier: Apache-2.0
"""The compiler: from a golden network to a program of the accelerator (``docs/accelerator.md``).

``stages`` recognises the network and refuses what the machine cannot run, ``layout`` gives every tensor its
place, ``payload`` makes parameters and tiles, ``schedule`` puts the instructions in order, ``program`` is
what comes out, ``tensors`` puts the words of a run together again, ``listing`` prints it. NumPy only.
"""
