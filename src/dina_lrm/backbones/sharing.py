"""A network of our own on the weights of somebody else's: nothing is copied, nothing of theirs is touched."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dina_lrm.errors import BaseMismatchError

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_FLAGS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
# What accelerate's offloading and peft leave on a module: it is bound to the caller's module, not to ours.
_THEIRS = ("forward", "_hf_hook", "_old_forward", "peft_config", "_hf_peft_config_loaded", "_diffusers_hook")


def unwrapped(network: Any) -> Any:
    """The network itself inside torch.compile, DDP and peft."""
    while True:
        if hasattr(network, "_orig_mod"):
            network = network._orig_mod
        elif isinstance(network, nn.parallel.DistributedDataParallel):
            network = network.module
        elif hasattr(network, "get_base_model"):
            network = network.get_base_model()
        else:
            return network


def shared(network: nn.Module) -> Any:
    """A twin of a network: modules of its own on the same storage, without the adapters and hooks of the original.

    What is later done to the twin (cutting, injecting LoRA, train mode, moving, casting) the original does not notice.

    Raises:
        BaseMismatchError: an adapter is merged into the weights, or they are offloaded: there is nothing pure to share.
    """
    return _twin(unwrapped(network), {})


def _twin(module: nn.Module, known: dict[int, Any]) -> nn.Module:
    module = _without_adapters(module)
    if id(module) in known:
        return known[id(module)]
    twin = known[id(module)] = copy.copy(module)
    for name in _HOOKS + _FLAGS:
        twin.__dict__[name] = OrderedDict()
    for name in _THEIRS:
        twin.__dict__.pop(name, None)
    twin.__dict__["_compiled_call_impl"] = None
    twin._parameters = {name: _same_storage(name, p, known) for name, p in module._parameters.items()}
    twin._buffers = dict(module._buffers)
    twin._modules = {name: None if child is None else _twin(child, known) for name, child in module._modules.items()}
    twin.training = False
    return twin


def _same_storage(name: str, parameter: nn.Parameter | None, known: dict[int, Any]) -> nn.Parameter | None:
    if parameter is None:
        return None
    if parameter.is_meta:
        raise BaseMismatchError(
            f"weight {name!r} of the loaded pipeline is offloaded; give a pipeline that is whole on one device, or its folder"
        )
    if not parameter.is_floating_point() or type(parameter) is not nn.Parameter or parameter.itemsize < 2:
        raise BaseMismatchError(
            f"weight {name!r} of the loaded pipeline is quantised ({type(parameter).__name__}, {parameter.dtype}) and cannot "
            "be read in place; give the base in bfloat16, float16 or float32"
        )
    if id(parameter) not in known:
        known[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    twin: nn.Parameter = known[id(parameter)]
    return twin


def _without_adapters(module: nn.Module) -> nn.Module:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if isinstance(module, AuxiliaryTrainingWrapper):
        original: nn.Module = module.original_module
        return original
    if not isinstance(module, BaseTunerLayer):
        return module
    if module.merged:
        raise BaseMismatchError(
            f"adapter {module.merged_adapters} is merged into the loaded pipeline, so its base weights are gone; "
            "unmerge it (unfuse_lora), or give the base as a folder"
        )
    base: nn.Module = module.get_base_layer()
    return base


def put(network: nn.Module, name: str, value: Tensor, requires_grad: bool = False) -> None:
    """Give a network another tensor under a name; the old one, and whoever shares it, is not written to."""
    owner, _, leaf = name.rpartition(".")
    module = network.get_submodule(owner)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(value, requires_grad)
    else:
        module._buffers[leaf] = value


@contextmanager
def adapters_off(networks: Iterable[Any]) -> Iterator[None]:
    """Inside, no layer of the networks adds an adapter; afterwards each is as it was.

    peft's own switch would also set requires_grad.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = [m for network in networks if isinstance(network, nn.Module) for m in network.modules()]
    layers: list[Any] = [module for module in modules if isinstance(module, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, off in zip(layers, before, strict=True):
            layer._disable_adapters = off


def give_own_storage(network: nn.Module) -> None:
    """Copy every weight and table, so that writing to them writes to nobody else's."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        module._buffers = {
            name: buffer if buffer is None else buffer.clone() for name, buffer in module._buffers.items()
        }


def without_storage(network: nn.Module) -> nn.Module:
    """A copy with the shapes of the weights, on the meta device."""
    known: dict[int, Any] = {}
    for module in network.modules():
        for name, value in [*vars(module).items(), *module._parameters.items(), *module._buffers.items()]:
            if isinstance(value, nn.Parameter):
                known[id(value)] = nn.Parameter(value.detach().to("meta"), value.requires_grad)
            elif isinstance(value, Tensor) and not name.startswith("_"):
                known[id(value)] = value.to("meta")
    copied = copy.deepcopy(network, known)
    for module in copied.modules():
        module.__dict__.pop("forward", None)  # a compiled one is bound to the module that it was made of
    return copied
