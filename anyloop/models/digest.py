"""One hash over all weights of a model, whatever files they came from."""

import hashlib
from collections.abc import Mapping

import torch


def weights_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes in name order.

    Computed from the tensors in memory, so it proves what a process serves. Tied tensors count once per name.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))  # no copy, and threads go on meanwhile
    return total.hexdigest()
