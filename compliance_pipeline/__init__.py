"""Flags compliance violations in contact-center recordings."""

import os

# Before anything imports onnxruntime, whose Linux builds would otherwise report on each use to their maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
