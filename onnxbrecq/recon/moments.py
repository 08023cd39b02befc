"""What one layer's rounding has to know of its data: means and covariances, over random outputs.

With x the vector of values that an output of the layer reads in the quantized block, t what that
output has to be, and r = t - W x what it misses,

    gram = cov(x, x)    cross = cov(r, x)    read = E[x]    missed = E[r]

They are taken from two halves of the samples, so that what is fitted to one can be held against
the other.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own name for it
from numpy.typing import NDArray
from torch import Tensor

from onnxbrecq.graph.model import attribute
from onnxbrecq.graph.weights import Layer
from onnxbrecq.recon.converters.linear import explicit_pads, torch_pads

_PLACES, _FEWEST = 16, 1 << 14  # outputs that are looked at: per value of x, and at least;
_VALUES = 1 << 27  # and no more values of x in all
_LONGEST = 4608  # values of x in one gram

# A layer's data in the quantized block, what it has to make of it, and the share of all samples.
Batch = tuple[Tensor, Tensor, float]


class Moments(NamedTuple):
    """Of the K values x that an output of each group reads, and of what it misses.

    Attributes:
        gram: covariance of x, [G, K, K].
        cross: covariance of r and x, [G, O, K].
        read: mean of x, [G, K].
        missed: mean of r, [G, O].
    """

    gram: Tensor
    cross: Tensor
    read: Tensor
    missed: Tensor

    def about_zero(self) -> "Moments":
        """With the means of x x^T and r x^T in place of the covariances."""
        return self._replace(
            gram=self.gram + self.read[:, :, None] * self.read[:, None, :],
            cross=self.cross + self.missed[:, :, None] * self.read.reshape(len(self.cross), 1, -1),
        )


class Statistics(NamedTuple):
    """The moments of all samples, and of each half of them; None: there is but one sample.

    `places` is the number of outputs that were looked at.
    """

    whole: Moments
    halves: tuple[Moments, Moments] | None
    places: int

    def about_zero(self) -> "Statistics":
        """All of them about zero."""
        halves = self.halves and (self.halves[0].about_zero(), self.halves[1].about_zero())
        return Statistics(self.whole.about_zero(), halves, self.places)


@dataclasses.dataclass(frozen=True)
class Site:
    """A layer in its block.

    Attributes:
        layer: the layer.
        node: its node.
        weight: its float weight.
        wanted: the tensor whose float values it has to make,
        other: less this one's in the quantized block; None: nothing less.
    """

    layer: Layer
    node: onnx.NodeProto
    weight: Tensor
    wanted: str
    other: str | None

    @property
    def groups(self) -> int:
        """G."""
        found: int = int(attribute(self.node, "group", 1))  # type: ignore[call-overload]
        return found

    @property
    def transposed(self) -> bool:
        """Whether it is a ConvTranspose: a Conv of data with zeros between, its weight reversed."""
        return self.node.op_type == "ConvTranspose"

    @property
    def readable(self) -> bool:
        """Whether it is known what each output reads, and each has a scale of its own."""
        if not self.transposed:
            return True
        shared = self.groups > 1 and self.layer.axis == 1
        padded = attribute(self.node, "auto_pad", b"NOTSET") == b"NOTSET"
        return not shared and padded and not _integers(self.node, "output_shape")

    @property
    def matrix(self) -> Tensor:
        """The weight as [G, O, K]."""
        return self.as_matrix(self.weight)

    def as_matrix(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as [G, O, K]."""
        if self.transposed:  # [C_in, C_out / groups, ...]
            taps = list(range(2, weight.ndim))
            parts = weight.flip(taps).reshape(self.groups, -1, *weight.shape[1:])
            return parts.transpose(1, 2).flatten(2)
        first = weight.movedim(self.layer.axis, 0)
        return first.reshape(self.groups, len(first) // self.groups, -1)

    def restored(self, matrix: Tensor) -> NDArray[Any]:
        """A tensor [G, O, K] in the weight's own shape."""
        shape = list(self.weight.shape)
        if self.transposed:
            parts = matrix.reshape(*matrix.shape[:2], -1, *shape[2:]).transpose(1, 2)
            found = parts.reshape(shape).flip(list(range(2, len(shape))))
        else:
            shape.insert(0, shape.pop(self.layer.axis))
            found = matrix.reshape(shape).movedim(0, self.layer.axis)
        made: NDArray[Any] = found.contiguous().numpy()
        return made


def places_wanted(site: Site) -> int:
    """How many outputs of the layer are looked at."""
    groups, _, length = site.matrix.shape
    return min(max(_PLACES * length, _FEWEST), _VALUES // (length * groups))


def gather(site: Site, batches: Iterable[Batch], generator: torch.Generator) -> Statistics | None:
    """The layer's moments; None where they are not finite.

    Where K is long, x is cut into pieces, each a group of its own: correlations between are left.
    """
    groups, outputs, length = site.matrix.shape
    pieces, count = _pieces(length), places_wanted(site)
    matrix: Tensor | None = None
    sums: list[_Sums] = []
    for i, (data, wanted, share) in enumerate(batches):
        places = _Places(site, data, max(1, round(count * share)), generator)
        x = places.read(data).reshape(-1, groups, length).transpose(0, 1)
        made = places.made(wanted).reshape(-1, groups, outputs).transpose(0, 1)
        matrix = site.matrix.to(x.device) if matrix is None else matrix
        r = made - x @ matrix.mT
        if len(sums) < 2:
            origin = sums[0].origin if sums else (x.mean(1, keepdim=True), r.mean(1, keepdim=True))
            sums.append(_Sums(origin, pieces))
        sums[i % 2].add(x, r)
    if not sums or not all(part.finite() for part in sums):
        return None
    if len(sums) == 1:
        return Statistics(sums[0].moments(), None, sums[0].count)
    halves = sums[0].moments(), sums[1].moments()
    whole = sums[0].joined(sums[1])
    return Statistics(whole.moments(), halves, whole.count)


class _Sums:
    """Of x, r and their products, about an origin near the means, so that no digits are lost."""

    def __init__(self, origin: tuple[Tensor, Tensor], pieces: int) -> None:
        """Origins [G, 1, K] of x and [G, 1, O] of r."""
        self.origin = origin
        self._pieces = pieces
        self.count = 0
        self._totals: tuple[Tensor, ...] = (torch.zeros(()),) * 4

    def add(self, x: Tensor, r: Tensor) -> None:
        """More outputs: [G, P, K] and [G, P, O]."""
        x, r = x - self.origin[0], r - self.origin[1]
        parts = split(x, self._pieces)
        found = parts.mT @ parts, r.mT @ x, parts.sum(1), r.sum(1)
        self._totals = tuple(a + b for a, b in zip(self._totals, found, strict=True))
        self.count += x.shape[1]

    def joined(self, other: "_Sums") -> "_Sums":
        """The sums of both, which have the same origin."""
        both = _Sums(self.origin, self._pieces)
        both.count = self.count + other.count
        both._totals = tuple(a + b for a, b in zip(self._totals, other._totals, strict=True))
        return both

    def finite(self) -> bool:
        """Whether every sum is a number."""
        return all(bool(total.isfinite().all()) for total in self._totals)

    def moments(self) -> Moments:
        """About the means, which count from zero again."""
        gram, cross, read, missed = (total.cpu() / self.count for total in self._totals)
        x, r = (origin.cpu() for origin in self.origin)
        return Moments(
            gram - read[:, :, None] * read[:, None, :],
            cross - missed[:, :, None] * read.reshape(len(cross), 1, -1),
            read + split(x, self._pieces)[:, 0],
            missed + r[:, 0],
        )


class _Places:
    """Outputs of a layer: what they read, and what they are."""

    def __init__(self, site: Site, x: Tensor, count: int, generator: torch.Generator) -> None:
        """`count` random ones, of a layer whose data is like `x`; all, if that is half of them."""
        self._window: tuple[Tensor, ...] | None = None
        self._pads: list[int] = []
        self._apart: list[int] | None = None  # of values, once there are zeros between them
        if site.node.op_type not in ("Conv", "ConvTranspose"):
            drawn = _drawn(x[..., 0].numel(), count, generator)
            self._index: tuple[Tensor, ...] = (drawn.to(x.device),)
            return
        rank = x.ndim - 2
        kernel = site.weight.shape[2:]
        steps = _integers(site.node, "strides") or [1] * rank
        spread = _integers(site.node, "dilations") or [1] * rank
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, spread, strict=True)]
        if site.transposed:
            self._apart, steps = steps, [1] * rank
            x = self._spread(x)
            self._pads = _pads_of_transposed(site.node, reach)
        else:
            kind = attribute(site.node, "auto_pad", b"NOTSET")
            assert isinstance(kind, bytes)
            given = _integers(site.node, "pads")
            pads = explicit_pads(x.shape[2:], reach, steps, kind.decode(), given)
            self._pads = list(torch_pads(*pads))
        sizes = [len(x)]
        for axis in range(rank):
            before, after = self._pads[2 * (rank - 1 - axis) :][:2]
            length = x.shape[2 + axis] + before + after
            sizes.append((length - reach[axis]) // steps[axis] + 1)
        # Not torch's own unravel_index, which imports sympy: a second.
        parts = np.unravel_index(_drawn(math.prod(sizes), count, generator).numpy(), sizes)
        self._index = tuple(torch.from_numpy(part).to(x.device) for part in parts)
        sample, *places = self._index
        window = []
        for axis, (place, size) in enumerate(zip(places, kernel, strict=True)):
            offsets = place[:, None] * steps[axis] + torch.arange(size) * spread[axis]
            window.append(offsets.reshape(-1, *[1] * axis, size, *[1] * (rank - axis - 1)))
        self._window = (sample.reshape(-1, *[1] * rank), *window)

    def read(self, x: Tensor) -> Tensor:
        """The values of the layer's data that each reads, [P, values]."""
        if self._window is None:
            return x.reshape(-1, x.shape[-1])[self._index]
        return (
            F.pad(self._spread(x), self._pads)
            .movedim(1, -1)[self._window]
            .movedim(-1, 1)
            .flatten(1)
        )

    def _spread(self, x: Tensor) -> Tensor:
        """The data of a ConvTranspose with zeros between its values, as far apart as it steps."""
        if self._apart is None or max(self._apart) == 1:
            return x
        sizes = [(n - 1) * step + 1 for n, step in zip(x.shape[2:], self._apart, strict=True)]
        wide = x.new_zeros(*x.shape[:2], *sizes)
        whole = (slice(None), slice(None))
        wide[(*whole, *(slice(None, None, step) for step in self._apart))] = x
        return wide

    def made(self, y: Tensor) -> Tensor:
        """The values of the layer's output, [P, channels]."""
        if self._window is None:
            return y.reshape(-1, y.shape[-1])[self._index]
        return y.movedim(1, -1)[self._index]


def _pads_of_transposed(node: onnx.NodeProto, reach: Sequence[int]) -> list[int]:
    """What a Conv has to add to spread data so that it makes the outputs of a ConvTranspose."""
    rank = len(reach)
    pads = _integers(node, "pads") or [0] * 2 * rank
    more = _integers(node, "output_padding") or [0] * rank
    begin = [width - 1 - pad for width, pad in zip(reach, pads[:rank], strict=True)]
    end = [w - 1 - pad + m for w, pad, m in zip(reach, pads[rank:], more, strict=True)]
    return list(torch_pads(begin, end))


def _drawn(total: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` of `total` places at random; all of them where that is not much more."""
    if 2 * count >= total:
        return torch.arange(total, device="cpu")
    return torch.randint(total, (count,), generator=generator, device="cpu")


def _pieces(length: int) -> int:
    """Into how many equal pieces K is cut so that H stays small; correlations between are left."""
    return next(n for n in range(1, length + 1) if length % n == 0 and length // n <= _LONGEST)


def split(weight: Tensor, pieces: int) -> Tensor:
    """[G, O, K] as [G * pieces, O, K / pieces]."""
    groups, outputs, length = weight.shape
    return weight.reshape(groups, outputs, pieces, length // pieces).transpose(1, 2).flatten(0, 1)


def _integers(node: onnx.NodeProto, name: str) -> list[int]:
    value = attribute(node, name, ())
    assert isinstance(value, Sequence)
    return [int(item) for item in value]
