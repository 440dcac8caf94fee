"""Where each family's whole network is read, and how: hooks on a pipeline that nothing has been done to.

This is written from the libraries' networks, apart from the package's own readings, so that the two can disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dina_lrm.types import Features
from tests.pipelines import run_one_step

_ZIMAGE_PADS_TO = 32


@dataclass(frozen=True)
class _Call:
    """What a module was given and gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class _Ear:
    """Hooks on modules while a pipeline makes one step."""

    def __init__(self, run: Callable[[], None], modules: Iterable[nn.Module]) -> None:
        self._calls: dict[int, _Call] = {}
        handles = [module.register_forward_hook(self._hear, with_kwargs=True) for module in modules]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()

    def _hear(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        assert id(module) not in self._calls, "one step asks once"
        self._calls[id(module)] = _Call(args, kwargs, output)

    def __getitem__(self, module: nn.Module) -> _Call:
        return self._calls[id(module)]


def whole_of(kind: str) -> Callable[[Any, list[str], Tensor, float, int], Features]:
    """The reading of a kind of `tests.pipelines`."""

    def whole(pipeline: Any, prompts: list[str], latents: Tensor, sigma: float, length: int) -> Features:
        def run() -> None:
            run_one_step(pipeline, kind, prompts, latents, sigma, max_sequence_length=length)

        with torch.no_grad():
            return _READERS[kind](pipeline, run, latents)

    return whole


def _sd3(pipeline: Any, run: Callable[[], None], latents: Tensor) -> Features:
    net = pipeline.transformer
    return _two_streams(net, run, net.pos_embed, net.context_embedder, [*net.transformer_blocks])


def _flux(pipeline: Any, run: Callable[[], None], latents: Tensor) -> Features:
    net = pipeline.transformer
    blocks = [*net.transformer_blocks, *net.single_transformer_blocks]
    return _two_streams(net, run, net.x_embedder, net.context_embedder, blocks)


def _qwen_image(pipeline: Any, run: Callable[[], None], latents: Tensor) -> Features:
    net = pipeline.transformer
    return _two_streams(net, run, net.img_in, net.txt_in, [*net.transformer_blocks])


def _two_streams(
    net: Any, run: Callable[[], None], image: nn.Module, text: nn.Module, blocks: list[nn.Module]
) -> Features:
    """All of these blocks give (text, image); SD3's last gives no text."""
    ear = _Ear(run, [net, image, text, net.time_text_embed, *blocks])
    texts = [ear[text].output, *(ear[block].output[0] for block in blocks)]
    mask = ear[net].kwargs.get("encoder_hidden_states_mask")
    return Features(
        (ear[image].output, *(ear[block].output[1] for block in blocks)),
        tuple(tokens for tokens in texts if tokens is not None),
        ear[net.time_text_embed].output,
        None if mask is None else mask.bool(),
    )


def _zimage(pipeline: Any, run: Callable[[], None], latents: Tensor) -> Features:
    """From the layers on, a sample is image, image padding, caption, caption padding, and zeros up to the longest."""
    net = pipeline.transformer
    refined = [net.noise_refiner[-1], net.context_refiner[-1]]
    ear = _Ear(run, [net, net.t_embedder, *refined, *net.layers])
    tokens = latents.shape[-2] * latents.shape[-1] // 4
    start = math.ceil(tokens / _ZIMAGE_PADS_TO) * _ZIMAGE_PADS_TO
    lengths = torch.tensor([len(caption) for caption in ear[net].args[2]])
    texts = [ear[refined[1]].output, *(ear[layer].output[:, start:] for layer in net.layers)]
    return Features(
        (ear[refined[0]].output[:, :tokens], *(ear[layer].output[:, :tokens] for layer in net.layers)),
        tuple(texts),
        ear[net.t_embedder].output,
        torch.arange(texts[0].shape[1]) < lengths.unsqueeze(1),
    )


def _unet(pipeline: Any, run: Callable[[], None], latents: Tensor) -> Features:
    net = pipeline.unet
    resnet = net.down_blocks[0].resnets[0]
    blocks = [net.conv_in, *net.down_blocks, net.mid_block, *net.up_blocks]
    ear = _Ear(run, [net, resnet, *blocks])
    outputs = [ear[block].output for block in blocks]
    grids = [output[0] if isinstance(output, tuple) else output for output in outputs]
    image = tuple(grid.permute(0, 2, 3, 1).flatten(1, 2) for grid in grids)
    return Features(image, (ear[net].kwargs["encoder_hidden_states"],), ear[resnet].args[1])


def _wan(pipeline: Any, run: Callable[[], None], latents: Tensor) -> Features:
    net = pipeline.transformer
    embedder = net.condition_embedder
    ear = _Ear(run, [net.patch_embedding, embedder.text_embedder, embedder.time_embedder, *net.blocks])
    patches = ear[net.patch_embedding].output.permute(0, 2, 3, 4, 1).flatten(1, 3)
    return Features(
        (patches, *(ear[block].output for block in net.blocks)),
        (ear[embedder.text_embedder].output,),
        ear[embedder.time_embedder].output,
    )


_READERS: dict[str, Callable[[Any, Callable[[], None], Tensor], Features]] = {
    "sd3": _sd3,
    "sd35": _sd3,
    "sd35_large": _sd3,
    "flux": _flux,
    "flux_schnell": _flux,
    "zimage": _zimage,
    "qwen_image": _qwen_image,
    "sdxl": _unet,
    "sd15": _unet,
    "wan": _wan,
}
