"""Makes torch.bin: tensors in every way in which PyTorch lays them out in a file, a few numbers each.

Run by hand, from the repository's root, where torch is installed: `python -m tests.model.golden.make_torch_file`.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "torch.bin"


def expected() -> dict[str, np.ndarray]:
    """What the file holds, in float64."""
    numbers = np.arange(24.0)
    return {
        "plain": numbers.reshape(4, 6),
        "turned": numbers.reshape(4, 6).T,
        "part of the same": numbers.reshape(4, 6)[1:3, 2:5],
        "every other": numbers[1::2],
        "expanded": np.broadcast_to(numbers[5:7], (3, 2)),
        "parameter": numbers[:4] - 2,
        "one": np.array(7.0),
        "none": np.zeros((0, 3)),
        "bfloat16": numbers.reshape(2, 12) * 2,
        "float16": numbers[::-1].reshape(3, 8).T / 4,
        "int64": numbers[:5],
        "float64": numbers[:3] / 3,
        "layer.weight": numbers[:6].reshape(2, 3),
    }


def write() -> None:
    import torch

    numbers = torch.arange(24, dtype=torch.float32)
    layer = torch.nn.Module()
    layer.layer = torch.nn.Linear(3, 2, bias=False)
    layer.layer.weight.data = numbers[:6].reshape(2, 3).clone()
    state = layer.state_dict()  # with PyTorch's `_metadata`
    state |= {
        "plain": numbers.reshape(4, 6),
        "turned": numbers.reshape(4, 6).T,
        "part of the same": numbers.reshape(4, 6)[1:3, 2:5],
        "every other": numbers[1::2],
        "expanded": numbers[5:7].expand(3, 2),
        "parameter": torch.nn.Parameter(numbers[:4] - 2),
        "one": torch.tensor(7.0),
        "none": torch.zeros(0, 3),
        "bfloat16": (numbers.reshape(2, 12) * 2).bfloat16(),
        "float16": (numbers.flip(0).reshape(3, 8) / 4).half().T,
        "int64": torch.arange(5),
        "float64": torch.arange(3, dtype=torch.float64) / 3,
    }
    torch.save(state, FILE)


if __name__ == "__main__":
    write()
    print(f"{FILE}: {FILE.stat().st_size} bytes")
