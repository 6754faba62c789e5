"""Which axes of a model's tensors share units: found by probing the model, kept where a permutation proves it.

A unit is a channel that one layer writes and others read. Reordering the units of a group in all of its tensors leaves
the model's function alone, which is what re-basin and ZipIt need to know. Architectures are not described anywhere:
one channel of one layer's output is moved while the outputs of all other layers are held, and every layer whose input
moves in that channel alone reads these units. What the probe cannot see (groups of a GroupNorm, heads of an attention)
shows when the units are permuted: such groups are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from runner.merging.data import TaskData, take
from runner.types import Features

Hook = Callable[[nn.Module, str, int, Tensor, Tensor], Tensor | None]
"""(module, path, number of the call, input, output) → another output, or None."""


@dataclass
class UnitGroup:
    """Units and where they are.

    Attributes:
        axes: tensor → the axis they lie on.
        size: their number.
        writers: layers whose outputs they are, in the order of the forward pass.
        readers: layers whose inputs they are.
        headed: whether the heads read them: permuting them permutes the features.
    """

    axes: dict[str, int]
    size: int
    writers: list[str]
    readers: list[str] = field(default_factory=list)
    headed: bool = False


class Layers:
    """The layers of a body that mix units, those that only scale them, and their order in a forward pass.

    Args:
        model: an architecture.
        names: tensors of its body that are merged.
    """

    def __init__(self, model: nn.Module, names: set[str]) -> None:
        self.model = model
        self.mixing: dict[str, nn.Module] = {}
        self.scaling: dict[str, nn.Module] = {}
        for path, module in model.named_modules():
            kind = type(module).__name__
            if f"{path}.weight" in names and (mixes(module) or isinstance(module, nn.Embedding)):
                self.mixing[path] = module
            elif path.startswith("backbone.") and ("Norm" in kind or depthwise(module)):
                self.scaling[path] = module

    def hooked(self, hook: Hook) -> list[torch.utils.hooks.RemovableHandle]:
        """Let `hook` see, and replace, the outputs of all of these layers."""
        handles = []
        calls: dict[str, int] = {}
        for path, module in {**self.mixing, **self.scaling}.items():

            def see(m: nn.Module, inputs: tuple, output: Tensor, path: str = path) -> Tensor | None:
                if not inputs:  # called by keywords: not followed, and its group then fails the proof
                    return None
                number = calls.get(path, 0)
                calls[path] = number + 1
                return hook(m, path, number, inputs[0], output)

            handles.append(module.register_forward_hook(see))
        return handles


def mixes(module: nn.Module) -> bool:
    """Whether every output is made of all inputs by a matrix."""
    plain = isinstance(module, nn.Conv2d) and module.groups == 1
    return plain or isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def depthwise(module: nn.Module) -> bool:
    """A convolution that keeps channels apart."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def write_axis(module: nn.Module) -> int:
    """The axis of a weight that lies along its outputs."""
    return 1 if isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D" else 0


def channel_axis(module: nn.Module) -> int:
    """The axis of activations that holds units."""
    maps = nn.Conv2d | nn.GroupNorm | nn.InstanceNorm2d | nn.modules.batchnorm._BatchNorm
    return 1 if isinstance(module, maps) else -1


def rows(module: nn.Module, x: Tensor) -> Tensor:
    """Activations as (N, units)."""
    return (x.movedim(1, -1) if channel_axis(module) == 1 else x).flatten(0, -2)


def feature_rows(features: Features) -> Tensor:
    """What a head reads, as (N, units)."""
    if features.pooled is not None:
        return features.pooled.flatten(0, -2)
    if features.tokens is not None:
        return features.tokens.flatten(0, -2)
    return features.pyramid[-1].movedim(1, -1).flatten(0, -2)


HEADS = "heads"
"""The reader that stands for the tasks' heads."""


class Probe:
    """Runs a model on a few inputs, with one channel of one layer moved."""

    def __init__(self, layers: Layers, data: TaskData, tensors: Mapping[str, Tensor]) -> None:
        self.layers, self.data, self.tensors = layers, data, dict(tensors)
        self.task = next(iter(data.tasks))
        self.group = take(data.unlabelled[self.task], slice(0, 2))
        self.inputs: dict[tuple[str, int], Tensor] = {}
        self.outputs: dict[tuple[str, int], Tensor] = {}
        self.order: list[str] = []
        self.rest = self._run(self._record)

    def _record(self, module: nn.Module, path: str, number: int, x: Tensor, y: Tensor) -> None:
        self.inputs[path, number], self.outputs[path, number] = x.clone(), y.clone()  # models add in place
        if path not in self.order:
            self.order.append(path)

    @torch.no_grad()
    def _run(self, hook: Hook | None, tensors: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(what the head reads, what it predicts)."""
        seen: list[Tensor] = []
        heads = self.data.model.heads
        handles = [] if hook is None else self.layers.hooked(hook)
        handles.append(heads[self.task].register_forward_pre_hook(lambda _, a: seen.append(feature_rows(a[0]))))  # type: ignore[index,operator]
        try:
            out = self.data.forward(tensors or self.tensors, self.group, [self.task])[self.task]
        finally:
            for handle in handles:
                handle.remove()
        return seen[0], out

    def moved(self, path: str, channel: int) -> dict[str, set[int]]:
        """Layer → the channels of its input that move with one channel of `path`'s output."""
        found: dict[str, set[int]] = {}
        for sign in (1.0, -1.0):

            def hook(module: nn.Module, at: str, number: int, x: Tensor, y: Tensor, sign: float = sign) -> Tensor:
                still_x, still_y = self.inputs[at, number], self.outputs[at, number]
                if x.is_floating_point():
                    change = rows(module, x) - rows(module, still_x)
                    found.setdefault(at, set()).update(_channels(change))
                if at in self.layers.scaling and x.shape == still_y.shape:
                    return still_y + (x - still_x)
                pushed = still_y.clone()
                if at != path:
                    return pushed
                step = sign * (10 * float(still_y.abs().max()) + 1)
                pushed.select(channel_axis(module), channel).add_(step)
                return pushed

            features, _ = self._run(hook)
            found.setdefault(HEADS, set()).update(_channels(features - self.rest[0]))
        return found

    def holds(self, group: UnitGroup) -> bool:
        """Whether permuting the units leaves the function as it is."""
        order = torch.randperm(group.size, generator=torch.Generator().manual_seed(0))
        changed = dict(self.tensors)
        for name, axis in group.axes.items():
            changed[name] = self.tensors[name].index_select(axis, order.to(self.tensors[name].device))
        features, output = self._run(None, changed)
        before, expected = self.rest[0], self.rest[1]
        if not group.headed:
            return _close(features, before) and _close(output, expected)
        if self.data.tasks[self.task].kind == "dense":  # heads read several maps, each of units of its own
            return False
        return features.shape[1] == group.size and _close(features, before[:, order.to(before.device)])


def _channels(change_NC: Tensor) -> set[int]:
    size_C = change_NC.abs().amax(0)
    return set(torch.nonzero(size_C > 1e-6).flatten().tolist())


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool(torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()) + 1e-6))


def find_units(data: TaskData, tensors: Mapping[str, Tensor], names: set[str]) -> list[UnitGroup]:
    """The groups of units of a model that can be permuted, in the order of the forward pass.

    Args:
        data: has the model and an input to run.
        tensors: weights of the body (and statistics of norms, if they are not those of the model).
        names: tensors that are merged.
    """
    layers = Layers(data.model, names)
    buffers = {
        n: t for n, t in data.model.state_dict().items() if n.rpartition(".")[2] in ("running_mean", "running_var")
    }
    probe = Probe(layers, data, {**buffers, **tensors})
    links: dict[str, set[str]] = {}
    for path in probe.order:
        if path not in layers.mixing:
            continue
        width = probe.outputs[path, 0].shape[channel_axis(layers.mixing[path])]
        readers: set[str] | None = None
        for channel in {0, width // 2, width - 1}:
            alone = {at for at, moved in probe.moved(path, channel).items() if moved == {channel} and at != path}
            readers = alone if readers is None else readers & alone
        if readers:
            links[path] = readers
    found = []
    for writers in _together(links):
        group = _group(probe, layers, writers, set().union(*(links[w] for w in writers)), names)
        for candidate in (group, _with_bare_parameters(group, layers, probe.tensors, names)):
            if candidate is not None and probe.holds(candidate):
                found.append(candidate)
                break
    return sorted(found, key=lambda g: probe.order.index(g.writers[0]))


def _together(links: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Writers that share a reader, directly or through others."""
    left = list(links)
    while left:
        together, reached = [left.pop(0)], set()
        reached |= links[together[0]]
        while more := [w for w in left if links[w] & reached]:
            for writer in more:
                left.remove(writer)
                together.append(writer)
                reached |= links[writer]
        yield [w for w in links if w in together]


def _group(probe: Probe, layers: Layers, writers: list[str], readers: set[str], names: set[str]) -> UnitGroup:
    axes: dict[str, int] = {}
    first = layers.mixing[writers[0]]
    for path in writers:
        axes[f"{path}.weight"] = write_axis(layers.mixing[path])
        axes[f"{path}.bias"] = 0
    for path in readers & layers.mixing.keys():
        axes[f"{path}.weight"] = 1 - write_axis(layers.mixing[path])
    for path in readers & layers.scaling.keys():
        axes |= {f"{path}.{leaf}": 0 for leaf in ("weight", "bias", "running_mean", "running_var")}
    known = {n: a for n, a in axes.items() if n in probe.tensors and (n in names or "running" in n)}
    size = probe.outputs[writers[0], 0].shape[channel_axis(first)]
    inside = [p for p in probe.order if p in readers and p in layers.mixing]
    return UnitGroup(known, size, writers, inside, HEADS in readers)


def _with_bare_parameters(
    group: UnitGroup, layers: Layers, tensors: Mapping[str, Tensor], names: set[str]
) -> UnitGroup | None:
    """The same with parameters of no layer that are as wide: class tokens, position embeddings, layer scales."""
    inside = {f"{p}.{leaf}" for p in (*layers.mixing, *layers.scaling) for leaf in ("weight", "bias")}
    bare = {n: tensors[n].dim() - 1 for n in names - inside if tensors[n].dim() and tensors[n].shape[-1] == group.size}
    if not bare:
        return None
    return UnitGroup({**bare, **group.axes}, group.size, group.writers, group.readers, group.headed)
