"""Make `import torchvision` work on a CPU-only torch.

torchvision's wheel on the package index is linked against CUDA libraries. On a CPU-only torch its
extension cannot be loaded, which torchvision tolerates everywhere but in two places: it registers
fake kernels for `nms` and `qnms` unguarded, and their schemas live in that very extension.
Declaring the two schemas is enough; the detection operators stay unavailable and say so
themselves. A healthy torchvision is left alone.
"""

import contextlib
import importlib.util
from pathlib import Path

import torch

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing_operators() -> bool:
    """Declare torchvision's two schemas if its extension cannot load; True if that was needed."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    for extension in Path(spec.submodule_search_locations[0]).glob("_C*"):
        with contextlib.suppress(OSError, RuntimeError):
            torch.ops.load_library(str(extension))  # what torchvision's own import will do
            return False
    if hasattr(torch.ops.torchvision, "nms"):
        return False
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", _NMS)
    return True
