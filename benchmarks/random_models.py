"""Reward models of real sizes on random weights: speed and memory do not ask what the weights say.

A network is made once; what reads it are twins on its storage, as backbones of a loaded pipeline are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import shapes
from benchmarks.cost import count_flops
from benchmarks.shapes import Base
from dina_lrm.backbones import loading
from dina_lrm.backbones.registry import backbone_class
from dina_lrm.backbones.sharing import put, shared
from dina_lrm.checkpoint import BaseReference, LoadedModel, ModelConfig
from dina_lrm.model import build_network
from dina_lrm.scoring import RewardModel
from dina_lrm.types import Conditioning, NoisedState

SIGMA = 0.4


def first_blocks(base: Base, taps: Sequence[int]) -> Base:
    """The same base with no more blocks than these taps need, so that none is made only to be cut away."""
    depth = taps[-1]
    # SD3's last block ends the text stream, so it cannot be read; FLUX goes on with blocks of one stream, after two.
    counts = {"num_layers": depth, "num_single_layers": 0} if base.kind == "flux" else {"num_layers": depth + 1}
    head = base.settings()[1]
    return replace(base, recipe=None, network={**base.network, **counts}, taps=tuple(taps), head=head)


def make_network(base: Base, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Any:
    """The base's network before any cut, frozen; filled from one block of random values, which is fast."""
    cls: Any = backbone_class(base.kind).network_class
    network = loading.cast(loading.lay_out(cls, base.network), dtype)
    block = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(device)
    for name, weight in network.state_dict().items():
        if weight.is_meta:
            filled = torch.empty(weight.shape, dtype=weight.dtype, device=device)
            # Scales of norms are vectors called weight: near zero they would leave nothing of what passes.
            _fill(filled, torch.ones_like(block) if name.endswith("weight") and weight.ndim == 1 else block)
            put(network, name, filled)
    return network.to(device).requires_grad_(False).eval()


def _fill(tensor: Tensor, block: Tensor) -> None:
    flat = tensor.view(-1)
    for start in range(0, len(flat), len(block)):
        flat[start : start + len(block)] = block[: len(flat) - start]


def make_model(base: Base, network: nn.Module, adapter: bool = False) -> RewardModel:
    """A reward model on the storage of a network, with the base's own head; an adapter is drawn, not zero."""
    cls = backbone_class(base.kind)
    config, head = base.settings()
    if not adapter:
        config = config.model_copy(update={"adapter": None})
    kept = shared(network)
    cls.cut(kept, config)
    device = next(network.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(1)
        backbone = cls(config, kept, base=base.name, name=base.name)
        for name, parameter in backbone.network.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.02)
        reward = build_network(backbone, head).to(device).requires_grad_(False).eval()
    return RewardModel(LoadedModel(reward, ModelConfig(backbone=config, base=BaseReference(name=base.name), head=head)))


def plain_network(base: Base, network: nn.Module) -> Any:
    """The blocks that the reward keeps, in the library's network with its output layers: nothing of ours is in it."""
    return _keep_blocks(base, shared(network))


def _keep_blocks(base: Base, network: Any) -> Any:
    network.transformer_blocks = nn.ModuleList(network.transformer_blocks[: base.settings()[0].depth])
    return network


def make_inputs(
    backbone: Any, latents: Sequence[int], prompt_length: int, batch: int = 1
) -> tuple[NoisedState, Conditioning]:
    """A noised state and an encoded prompt of a `PipelineBackbone`'s sizes, dtype and device, the same at every call."""
    generator = torch.Generator().manual_seed(2)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(backbone.device, like.dtype)

    state, conditioning = backbone.example(latents, prompt_length, batch)
    sigma = torch.full((batch,), SIGMA, device=backbone.device)
    return NoisedState(draw(state.noised_latents), sigma), conditioning.map(draw)


def flops_of_reward(base: Base, latents: Sequence[int], batch: int = 1) -> int:
    """Of backbone and head, counted on meta: on real devices the counter misses some fused attention."""
    network = shapes.lay_out_reward(base)
    state, conditioning = network.backbone.example(latents, base.prompt_length, batch)
    with torch.no_grad():
        return count_flops(lambda: network.head(network.backbone.read(state, conditioning).float()))


def flops_of_plain(base: Base, latents: Sequence[int]) -> int:
    """Of `plain_network`, counted on meta."""
    plain = copy.copy(shapes.lay_out_backbone(base, whole=True))
    plain._modules = {"network": _keep_blocks(base, copy.deepcopy(plain.network))}
    state, conditioning = plain.example(latents, base.prompt_length)
    with torch.no_grad():
        return count_flops(lambda: plain.run(state, conditioning))
