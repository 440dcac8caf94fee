"""What `benchmarks/scoring.py` measures on a GPU: images a second, memory and share of the peak, and the gradient's memory.

1024 x 1024, bfloat16, random weights, float32 head. A share is of the device's dense bfloat16 rate as its maker states it, or, for a
device that is not in the list, of the rate that a large product reaches on it; the row says which. What does not fit is a row
that says so. The gradient runs from the score to the latents: through the kept blocks and the head, or through the decoder and a
vision-language model of HPSv3's shape, at its own resizing and without.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import shapes
from benchmarks.random_models import first_blocks, flops_of_reward, make_inputs, make_model, make_network
from benchmarks.shapes import BASES, Base

Row = dict[str, Any]
TARGET = 0.45
PAPER_GB = {"latents": 39.1, "pixels": 80.4}
BATCHES = (1, 2, 4, 8, 16)
SIDE, FULL_SIDE = 1024, 1036  # pixels; a pixel reward's own patches want a multiple of 28
WARM_UPS = 3
# Dense bfloat16, TFLOP/s, by the name that the driver gives; variants of one chip differ, so nothing is guessed.
PEAKS = {
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H200": 989.4,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
}


@dataclass(frozen=True)
class Peak:
    """FLOP/s that a share is of, and whose number that is."""

    rate: float
    told: str


@dataclass(frozen=True)
class PixelShape:
    """Sizes of a pixel reward: configs of its parts, side of what it reads, tokens around the picture."""

    vae: dict[str, Any]
    text: dict[str, Any]
    vision: dict[str, Any]
    side: int
    text_tokens: int


HPSV3 = PixelShape(
    vae=shapes.VAES["16 channels"][1],
    text=shapes.QWEN2_VL_TEXT,
    vision=dict(hidden_size=shapes.QWEN2_VL_TEXT["hidden_size"]),
    side=shapes.HPSV3_SIDE,
    text_tokens=shapes.HPSV3_TEXT,
)


def rows(quick: bool) -> list[Row]:
    """All rows; one that says so where there is no GPU. Quick: SD3.5 Medium, batches of 1 and 4, not compiled."""
    if not torch.cuda.is_available():
        return [{"what": "on a GPU", "note": "no GPU here"}]
    device = torch.device("cuda")
    sd3, flux = BASES["SD3.5 Medium"], BASES["FLUX.1 dev"]
    sd3, flux = (first_blocks(base, base.settings()[0].image_taps) for base in (sd3, flux))
    peak = peak_of(device)
    found = speed_rows(sd3, device, peak, (1, 4) if quick else BATCHES, compiled=not quick)
    if not quick:
        found += speed_rows(flux, device, peak, BATCHES)
    return found + gradient_rows(sd3, device, (HPSV3.side,) if quick else (HPSV3.side, FULL_SIDE))


# The device.


def synchronise(device: torch.device) -> None:
    """Wait until it has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> int:
    """Free what nobody holds and measure from here; bytes that are held."""
    gc.collect()
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def most_memory(device: torch.device) -> int:
    """Bytes of tensors held at most since `forget_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def peak_of(device: torch.device, side: int = 8192) -> Peak:
    """Stated rate of the device, or the one that products of this size reach.

    Args:
        device: whose.
        side: of the matrices.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if name in PEAKS:
        return Peak(PEAKS[name] * 1e12, f"{name}, stated")
    left, right = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    seconds = seconds_of(lambda: torch.mm(left, right), device, 10)
    return Peak(2 * side**3 / seconds, f"{name}, product of {side} squared")


def seconds_of(call: Callable[[], Any], device: torch.device, turns: int) -> float:
    """Median time of a call, after warming up."""
    taken = []
    for turn in range(WARM_UPS + turns):
        synchronise(device)
        started = time.perf_counter()
        call()
        synchronise(device)
        if turn >= WARM_UPS:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def or_out_of_memory(measure: Callable[[], Row], device: torch.device) -> Row:
    """What was measured, or that it does not fit."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        pass
    # Outside the handler: the error's traceback holds what had been allocated.
    forget_peak(device)
    return {"note": "out of memory"}


# Speed.


def speed_rows(
    base: Base,
    device: torch.device,
    peak: Peak,
    batches: Sequence[int],
    compiled: bool = True,
    side: int = SIDE,
    turns: int = 10,
) -> list[Row]:
    """Batches of one base, eager, then compiled.

    Args:
        base: with the blocks that are kept.
        device: where.
        peak: what shares are of.
        batches: sizes.
        compiled: time compiled blocks too.
        side: of the square picture.
        turns: timed calls each.
    """
    latents, found = base.latents(side, side), []
    network = make_network(base, torch.bfloat16, device)
    for compile_it in (False, True) if compiled else (False,):
        reward = make_model(base, network).network
        if compile_it:
            reward.backbone.compile_blocks(dynamic=False)
        for batch in batches:

            def measure(reward: Any = reward, batch: int = batch) -> Row:
                state, conditioning = make_inputs(reward.backbone, latents, base.prompt_length, batch)
                with torch.no_grad():
                    forget_peak(device)
                    seconds = seconds_of(lambda: reward(state, conditioning), device, turns)
                rate = flops_of_reward(base, latents, batch) / seconds
                return {
                    "s": seconds,
                    "images/s": batch / seconds,
                    "GB at peak": most_memory(device) / 1e9,
                    "TFLOP/s": rate / 1e12,
                    "share": rate / peak.rate,
                    "share of": peak.told,
                }

            torch._dynamo.reset()  # each batch is compiled for its own shape, and never meets the limit of recompilations
            blocks = base.settings()[0].depth
            told = {"what": f"{base.name}, {'blocks compiled' if compile_it else 'eager'}", "blocks": blocks}
            size = {"picture": f"{side} x {side}", "precision": "bfloat16", "batch": batch, "target": TARGET}
            found.append(told | size | or_out_of_memory(measure, device))
    return found


# Memory of the gradient.


class PixelReward(nn.Module):
    """Latents to a score: decoder, vision tower, language model, three linear layers; `shapes.Hpsv3` with inputs that are real.

    Args:
        shape: of its parts.
    """

    def __init__(self, shape: PixelShape) -> None:
        super().__init__()
        from diffusers import AutoencoderKL
        from transformers import Qwen2VLConfig, Qwen2VLModel

        self.shape = shape
        self.vae = AutoencoderKL(**shape.vae)
        del self.vae.encoder  # a reward on latents does not need it
        self.model = Qwen2VLModel(Qwen2VLConfig(text_config=shape.text, vision_config=shape.vision))
        width = shape.text["hidden_size"]
        self.head = nn.Sequential(nn.Linear(width, 1024), nn.ReLU(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2))

    def enable_gradient_checkpointing(self) -> None:
        """In all of its parts. There is no dropout, so training mode, which the language model asks for, changes no number."""
        self.vae.enable_gradient_checkpointing()
        self.model.activation_checkpointing_enable()
        self.model.train()

    def forward(self, latents: Tensor) -> Tensor:
        side, grid = self.shape.side, self.shape.side // shapes.PATCH
        pixels = self.vae.decode(latents).sample
        picture = F.interpolate(pixels, (side, side), mode="bicubic")
        # A picture is a clip of two equal frames. The order of the patches costs nothing, so it is not kept.
        patches = picture.repeat(2, 1, 1, 1).reshape(grid**2, -1)
        seen = self.model.visual(patches, grid_thw=torch.tensor([[1, grid, grid]], device=latents.device))
        words = torch.zeros(self.shape.text_tokens, dtype=torch.long, device=latents.device)
        tokens = torch.cat([seen.pooler_output, self.model.language_model.embed_tokens(words)])[None]
        hidden = self.model.language_model(inputs_embeds=tokens, use_cache=False).last_hidden_state
        score: Tensor = self.head(hidden)[:, -1, 0]
        return score


def gradient_rows(
    base: Base,
    device: torch.device,
    pixel_sides: Sequence[int] = (HPSV3.side, FULL_SIDE),
    side: int = SIDE,
    shape: PixelShape = HPSV3,
) -> list[Row]:
    """Memory and time of a score and its gradient to the latents, batch 1, weights frozen.

    Args:
        base: of the latent reward.
        device: where.
        pixel_sides: what the pixel reward resizes a picture to.
        side: of the square picture.
        shape: of the pixel reward, but for its side.
    """
    latents, found = base.latents(side, side), []
    rewards: list[tuple[str, str, Callable[[bool], Callable[[Tensor], Tensor]]]] = [
        ("latents", f"{base.name}, gradient to latents", lambda saving: _on_latents(base, device, latents, saving))
    ]
    for one in pixel_sides:
        sized = PixelShape(shape.vae, shape.text, shape.vision, one, shape.text_tokens)
        what = f"decoder and HPSv3's shape at {one} x {one}, gradient to latents"
        rewards.append(("pixels", what, lambda saving, sized=sized: _on_pixels(sized, device, saving)))  # type: ignore[misc]
    for kind, what, build in rewards:
        for saving in (False, True):
            told = {"what": what + (", checkpointed" if saving else ""), "picture": f"{side} x {side}", "batch": 1}
            measured = or_out_of_memory(lambda: _gradient(build, saving, latents, device), device)  # noqa: B023 - called here
            paper = None if saving else PAPER_GB[kind]
            found.append({**told, "precision": "bfloat16", **measured, "GB in the paper": paper})
    return found


def _gradient(
    build: Callable[[bool], Callable[[Tensor], Tensor]], saving: bool, latents: Sequence[int], device: torch.device
) -> Row:
    forget_peak(device)
    read = build(saving)
    weights = forget_peak(device)
    given = torch.randn(1, *latents, device=device).to(torch.bfloat16).requires_grad_()

    def call() -> None:
        given.grad = None
        read(given).sum().backward()

    seconds = seconds_of(call, device, 3)
    assert given.grad is not None and bool(given.grad.isfinite().all())
    return {"s": seconds, "GB of weights": weights / 1e9, "GB at peak": most_memory(device) / 1e9}


def _on_latents(base: Base, device: torch.device, latents: Sequence[int], saving: bool) -> Callable[[Tensor], Tensor]:
    model = make_model(base, make_network(base, torch.bfloat16, device))
    backbone = model.network.backbone
    if saving:
        backbone.enable_gradient_checkpointing()
    state, conditioning = make_inputs(backbone, latents, base.prompt_length)
    return lambda noised: model.utility(type(state)(noised, state.sigma), conditioning)


def _on_pixels(shape: PixelShape, device: torch.device, saving: bool) -> Callable[[Tensor], Tensor]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # from the start: in float32 it might not fit
    try:
        with torch.device(device):
            reward = PixelReward(shape).requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(before)
    if saving:
        reward.enable_gradient_checkpointing()
    return reward
