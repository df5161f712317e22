"""Helpers of these tests stand in this folder; nothing here asks the network."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")

# torchvision as the package index has it is built for CUDA. With a torch for the CPU it has no operators, and declares
# what this one does at its import, which timm and Lightning's metrics need; they do not call it.
if importlib.util.find_spec("torchvision") and not torch.version.cuda:
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
