"""A second device where there is none: tensors that live on the CPU, say that they live elsewhere, and refuse to mix.

`with simulated() as waits:` gives torch a device `SIMULATED`. Every operation on its tensors is really computed, so
whole runs work, and it fails where a GPU would: a tensor of the CPU beside one of the device, a value read into numpy.
Each look of the host at a value, for which a GPU's queue has to run dry, is counted in `waits` under the line of runner
that asked. What it does not know: kernels, autocast, streams, memory, collectives.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

aten = torch.ops.aten
CROSSING = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Indices may lie on the CPU."""
LOOKING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
_waits: Counter[str] = Counter()


class _Hook(_DummyPrivateUse1Hook):  # type: ignore[misc]
    def is_available(self) -> bool:
        return False  # nobody shall choose it by himself


class _Module(_DummyBackendModule):
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])
    get_rng_state = staticmethod(lambda *_: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, *_: torch.set_rng_state(state))


_setup_privateuseone_for_python_backend("simulated", backend_module=_Module(), hook=_Hook())
SIMULATED = torch.device("simulated", 0)


class WrongDevice(RuntimeError):
    """What a GPU would not have done."""


class Simulated(Tensor):
    """`inner`, a tensor of the CPU, seen as one of the device."""

    inner: Tensor
    is_cuda = True  # for code that spares a GPU the looks that cost a CPU nothing
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Simulated:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=SIMULATED,
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Simulated({self.inner!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            new = self.detach().clone(memory_format=torch.preserve_format)
            is_parameter = getattr(self, "_is_param", False)
            memo[id(self)] = (
                torch.nn.Parameter(new, self.requires_grad) if is_parameter else new.requires_grad_(self.requires_grad)
            )
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        _count("tolist")
        return self.inner.tolist()

    def numpy(self, **_: Any) -> Any:
        raise WrongDevice("a tensor of the device cannot be read as a numpy array")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _count(what: str) -> None:
    frame: Any = sys._getframe(1)
    while frame is not None and "/src/runner/" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is not None:
        _waits[f"{frame.f_code.co_filename.split('/src/runner/')[1]}:{frame.f_lineno} {what}"] += 1


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do `func` on the inner tensors; what comes out lies where a GPU would have put it."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    inside = [x for x in tensors if isinstance(x, Simulated)]
    device = kwargs.get("device")
    asked = device is not None and torch.device(device).type == SIMULATED.type
    if asked:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if inside and func not in CROSSING:
        _refuse_mixture(func, args, tensors)
    masks = func in INDEXING and any(getattr(i, "dtype", None) in (torch.bool, torch.uint8) for i in args[1])
    if inside and (func in LOOKING or (func is aten.index.Tensor and masks) or (device is not None and not asked)):
        _count(str(func))
    if func is aten._efficientzerotensor.default:  # has no values to compute with
        func = aten.zeros.default
    inner = tree_map_only(Simulated, lambda x: x.inner, (args, kwargs))
    out = func(*inner[0], **inner[1])
    there = asked or (device is None and (isinstance(args[0], Simulated) if func in CROSSING else bool(inside)))
    if not there or func is aten._local_scalar_dense.default:
        return out
    if torch.Tag.inplace_view in func.tags:  # the outer tensor's sizes change as well
        with no_dispatch():
            func(*args, **kwargs)
        return args[0]
    known = {id(x.inner): x for x in inside}
    return tree_map_only(Tensor, lambda x: known[id(x)] if id(x) in known else Simulated(x), out)


def _refuse_mixture(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Tensors of the CPU beside those of the device: only single numbers, and indices, may lie there."""
    if func in INDEXING:
        if not isinstance(args[0], Simulated):
            raise WrongDevice(f"{func}: a tensor of the CPU is indexed by, or filled from, the device")
        tensors = [x for x in args[2:3] if isinstance(x, Tensor)]
    wrong = [tuple(x.shape) for x in tensors if not isinstance(x, Simulated) and x.dim() > 0]
    if wrong:
        raise WrongDevice(f"{func}: tensors of the CPU beside those of the device: {wrong}")


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """Tensors from Python's numbers, which torch makes below the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        place = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and torch.device(place or "cpu").type == SIMULATED.type:
            return func(*args, **{**kwargs, "device": "cpu"}).to(SIMULATED)
        return func(*args, **kwargs)


_GENERATOR = torch.Generator


class _Generator(_GENERATOR):
    """Numbers of the device are drawn by the CPU."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _GENERATOR.__new__(cls, "cpu")


_LIBRARY = torch.library.Library("aten", "IMPL")


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return Simulated(torch.empty_strided(size, stride, dtype=dtype))


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
    return Simulated(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    read, write = (x.inner if isinstance(x, Simulated) else x for x in (source, target))
    write.copy_(read)
    return target


_LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
_LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
_LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")


@contextlib.contextmanager
def simulated() -> Iterator[Counter[str]]:
    """Within: torch has the device. Yields how often the host waited, by the line that made it."""
    _waits.clear()
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(
        True
    )  # parameters stay the objects that they are, as on a GPU
    try:
        with (
            mock.patch("torch.inference_mode", torch.no_grad),  # its tensors cannot be wrapped
            mock.patch("torch.Generator", _Generator),
            _Made(),
            _Dispatch(),
        ):
            yield _waits
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapped)
