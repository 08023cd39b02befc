"""What the report shows beyond the figures of a result."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Growth:
    """How far the network is off behind a block: squared error relative to the float energy.

    Attributes:
        name: of the block.
        before: with every block rounded to nearest; None where that is not known.
        after: as it was written; None where the block's outputs are not in the quantized graph.
    """

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Histogram:
    """How many values lie between neighbouring edges, as shares; one edge more than shares."""

    edges: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class LayerNoise:
    """What a layer's grids add to it: squared error relative to the energy of what they hold.

    To first order, and for independent errors, the sum is the noise of the layer's own output.

    Attributes:
        name: of the layer.
        weight: of its weight; None: float, or not found.
        data: of what it reads; likewise.
    """

    name: str
    weight: float | None
    data: float | None

    @property
    def total(self) -> float:
        """Both."""
        return (self.weight or 0.0) + (self.data or 0.0)


@dataclass(frozen=True)
class Distribution:
    """A layer's values and the grids they are rounded to.

    Attributes:
        layer: its name.
        weights: the float weights, each in units of its channel's scale.
        levels: integer → share of the weights that were rounded to it.
        data: the values it reads, in float.
        low: the least value that the grid of the data holds.
        high: the largest.
        step: between two of them.
        clipped: share of the values beyond.
    """

    layer: str
    weights: Histogram | None
    levels: tuple[tuple[int, float], ...]
    data: Histogram | None
    low: float | None
    high: float | None
    step: float | None
    clipped: float | None


@dataclass(frozen=True)
class FrontPoint:
    """A model that could have been written instead: its cost, what it would lose, and its name."""

    cost: float
    loss: float
    label: str
    chosen: bool = False


@dataclass(frozen=True)
class Front:
    """The Pareto front of cost and loss; `unit` is that of the cost, in words."""

    unit: str
    points: tuple[FrontPoint, ...]


@dataclass(frozen=True)
class Evidence:
    """Everything that was gathered.

    Attributes:
        origin: what the samples are.
        samples: on how many of them errors and distributions were measured.
        growth: block after block.
        noise: layer after layer.
        worst: the layers with the most noise.
        thumbnails: samples as images, `data:` addresses.
        front: where there is one.
        note: what could not be gathered, and why; None: all was.
    """

    origin: str
    samples: int
    growth: tuple[Growth, ...]
    noise: tuple[LayerNoise, ...]
    worst: tuple[Distribution, ...]
    thumbnails: tuple[str, ...]
    front: Front | None = None
    note: str | None = None
