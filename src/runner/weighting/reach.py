"""Which parameters each task's loss reaches, read from the autograd graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from runner.errors import Problem, UserError, suggest


@dataclass(frozen=True)
class Reach:
    """Indices into the model's list of trainable parameters.

    Attributes:
        shared: reached by more than one task; gradient methods act on these.
        specific: task → reached by this task alone.
        reached: task → everything its loss reaches.
        rest: reached by more than one task, but not counted as shared (see `restrict`).
    """

    shared: tuple[int, ...]
    specific: Mapping[str, tuple[int, ...]]
    reached: Mapping[str, frozenset[int]]
    rest: tuple[int, ...] = ()

    def restrict(self, names: Sequence[str], patterns: Sequence[str] | None) -> Reach:
        """The same, with only those shared parameters counted as shared whose name a pattern matches.

        Args:
            names: of the trainable parameters, in their order.
            patterns: as in a shell, such as `backbone.*`; None counts them all.

        Raises:
            UserError: a pattern matches no shared parameter; all such patterns at once.
        """
        if patterns is None:
            return self
        shared = {i: names[i] for i in self.shared}
        known = sorted({".".join(name.split(".")[:2]) + ".*" for name in shared.values()})
        problems = [
            Problem(
                f"weighting.shared: no parameter that several tasks share matches '{pattern}'",
                suggest(pattern, known),
                "runner train --dry-run",
            )
            for pattern in patterns
            if not any(fnmatchcase(name, pattern) for name in shared.values())
        ]
        if not patterns:
            problems = [Problem("weighting.shared=[] counts no parameter as shared", "null counts them all")]
        if problems:
            raise UserError(problems)
        chosen = tuple(i for i, name in shared.items() if any(fnmatchcase(name, p) for p in patterns))
        return replace(self, shared=chosen, rest=tuple(i for i in self.shared if i not in set(chosen)))

    def of(self, positions: Sequence[int]) -> list[int]:
        """All parameters that the tasks at these positions reach, in order."""
        names = list(self.reached)
        return sorted(frozenset().union(*(self.reached[names[k]] for k in positions)) if positions else ())


def find_reach(outputs: Mapping[str, Sequence[Tensor]], parameters: Sequence[nn.Parameter]) -> Reach:
    """Walk the graph of each task's outputs down to the parameters.

    Args:
        outputs: task → tensors that its loss is made of (predictions do: a loss reaches what its predictions reach).
        parameters: the model's trainable parameters, in a fixed order.
    """
    index = {id(p): i for i, p in enumerate(parameters)}
    reached = {task: frozenset(_leaves(tensors, index)) for task, tensors in outputs.items()}
    times = [sum(i in r for r in reached.values()) for i in range(len(parameters))]
    return Reach(
        shared=tuple(i for i, n in enumerate(times) if n > 1),
        specific={task: tuple(sorted(i for i in r if times[i] == 1)) for task, r in reached.items()},
        reached=reached,
    )


def _leaves(tensors: Sequence[Tensor], index: Mapping[int, int]) -> set[int]:
    found: set[int] = set()
    seen: set[object] = set()
    stack = [t.grad_fn for t in tensors if t.grad_fn is not None]
    found.update(index[id(t)] for t in tensors if id(t) in index)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # AccumulateGrad holds the parameter
        if leaf is not None and id(leaf) in index:
            found.add(index[id(leaf)])
        stack.extend(parent for parent, _ in node.next_functions if parent is not None)
    return found
