"""How many bytes of tensors a call needs at its peak, counted where torch dispatches: on meta as on real devices.

What is counted: the storage of every tensor an operator returns (or that a factory makes), once per storage, from its
creation until its last reference dies. Views, in-place results and `out=` share a storage, so they count nothing new.
What autograd saved is alive, so it counts until the graph dies. Not counted: storages that exist before the call,
and scratch memory that a fused kernel allocates and frees inside one operator.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts bytes of storages born inside the mode: `live` now, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}  # storage key -> bytes, for storages that were born here and live
        self._old: dict[int, Any] = {}  # storages met as arguments first: they were there before

    def _leave(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def _forget(self, key: int) -> None:
        self._old.pop(key, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_iter((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._meet(leaf)
        result = func(*args, **kwargs)
        for leaf in tree_iter(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        for leaf in tree_iter((args, kwargs)):  # an in-place or out= operator may have resized what it was given
            if isinstance(leaf, Tensor):
                self._resize(leaf)
        self.peak = max(self.peak, self.live)
        return result

    def _meet(self, tensor: Tensor) -> None:
        storage = _storage(tensor)
        if storage is None or storage._cdata in self._sizes or storage._cdata in self._old:
            return
        key = storage._cdata
        self._old[key] = weakref.finalize(storage, self._forget, key)

    def _count(self, tensor: Tensor) -> None:
        storage = _storage(tensor)
        if storage is None or storage._cdata in self._sizes or storage._cdata in self._old:
            return
        key, size = storage._cdata, storage.nbytes()
        self._sizes[key] = size
        self.live += size
        weakref.finalize(storage, self._leave, key)

    def _resize(self, tensor: Tensor) -> None:
        storage = _storage(tensor)
        if storage is None or storage._cdata not in self._sizes:
            return
        grown = storage.nbytes() - self._sizes[storage._cdata]
        if grown:
            self._sizes[storage._cdata] += grown
            self.live += grown


def _storage(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # mkldnn and other opaque layouts have none
        return None


class FusedKernels(TorchFunctionMode):
    """On meta, attention and RMS norm take the shapes of the fused kernels that a CPU or a GPU has.

    Without it, meta tensors take the paths of many small steps, whose score matrix and copies would be counted.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = next(iter((*args, *kwargs.values())), None)
        if not (isinstance(first, Tensor) and first.is_meta):
            return func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        if func is functional.rms_norm:
            return _fused_rms_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return op(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _fused_rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    result: Tensor = torch.ops.aten._fused_rms_norm(input, normalized_shape, weight, eps)[0]
    return result


def peak_bytes(function: Callable[[], Any]) -> int:
    """Peak bytes of tensors that one call creates; what existed before, such as parameters and inputs, is not counted.

    Args:
        function: what is called, once.
    """
    gc.collect()
    with FusedKernels(), LiveBytes() as count:
        result = function()
    del result
    return count.peak
