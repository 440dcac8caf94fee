"""Frozen weights that several processes hold together, a part each (FSDP2): what is learned stays whole on every one."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dina_lrm.errors import ConfigError

__all__ = ["check_shards", "shard_frozen"]

Place: TypeAlias = tuple[int, int, torch.Size]


def check_shards(shards: int, num_processes: int) -> None:
    """Refuse what cannot be dealt out.

    Args:
        shards: processes that hold the weights together.
        num_processes: that there are.

    Raises:
        ConfigError: they do not divide, or this torch is too old.
    """
    if shards == 1:
        return
    if num_processes % shards:
        raise ConfigError(
            f"base_shards={shards} must divide the number of processes, which is {num_processes}; "
            f"start {shards} or a multiple with torchrun --nproc-per-node, or set base_shards=1"
        )
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise ConfigError(f"base_shards needs torch 2.7 or later, this is {torch.__version__}; or set base_shards=1")


def shard_frozen(
    networks: Sequence[tuple[nn.Module, Sequence[nn.Module]]], device: torch.device, num_processes: int, shards: int
) -> None:
    """Deal the frozen weights of blocks out, in place; each block gathers its own while it runs.

    From then on all processes must run the networks equally often and in one order: who does not come keeps the others
    waiting. What requires gradients, and what is outside the blocks, is moved to the device whole. Weights that several networks
    have in common stay in common.

    Args:
        networks: each with its blocks; on any device.
        device: where they are to run.
        num_processes: that there are.
        shards: processes that hold one copy together.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    # Blocks return views, which torch warns of: writing into one would lose its gradient. None of diffusers' does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    mesh = init_device_mesh(device.type, (num_processes // shards, shards), mesh_dim_names=("copy", "part"))["part"]
    # Where everything is must be known before anything is freed: what is freed is given to others.
    homes = [[(module, leaf, _place(value)) for module, leaf, value in _tensors(network)] for network, _ in networks]
    known: dict[Place, Any] = {}
    for (network, blocks), home in zip(networks, homes, strict=True):
        # What an earlier network has is not dealt out twice.
        for module, leaf, place in home:
            if place in known and leaf in module._parameters:
                module._parameters[leaf] = _without_storage(module._parameters[leaf])
        for block in blocks:
            fully_shard(block, mesh=mesh, ignored_params={p for n, p in block.named_parameters() if _stays_whole(n, p)})
        # A root with nothing of its own: it lets a block be gathered while the one before it runs.
        fully_shard(network, mesh=mesh, ignored_params=set(network.parameters()))
        for module, leaf, place in home:
            held = module._parameters if leaf in module._parameters else module._buffers
            value: Any = held[leaf]
            if isinstance(value, nn.Parameter) and value.requires_grad:
                value.data = value.data.to(device)
                continue
            if place not in known:
                known[place] = value if isinstance(value, DTensor) else _moved(value, device)
            held[leaf] = known[place]


def _stays_whole(name: str, parameter: nn.Parameter) -> bool:
    """What is learned; and adapters of others, of another dtype than the base, which older versions gather apart or not at all."""
    return parameter.requires_grad or "lora_" in name


def _tensors(network: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in network.modules():
        for leaf, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is not None:
                yield module, leaf, value


def _place(tensor: Tensor) -> Place:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tensor.shape


def _without_storage(parameter: Any) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to("meta"), False)


def _moved(value: Any, device: torch.device) -> Any:
    """A copy, also where it is there already: what it was read from, with all else that stood there, can be let go."""
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.data.to(device, copy=True), False)
    return value.to(device, copy=True)
