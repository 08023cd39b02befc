"""Where blocks are learned: on the processor, or by the same code on a GPU.

Samples stay where they are, in memory or in files, and come to the device batch by batch; all of
them are kept there if they fit. The runtime that judges what was learned stays on the processor.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxbrecq.data.dataset import Samples
from onnxbrecq.errors import RecipeError
from onnxbrecq.recon.bridge import TorchBlock

CPU = torch.device("cpu")
_SHARE = 4  # samples take at most one part in so many of the device's free memory


def learning_device(name: str) -> torch.device:
    """The device called `name`; `auto`: a GPU if torch can use one.

    Raises:
        RecipeError: it is not there.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise RecipeError(
            f"device = 'cuda': torch {torch.__version__} sees no GPU; "
            "install a CUDA build of torch and a driver, or choose cpu"
        )
    return torch.device("cuda") if name == "cuda" or (name == "auto" and there) else CPU


@contextmanager
def placed(block: TorchBlock, device: torch.device) -> Iterator[None]:
    """Within the context the block is on the device, and what its operators make is made there."""
    if device == CPU:
        yield
        return
    block.to(device)
    try:
        with device:
            yield
    finally:
        block.to(CPU)


class Rows:
    """Samples as tensors on a device, some at a time."""

    def __init__(self, samples: Mapping[str, Samples], device: torch.device) -> None:
        """Of `samples` by tensor name; on a GPU all are copied at once if they fit."""
        self._samples = samples
        self._device = device
        size = sum(len(rows) * rows[:1].nbytes for rows in samples.values())
        kept = device != CPU and size <= _free(device) // _SHARE
        whole = {n: torch.from_numpy(s[np.arange(len(s))]) for n, s in samples.items() if kept}
        self._kept = {name: rows.to(device) for name, rows in whole.items()}

    def at(self, index: NDArray[np.intp]) -> dict[str, Tensor]:
        """The samples at `index`; of feature maps the channels last, as convolutions want them."""
        return {name: self.of(name, index) for name in self._samples}

    def of(self, name: str, index: NDArray[np.intp]) -> Tensor:
        """Those of one tensor."""
        if name in self._kept:
            rows = self._kept[name]
            part = rows[torch.from_numpy(index).to(rows.device)]
        else:
            part = torch.from_numpy(self._samples[name][index]).to(self._device)
        return part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part


def _free(device: torch.device) -> int:
    """Bytes that can be taken there."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)
