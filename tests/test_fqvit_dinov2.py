# SPDX-License-Identifier: Apache-2.0
"""DINOv2 ViT-S/14 on FQ-ViT's datapath: features of crops that were not calibrated on.

The test exists only where the model is installed (`make dinov2`); elsewhere the module says what is missing.
"""

import numpy as np
import torch

from qvit_hw.errors import UserError
from qvit_hw.models import dinov2

WHY_NOT = ""
try:
    dinov2.find_onnx()
except UserError as error:
    WHY_NOT = str(error)

if WHY_NOT:
    print(f"\ntests/test_fqvit_dinov2.py defines no test here: {WHY_NOT}")
else:
    import pytest
    from test_fqvit_plan import Subject

    from qvit_hw.models import load_model
    from qvit_hw.models.images import load_images
    from qvit_hw.references import sqnr

    CALIBRATION, CROPS = 6, 8

    @pytest.fixture(autouse=True)
    def cache_home(tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def test_features_are_as_far_from_float_as_the_program_s():
        model = load_model("dinov2")
        seen, _ = load_images(None, model, CALIBRATION, split="train")
        fresh, _ = load_images(None, model, CROPS, split="test")
        subject = Subject(model.network, torch.tensor(seen), torch.tensor(fresh), model.mean)
        found = subject.agreement(subject.program())
        assert min(found.values()) > 0.995, found
        assert np.mean(list(found.values())) > 0.9995
        # Both are chaotic: a code that differs in the first block is many in the last.
        theirs = subject.program(gelu_bits=None).output(subject.fresh)
        ours = subject.values(subject.network.output.name)
        told = sqnr(subject.output, theirs), sqnr(subject.output, ours), sqnr(theirs, ours)
        print("SQNR of the program, of golden, of one against the other:", told)
        assert min(told[:2]) > 8
        assert abs(told[0] - told[1]) < 3
        assert told[2] > max(told[:2])
