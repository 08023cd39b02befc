"""Symbolic dimensions that are the same number get the same name, which says what number.

Where a Reshape has a -1, or two symbols meet in a broadcast, shape inference invents a symbol. Here
each symbol is followed as a multiple of one of the inputs', and named so, as `9*N`:

    Reshape   keeps the number of elements:     [N, 21, 21, 96] -> [-1, 49, 96]             9 N
                                                [9 N, 49, 96]   -> [-1, 3, 3, 7, 7, 96]     N again
    Add ...   of the same multiples:            [N, 96] + [1 N, 96] -> [?, 96]              N
    Expand    to a shape computed from others:  Shape(x)[0] * 9 -> [?, 49, 96]              9 N
              with -1 for "as it is":           Where(shape == -1, 1, shape)
    Resize    keeps the dimensions of scale 1:  [N, 8, 4, 4] by 1, 1, 2, 2 -> [?, 8, 8, 8]  N
    Concat    keeps all dimensions but one:     [N, 1, 96] and [N, 49, 96] -> [?, 50, 96]   N
    Slice     keeps those that it does not cut: [1, 512] at 0 to Shape(x)[1] -> [?, ?]      1
    Gather    has those of its index:           rows [1, S] of a table -> [?, ?, 64]        1, S
    Range     has as many as it counts:         0 to Shape(x)[1] by 1 -> [?]                S

Attention within windows would lose the batch otherwise, and count as the work of one window.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import prod

import onnx
from onnx import TensorProto, numpy_helper

from onnxbrecq.graph.model import STANDARD_DOMAINS, attribute

_Multiple = tuple[str, Fraction]  # of a symbol of the graph's inputs


@dataclass(frozen=True)
class _Capped:
    """A multiple, or fewer where it is large: what meets that multiple in a broadcast."""

    of: _Multiple


_Number = int | _Multiple | _Capped | None  # None: unknown
_BROADCASTING = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Where", "Max", "Min", "And", "Or", "Xor", "Equal", "Less",
     "LessOrEqual", "Greater", "GreaterOrEqual"}
)  # fmt: skip
_TIMES, _COUNT = "*", re.compile(r"\d+(/[1-9]\d*)?")
_EXACT = (TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT, TensorProto.DOUBLE)
_MATRIX = 2
_LARGEST = 64  # elements of a tensor that may be a list of dimensions


def multiple(dim: str, symbol: str) -> Fraction | None:
    """How many times `symbol` the dimension is, by its name; None: it is none that is known."""
    count, _, of = dim.rpartition(_TIMES)
    known = dim and of == symbol and (not count or _COUNT.fullmatch(count))
    return Fraction(count or 1) if known else None


def edit_symbols(graph: onnx.GraphProto) -> None:
    """Edits the graph, whose shapes are inferred: gives equal symbols one name."""
    found = _Found(graph)
    for node in graph.node:
        found.see(node)
    renamed = found.renamed()
    for value in (*graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in found.sizes:
                dim.dim_value = found.sizes[dim.dim_param]
            elif renamed.get(dim.dim_param, dim.dim_param) != dim.dim_param:
                dim.dim_param = renamed[dim.dim_param]


class _Found:
    """What is known of symbols and of computed dimensions so far, node after node.

    Attributes:
        sizes: the symbols that are a number.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        values = (*graph.output, *graph.value_info, *graph.input)
        known = [value for value in values if value.type.tensor_type.HasField("shape")]
        self._dims = {value.name: _dims(value) for value in known}
        self._dims |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        symbols = {s for v in graph.input for s in _dims(v) if isinstance(s, str) and s}
        self._multiples: dict[str, _Multiple] = {s: (s, Fraction(1)) for s in sorted(symbols)}
        self._capped: dict[str, _Capped] = {}
        self.sizes: dict[str, int] = {}
        self._numbers: dict[str, list[_Number]] = {}
        small = (t for t in graph.initializer if len(t.dims) <= 1 and prod(t.dims) <= _LARGEST)
        self._tensors = {tensor.name: tensor for tensor in small}

    def renamed(self) -> Mapping[str, str]:
        """Each symbol's name; where an input's is the same by chance, that of the first alike."""
        names: dict[_Multiple, str] = {}
        derived = {symbol for symbol, (of, _) in self._multiples.items() if symbol != of}
        given = {dim for dims in self._dims.values() for dim in dims} - derived
        for symbol, (of, count) in self._multiples.items():
            name = of if count == 1 else f"{count}{_TIMES}{of}"
            names.setdefault((of, count), name if count == 1 or name not in given else symbol)
        return {symbol: names[multiple] for symbol, multiple in self._multiples.items()}

    def see(self, node: onnx.NodeProto) -> None:
        """Takes in the next node."""
        if node.domain not in STANDARD_DOMAINS or not node.input:
            return
        self._see_numbers(node)
        made = self._shape(node.output[0]) if node.output else None
        read = [self._shape(name) for name in node.input if name]
        if made is None or not read or read[0] is None:
            return
        known = self._computed(node, read, len(made)) or self._moved(node, read, made) or []
        for symbol, number in zip(self._dims[node.output[0]], known, strict=False):
            if isinstance(symbol, str) and symbol not in ("", *self._multiples):
                if isinstance(number, tuple):
                    self._multiples[symbol] = number
                elif isinstance(number, int) and number >= 0:
                    self.sizes.setdefault(symbol, number)
                elif isinstance(number, _Capped):
                    self._capped.setdefault(symbol, number)

    def _computed(
        self, node: onnx.NodeProto, read: list[list[_Number] | None], rank: int
    ) -> list[_Number] | None:
        """The dimensions of what is computed of several tensors, as many as `rank`."""
        if node.op_type == "MatMul" and all(r and len(r) >= _MATRIX for r in read):
            known = _broadcast([r and r[:-_MATRIX] for r in read], rank - _MATRIX)
            return [*known, *(read[0] or ())[-_MATRIX:-1]]
        if node.op_type == "Gemm" and read[0]:
            return [read[0][1 if attribute(node, "transA", 0) else 0]]
        return _broadcast(read, rank) if node.op_type in _BROADCASTING else None

    def _moved(
        self, node: onnx.NodeProto, read: list[list[_Number] | None], made: list[_Number]
    ) -> list[_Number] | None:
        """The dimensions of what is moved; `made` are those that shape inference knows."""
        data = read[0] or []
        if node.op_type in ("Reshape", "Flatten"):
            return self._reshaped(node, data, made)
        if node.op_type == "Expand":
            return _broadcast([data, self._values(node.input[1])], len(made))
        if node.op_type == "Concat":
            axis = _axis(node)
            known = _broadcast(read, len(made))
            known[axis] = made[axis]
            return known
        if node.op_type == "Gather" and read[1] is not None and data:
            axis = _axis(node) % len(data)
            return [*data[:axis], *read[1], *data[axis + 1 :]]
        if node.op_type == "Slice":
            return self._cut(node, data, made)
        if node.op_type == "Range":
            start, end, step = (self._values(name) for name in node.input)
            return end if start == [0] and step == [1] else None
        if node.op_type == "Resize" and attribute(node, "axes") is None:
            return self._resized(node, data, made)
        return None

    def _reshaped(
        self, node: onnx.NodeProto, before: list[_Number], made: list[_Number]
    ) -> list[_Number]:
        """As `_quotient`; a symbol that is no multiple cancels where both sides have it."""
        asked = self._values(node.input[1]) if node.op_type == "Reshape" else None
        if asked is not None and len(asked) == len(made):
            made = [m if n in (None, 0, -1) else n for n, m in zip(asked, made, strict=True)]
        names = [self._dims[name] for name in (node.input[0], node.output[0])]
        both = {d for d in set(names[0]) & set(names[1]) if isinstance(d, str) and d}
        sides = (
            [
                (d, Fraction(1)) if n is None and d in both else n
                for n, d in zip(side, dims, strict=True)
            ]
            for side, dims in zip((before, made), names, strict=True)
        )
        known = _quotient(*sides)
        return [
            None if isinstance(n, tuple) and n[0] in both - self._multiples.keys() else n
            for n in known
        ]

    def _resized(
        self, node: onnx.NodeProto, before: list[_Number], made: list[_Number]
    ) -> list[_Number]:
        """The dimensions behind a Resize: those of scale 1 stay, and sizes may be computed."""
        if attribute(node, "keep_aspect_ratio_policy", b"stretch") != b"stretch":
            return made
        scales, sizes = ([*node.input, "", ""][i] for i in (2, 3))
        if sizes:
            return self._values(sizes) or made
        factors = numpy_helper.to_array(self._tensors[scales]) if scales in self._tensors else ()
        if len(factors) != len(before):
            return made
        return [
            old if factor == 1 else new
            for old, new, factor in zip(before, made, factors, strict=True)
        ]

    def _shape(self, name: str) -> list[_Number] | None:
        dims = self._dims.get(name)
        if dims is None:
            return None
        return [d if isinstance(d, int) else self._number(d) for d in dims]

    def _number(self, symbol: str) -> _Number:
        if symbol in self.sizes:
            return self.sizes[symbol]
        return self._multiples.get(symbol) or self._capped.get(symbol)

    def _cut(
        self, node: onnx.NodeProto, data: list[_Number], made: list[_Number]
    ) -> list[_Number] | None:
        """The dimensions behind a Slice, of which it cuts some; None: it is not known which."""
        starts, ends, axes, steps = (
            self._values(node.input[i]) if i < len(node.input) and node.input[i] else None
            for i in (1, 2, 3, 4)
        )
        named = [bool(name) for name in (*node.input, "", "")]
        if axes is None and named[3]:
            return None
        count = (self._shape(node.input[1]) or [None])[0]
        axes = list(range(count)) if axes is None and isinstance(count, int) else axes
        if axes is None or len(data) != len(made):
            return None
        known = list(data)
        for i, axis in enumerate(axes):
            if not isinstance(axis, int):
                return None
            end, size = ends[i] if ends else None, data[axis]
            step = steps[i] if steps else None if named[4] else 1
            first = starts is not None and starts[i] == 0 and step == 1
            known[axis] = made[axis]
            if first and isinstance(end, tuple) and isinstance(size, int):
                known[axis] = _Capped(end)
        return known

    def _values(self, name: str) -> list[_Number] | None:
        """The elements of a list of whole numbers, or of a single one."""
        tensor = self._tensors.get(name)
        if tensor is None:
            return self._numbers.get(name)
        if tensor.data_type not in (TensorProto.INT64, TensorProto.INT32):
            return None
        return [int(number) for number in numpy_helper.to_array(tensor).reshape(-1)]

    def _see_numbers(self, node: onnx.NodeProto) -> None:
        values = self._shape(node.input[0]) if node.op_type == "Shape" else None
        if node.op_type == "Shape" and values is not None:
            start, end = attribute(node, "start", 0), attribute(node, "end")
            assert isinstance(start, int)
            assert end is None or isinstance(end, int)
            values = [None if isinstance(n, _Capped) else n for n in values[start:end]]
        elif node.op_type in ("Squeeze", "Unsqueeze", "Reshape", "Identity") or _is_exact(node):
            values = self._values(node.input[0])
        elif node.op_type == "Concat":
            parts = [self._values(name) for name in node.input]
            values = None if None in parts else [n for part in parts for n in part or ()]
        elif node.op_type == "Gather":
            data, index = self._values(node.input[0]), self._values(node.input[1])
            if data is not None and index is not None:
                values = [data[i] if isinstance(i, int) and i < len(data) else None for i in index]
        elif node.op_type == "Slice":
            values = self._sliced(node)
        elif node.op_type == "Mul":
            values = _product(*(self._values(name) for name in node.input))
        elif node.op_type == "Equal":
            values = _equal(*(self._values(name) for name in node.input))
        elif node.op_type == "Where":
            values = _chosen(*(self._values(name) for name in node.input))
        rank = len(self._dims.get(node.output[0], (None, None)))
        if values is not None and rank <= 1:
            self._numbers[node.output[0]] = values

    def _sliced(self, node: onnx.NodeProto) -> list[_Number] | None:
        """A piece of a list of numbers, cut at constants."""
        data, *cuts = (self._values(name) if name else None for name in node.input)
        bounds = [cut[0] if cut else None for cut in (*cuts[:2], cuts[3] if cuts[3:] else [1])]
        if data is None or not all(isinstance(bound, int) for bound in bounds):
            return None
        start, end, step = (bound for bound in bounds if isinstance(bound, int))
        return data[start:end:step]


def _axis(node: onnx.NodeProto) -> int:
    axis = attribute(node, "axis", 0)
    assert isinstance(axis, int)
    return axis


def _is_exact(node: onnx.NodeProto) -> bool:
    """Whether the node makes sizes another type that holds them."""
    return node.op_type == "Cast" and attribute(node, "to") in _EXACT


def _product(a: list[_Number] | None, b: list[_Number] | None) -> list[_Number] | None:
    """The product of two numbers, one of them an integer."""
    if a is None or b is None or len(a) != 1 or len(b) != 1:
        return None
    for first, second in ((a[0], b[0]), (b[0], a[0])):
        if isinstance(first, int):
            if isinstance(second, tuple):
                return [(second[0], second[1] * first)]
            return [first * second if isinstance(second, int) else None]
    return [None]


def _equal(a: list[_Number] | None, b: list[_Number] | None) -> list[_Number] | None:
    """1 where two lists hold the same number, else 0: a multiple of a dimension is not negative."""
    if a is None or b is None or len(a) != len(b):
        return None
    return [_same(*pair) for pair in zip(a, b, strict=True)]


def _same(a: _Number, b: _Number) -> int | None:
    if a is None or b is None:
        return None
    if isinstance(a, tuple) == isinstance(b, tuple):
        return int(a == b) if isinstance(a, int) or a == b else None
    number = a if isinstance(a, int) else b
    return 0 if isinstance(number, int) and number < 0 else None


def _chosen(
    condition: list[_Number] | None, a: list[_Number] | None, b: list[_Number] | None
) -> list[_Number] | None:
    """The elements of `a` where the condition holds, else those of `b`."""
    if condition is None or a is None or b is None or not len(condition) == len(a) == len(b):
        return None
    return [
        None if which is None else first if which else second
        for which, first, second in zip(condition, a, b, strict=True)
    ]


def _quotient(before: list[_Number], after: list[_Number]) -> list[_Number]:
    """The dimensions behind a Reshape, its one unknown dimension filled in.

    It is the quotient of all others before and behind; symbols on both sides cancel.
    """
    rest = [n for n in after if n is not None]
    if len(rest) != len(after) - 1 or any(n is None or n == 0 for n in (*before, *rest)):
        return after
    count, powers = Fraction(1), Counter[str]()
    for numbers, power in ((before, 1), (rest, -1)):
        for number in numbers:
            if isinstance(number, _Capped):
                return after
            symbol, times = number if isinstance(number, tuple) else ("", Fraction(number or 0))
            count *= times**power
            powers[symbol] += power
    left = [symbol for symbol, power in powers.items() if power and symbol]
    if len(left) > 1 or any(powers[symbol] != 1 for symbol in left):
        return after
    filled = (left[0], count) if left else int(count) if count.denominator == 1 else None
    return [filled if n is None else n for n in after]


def _broadcast(shapes: list[list[_Number] | None], rank: int) -> list[_Number]:
    """The dimensions of what is broadcast together; None where they are not sure."""
    made: list[_Number] = []
    for axis in range(-rank, 0):
        known = [None if s is None else s[axis] if -axis <= len(s) else 1 for s in shapes]
        others = {number for number in known if number != 1}
        others -= {_Capped(number) for number in others if isinstance(number, tuple)}
        made.append(others.pop() if len(others) == 1 else None)
    return made


def _dims(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims)
