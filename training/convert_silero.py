"""Makes `screening/models/silero_vad_8k.onnx` of Silero VAD's wheel or of the `silero_vad.onnx` in it; needs `onnx`.
Not shipped: the product only reads the made file (see `screening/speech.py` and the card beside the model)."""

import argparse
import hashlib
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

IN_WHEEL = "silero_vad/data/silero_vad.onnx"
ORIGINAL_SHA = "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"
"""Of Silero VAD 6.2.3's file; another version's weights may have other names, or differ."""
FRAME, CONTEXT = 256, 32

Floats = NDArray[np.float32]


def convert(original: bytes) -> bytes:
    """The 8 kHz network alone, as one graph over all frames of a span: frames (n, 288) in, chances of speech (n) out.

    The order of the constants and the names are part of the file, and so of its SHA-256."""
    branches = {
        a.name: a.g for n in onnx.load_from_string(original).graph.node if n.op_type == "If" for a in n.attribute
    }
    weights = {
        node.output[0].removeprefix("If_0_else_branch__Inline_0__"): numpy_helper.to_array(node.attribute[0].t)
        for node in branches["else_branch"].node
        if node.op_type == "Constant"
    }

    def lstm(name: str) -> Floats:
        """PyTorch's order of gates (input, forget, cell, output) in ONNX's (input, output, forget, cell)."""
        i, f, g, o = np.split(weights[f"decoder.rnn.{name}"], 4)
        return np.concatenate([i, o, f, g])

    constants = {
        "pads": np.array([0, 0, 0, 32], np.int64),
        "one": np.array([1], np.int64),
        "zero": np.array([0], np.int64),
        "half": np.array([65], np.int64),
        "end": np.array([130], np.int64),
        "stft": weights["stft.forward_basis_buffer"],
        "W": lstm("weight_ih")[None],
        "R": lstm("weight_hh")[None],
        "B": np.concatenate([lstm("bias_ih"), lstm("bias_hh")])[None],
        "dw": weights["decoder.decoder.2.weight"][0],
        "db": weights["decoder.decoder.2.bias"],
        "flat": np.array([-1], np.int64),
    }
    for at in range(4):
        constants[f"w{at}"] = weights[f"encoder.{at}.reparam_conv.weight"]
        constants[f"b{at}"] = weights[f"encoder.{at}.reparam_conv.bias"]
    constants["axes"] = np.array([1, 2], np.int64)
    node = helper.make_node
    nodes = [
        node("Pad", ["frames", "pads"], ["padded"], mode="reflect"),
        node("Unsqueeze", ["padded", "one"], ["lines"]),
        node("Conv", ["lines", "stft"], ["spectrum"], strides=[64], kernel_shape=[128]),
        node("Slice", ["spectrum", "zero", "half", "one"], ["real"]),
        node("Slice", ["spectrum", "half", "end", "one"], ["imaginary"]),
        node("Mul", ["real", "real"], ["rr"]),
        node("Mul", ["imaginary", "imaginary"], ["ii"]),
        node("Add", ["rr", "ii"], ["power"]),
        node("Sqrt", ["power"], ["x0"]),
    ]
    for at, stride in enumerate((1, 2, 2, 1)):
        nodes += [
            node("Conv", [f"x{at}", f"w{at}", f"b{at}"], [f"c{at}"], pads=[1, 1], strides=[stride], kernel_shape=[3]),
            node("Relu", [f"c{at}"], [f"x{at + 1}"]),
        ]
    nodes += [
        node("Transpose", ["x4"], ["steps"], perm=[0, 2, 1]),  # (frames, 1, 128): a sequence of batch 1
        node("LSTM", ["steps", "W", "R", "B"], ["hidden"], hidden_size=128),
        node("Squeeze", ["hidden", "axes"], ["states"]),
        node("Relu", ["states"], ["positive"]),
        node("MatMul", ["positive", "dw"], ["product"]),
        node("Add", ["product", "db"], ["logit"]),
        node("Sigmoid", ["logit"], ["chances"]),
        node("Reshape", ["chances", "flat"], ["speech"]),
    ]
    graph = helper.make_graph(
        nodes,
        "silero_vad_8k",
        [helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["n", CONTEXT + FRAME])],
        [helper.make_tensor_value_info("speech", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def largest_difference(original: bytes, made: bytes, samples: Floats) -> float:
    """Between the chances of speech that the two give, frame by frame, for one span at 8 kHz."""
    body = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    before = np.concatenate([np.zeros((1, CONTEXT), np.float32), body[:-1, -CONTEXT:]])
    frames = np.concatenate([before, body], axis=1)
    ours = onnxruntime.InferenceSession(made).run(None, {"frames": frames})[0]
    session = onnxruntime.InferenceSession(original)
    state, theirs = np.zeros((2, 1, 128), np.float32), []
    for frame in frames:
        chance, state = session.run(None, {"input": frame[None], "state": state, "sr": np.array(8000, np.int64)})
        theirs.append(chance[0, 0])
    return float(np.abs(ours - theirs).max())


def main() -> None:
    from compliance_pipeline.sandbox.speech import speak
    from compliance_pipeline.screening.speech import SPEECH_MODEL_SHA

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="silero_vad-6.2.3-py3-none-any.whl, or the silero_vad.onnx in it")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    if zipfile.is_zipfile(args.source):
        with zipfile.ZipFile(args.source) as wheel:
            original = wheel.read(IN_WHEEL) if IN_WHEEL in wheel.namelist() else b""
    else:
        original = args.source.read_bytes()
    if hashlib.sha256(original).hexdigest() != ORIGINAL_SHA:
        raise SystemExit(f"{args.source} isn't or doesn't hold Silero VAD 6.2.3's {IN_WHEEL}: get that wheel from PyPI")
    made = convert(original)
    args.out.write_bytes(made)
    sha = hashlib.sha256(made).hexdigest()
    print(f"SHA-256 {sha}, {'as' if sha == SPEECH_MODEL_SHA else 'NOT as'} in screening.speech.SPEECH_MODEL_SHA")
    noise = 0.1 * np.random.default_rng(0).standard_normal(200 * FRAME)
    for name, samples in (("noise", noise), ("speech", speak("My card number is four one one one."))):
        span = np.asarray(samples, np.float32)
        difference = largest_difference(original, made, span)
        print(f"differs from the original by at most {difference:.1e} in {len(span) / 8000:.1f} s of {name}")


if __name__ == "__main__":
    main()
