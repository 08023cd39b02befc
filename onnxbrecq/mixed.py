"""From a calibrated model to the bits of each layer: sensitivities, costs, the best of them."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxbrecq.bits import Allocation, Bits, finest, offered_bits, tied
from onnxbrecq.calibrate import Calibration
from onnxbrecq.emit.targets import Target
from onnxbrecq.errors import DataError, RecipeError
from onnxbrecq.parts import Task
from onnxbrecq.progress import Progress
from onnxbrecq.recipe import Budget
from onnxbrecq.search import latency
from onnxbrecq.search.allocate import Found, Limit, Problem, check_feasible, exact, least
from onnxbrecq.search.costs import Cost, FileSize, bitops
from onnxbrecq.search.costs import latency as latency_cost
from onnxbrecq.search.genetic import genetic
from onnxbrecq.search.sensitivity import measured
from onnxbrecq.search.table import Sensitivity
from onnxbrecq.state import State

_TIGHTER = 8  # times that a budget is, until the very file keeps it
_NEAR = 0.02  # of a size: bisection goes no further


@dataclass(frozen=True)
class Menu:
    """What there is to choose from, and what it costs.

    Attributes:
        task: the model, all layers at what they may read at least.
        target: whose files' sizes count.
        choices: layer → what it may get, of the layers that have a choice.
        fixed: layer → its bits, of all others.
        ties: layers that must read the same bits.
        sizes: of emitted files.
        size: what each choice adds to them.
    """

    task: Task
    target: Target
    choices: Mapping[str, tuple[Bits, ...]]
    fixed: Allocation
    ties: tuple[tuple[str, ...], ...]
    sizes: FileSize
    size: Cost

    def all_bits(self, chosen: Allocation) -> dict[str, Bits]:
        """The bits of every layer, where those with a choice have `chosen`."""
        return {**self.fixed, **chosen}

    def file_bytes(self, chosen: Allocation) -> int:
        """Of the very file."""
        return self.sizes.of(self.all_bits(chosen))

    def cost(self, key: str) -> Cost:
        """What each choice costs.

        Raises:
            RecipeError: bits do not change it, or a table of latencies lacks a layer.
        """
        model = self.task.model
        if key == "size":
            found = self.size
        elif key == "bitops":
            found = bitops(model, self.choices, self.fixed)
        else:
            found = self._latency()
        if found.constant and self.choices:
            raise RecipeError(
                f"budget {key}: bits change nothing of it for target {self.target.name}, which "
                f"stores weights as {self.target.storage}; it is {found.base:.6g} {found.unit} and "
                "what all choices have in common"
            )
        return found

    def _latency(self) -> Cost:
        """By the table or the array of the recipe.

        Raises:
            RecipeError: it is to be onnxruntime's, whose kernels are as fast at all bits.
        """
        model, wanted = self.task.model, self.task.recipe.latency
        if wanted.table is not None:
            timed = latency.from_table(Path(wanted.table), model)
            note = f"of the table {wanted.table}"
        elif wanted.model == "systolic":
            timed = latency.systolic(wanted, model)
            note = (f"computed: {wanted.rows} x {wanted.columns} array, {wanted.clock_mhz:g} MHz, "
                    f"{wanted.bandwidth_gbs:g} GB/s, weight stationary")  # fmt: skip
        else:
            raise RecipeError(self._no_influence())
        return latency_cost(model, self.choices, self.fixed, timed, note=note)

    def measured_ms(self) -> Mapping[str, tuple[float, float]]:
        """Layer → ms of onnxruntime for one sample here, in integers at any bits and in float."""
        plan = self.sizes.calibration.plan(self.all_bits(finest(self.choices)))
        return latency.measured(self.task.model, plan, self.task.target, self.task.recipe.threads)

    def _no_influence(self) -> str:
        integer, floating = (sum(ms) for ms in zip(*self.measured_ms().values(), strict=True))
        return (
            "budget latency: onnxruntime's CPU kernels are as fast at 2, 4 and 8 bits: the layers "
            f"take {integer:.3g} ms in integers whatever their bits, {floating:.3g} ms in float; "
            "integers instead of floats, or a smaller network, change it there. For hardware whose "
            'speed depends on bits give latency.table or latency.model = "systolic"'
        )


@dataclass(frozen=True)
class Space:
    """A menu, and what its choices lose.

    Attributes:
        menu: what there is to choose from; layers that could not be measured have no choice.
        table: of losses.
        problem: the same as numbers.
    """

    menu: Menu
    table: Sensitivity
    problem: Problem


def menu_of(task: Task, calibration: Calibration, target: Target, data_sha256: str) -> Menu:
    """What the task's recipe offers, and what it costs.

    Raises:
        RecipeError: nothing that is offered is taken by the target, or a pin matches no layer.
    """
    offered = offered_bits(task.points, task.recipe, target.weights, target.activations)
    choices = {name: bits for name, bits in offered.items() if len(bits) > 1}
    fixed = {name: bits[0] for name, bits in offered.items() if len(bits) == 1}
    sizes = FileSize(task.model, target, calibration, data_sha256)
    return Menu(
        task, target, choices, fixed, tied(task.points, offered), sizes, sizes.cost(choices, fixed)
    )


def explored(
    menu: Menu,
    progress: Progress,
    *,
    state: State | None = None,
    table: Sensitivity | None = None,
    check_output: bool = False,
) -> Space:
    """The menu with what its choices lose: measured, unless `table` tells.

    Raises:
        DataError: `table` is of another model, other data or other choices.
    """
    sizes = menu.sizes
    if table is None:
        offered = {**{name: (bits,) for name, bits in menu.fixed.items()}, **menu.choices}
        table = measured(
            menu.task, sizes.calibration, sizes.data_sha256, progress, state,
            offered={name: offered[name] for name in menu.task.points.layers},
            check_output=check_output,
        )  # fmt: skip
    else:
        _check_table(table, menu)
    closed = {name: bits for name, bits in table.fixed.items() if name not in menu.fixed}
    if closed:
        menu = dataclasses.replace(
            menu,
            choices=table.choices,
            fixed={**menu.fixed, **closed},
            ties=tuple(tie for tie in menu.ties if not set(tie) & set(closed)),
            size=sizes.cost(table.choices, table.fixed),
        )
    return Space(menu, table, Problem(table.choices, table.factors(), menu.ties))


def feasible(menu: Menu, budgets: Sequence[Budget]) -> list[Limit]:
    """The budgets in the units of their costs, once it is known that they can be kept.

    Raises:
        RecipeError: one cannot; says what is the nearest that can. Or bits do not change what it
            is of.
    """
    asked = limits(menu, budgets)
    check_feasible(Problem(menu.choices, (), menu.ties), asked)
    return asked


def _check_table(table: Sensitivity, menu: Menu) -> None:
    """Refuses a table that does not belong to what it is to be used for."""
    for what, had, wanted in (
        ("model", table.model_sha256, menu.task.model.source_sha256),
        ("data", table.data_sha256, menu.sizes.data_sha256),
    ):
        if had != wanted:
            raise DataError(
                f"the table of sensitivities was measured with another {what} ({had[:12]}, not "
                f"{wanted[:12]}); measure it anew"
            )
    known = {**{name: (bits,) for name, bits in table.fixed.items()}, **table.choices}
    offered = {**{name: (bits,) for name, bits in menu.fixed.items()}, **menu.choices}
    other = [n for n, bits in offered.items() if not _part(known.get(n, ()), bits)]
    if other:
        raise DataError(
            f"the table of sensitivities has other bits of layer {other[0]!r} than are offered; "
            "measure it anew, or offer the same"
        )


def _part(known: Sequence[Bits], offered: Sequence[Bits]) -> bool:
    """Whether the same is offered; a layer that could not be measured stays at its finest."""
    return tuple(known) in (tuple(offered), tuple(offered[-1:]))


def limits(menu: Menu, budgets: Sequence[Budget]) -> list[Limit]:
    """The budgets in the units of their costs.

    Raises:
        RecipeError: bits do not change what a budget is of.
    """
    found = []
    for budget in budgets:
        most = budget.amount
        if budget.relative:
            most *= menu.task.model.source_bytes
        found.append(Limit(menu.cost(budget.key), most))
    return found


def sized(menu: Menu, found: Found) -> Found:
    """The allocation with the size of its very file, which is not quite the sum over layers."""
    return dataclasses.replace(
        found, costs={**found.costs, "size": float(menu.file_bytes(found.bits))}
    )


def chosen(space: Space, asked: Sequence[Limit]) -> Found:
    """The best allocation within the limits, whose very file keeps a limit of size.

    Layers of the same bits share constants that the sum over layers counts for each, so that it
    may think a uniform allocation too large that is not: those are looked at by their files.

    Raises:
        RecipeError: there is none; says what is the nearest that can be had.
    """
    found = _searched(space, asked)
    for even in _even(space.problem):
        loss = space.problem.loss(even)
        if loss < found.loss and space.problem.holds(even, [x for x in asked if not _is_size(x)]):
            other = sized(space.menu, space.problem.found(even, asked, found.method, found.gap,
                                                          time.perf_counter()))  # fmt: skip
            if all(other.costs["size"] <= x.most for x in asked if _is_size(x)):
                found = dataclasses.replace(other, seconds=found.seconds)
    return found


def _even(problem: Problem) -> Iterator[dict[str, int]]:
    """The allocations of uniform models, as places among the choices of each layer.

    All have the same bits; or all but the first and the last, which have the most they may.
    """
    choices = problem.choices
    edges = {name: len(choices[name]) - 1 for name in [*choices][:1] + [*choices][-1:]}
    for bits in next(iter(choices.values()), ()):
        if all(bits in other for other in choices.values()):
            even = {name: other.index(bits) for name, other in choices.items()}
            yield even
            yield {**even, **edges}


def _is_size(limit: Limit) -> bool:
    return limit.cost.key == "size"


def _searched(space: Space, asked: Sequence[Limit]) -> Found:
    """As `chosen`, by the sum over layers, made tighter until the very file keeps the limits."""
    menu, recipe = space.menu, space.menu.task.recipe
    tightened = list(asked)
    for _ in range(_TIGHTER):
        if recipe.search == "genetic":
            found = genetic(space.problem, tightened, recipe.seed)
        else:
            found = exact(space.problem, tightened)
        found = sized(menu, found)
        size = found.costs["size"]
        over = max((size - x.most for x in asked if _is_size(x)), default=0)
        if over <= 0:
            return found
        tightened = [Limit(x.cost, x.most - over) if _is_size(x) else x for x in tightened]
    raise RecipeError("budget size: no file was found to keep it; give a little more")


def smallest(
    space: Space, passes: Callable[[Found], bool], progress: Progress
) -> tuple[Found, tuple[tuple[Found, bool], ...]]:
    """The smallest allocation that passes, by bisection along the front, and all that were tried.

    The finest one if not even that passes.
    """
    cost = space.menu.size
    finest_ = chosen(space, [Limit(cost, _most(cost))])
    tried = [(finest_, passes(finest_))]
    best, low, high = finest_, least(space.problem, cost), finest_.costs["size"]
    verdicts = {_key(finest_): tried[0][1]}
    while tried[0][1] and high - low > _NEAR * high:
        middle = (low + high) / 2
        found = chosen(space, [Limit(cost, middle)])
        key = _key(found)
        if key not in verdicts:
            verdicts[key] = passes(found)
            tried.append((found, verdicts[key]))
        progress("search", len(tried), len(tried) + 1, f"{found.costs['size']:.0f} bytes")
        if verdicts[key]:
            best, high = found, min(found.costs["size"], middle)
        else:
            low = middle
    return best, tuple(tried)


def _key(found: Found) -> tuple[tuple[str, Bits], ...]:
    return tuple(sorted(found.bits.items()))


def _most(cost: Cost) -> float:
    return cost.base + sum(max(values) for values in cost.layers.values())
