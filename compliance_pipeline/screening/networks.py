"""The networks that the package ships: loaded once a process, when first asked, and only as they were measured.
What they hear is `digits`'s and `speech`'s."""

import hashlib
import threading
from pathlib import Path
from typing import Any

_lock = threading.Lock()
_loaded: dict[tuple[str, str], Any] = {}


class ModelError(RuntimeError):
    """A model's file is missing or is not the one that this code was measured with."""


def network(name: str, sha256: str) -> Any:
    """The onnxruntime session of `models/<name>`: one for all threads, since each would cost memory.

    Raises ModelError.
    """
    with _lock:
        if (name, sha256) not in _loaded:
            import onnxruntime

            path = Path(__file__).parent / "models" / name
            try:
                model = path.read_bytes()
            except OSError as problem:
                raise ModelError(f"the model {path} can't be read ({problem}): reinstall the package") from problem
            if hashlib.sha256(model).hexdigest() != sha256:
                raise ModelError(f"the model {path} is not the one with SHA-256 {sha256}: reinstall the package")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            _loaded[name, sha256] = session
        return _loaded[name, sha256]
