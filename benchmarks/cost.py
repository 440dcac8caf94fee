"""What a reward costs: floating-point operations and bytes of one reward, of pixel rewards, and of the generator's sampling.

Everything is counted on the meta device, at real sizes and batch 1; nothing is downloaded and nothing is timed, so the rows are
the same on every machine. Operations are those of matrix products, convolutions and attention, as torch's counter has
them: one multiply-accumulate (MAC, the paper's unit) is two FLOPs. Element-wise work is not counted. Text encoders are not
in a row unless it says so: a prompt is encoded once, for the generator too. `docs/cost.md` reads the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import shapes
from benchmarks.shapes import BASES, Base
from dina_lrm.heads import HeadContexts
from dina_lrm.runtime.memory import peak_bytes
from dina_lrm.types import NoisedState

Row = dict[str, Any]
STEPS = 40
ENSEMBLE = 3
PICTURES = ((512, 512, None), (1024, 1024, None))
CLIPS = ((480, 832, 1), (480, 832, 81))
FULL_SIDE = 1036  # the multiple of 28 nearest to 1024: HPSv3 without its resizing
PAPER = "SD3.5 Medium"  # the base of the paper's figures


@dataclass(frozen=True)
class Cost:
    """Of one call.

    Attributes:
        flops: of the forward.
        flops_with_gradient: of the forward and the gradient to its input; None where it was not asked for.
        peak: bytes of activations, most at a time.
        peak_with_gradient: the same, with what the gradient needs kept.
    """

    flops: int
    flops_with_gradient: int | None = None
    peak: int | None = None
    peak_with_gradient: int | None = None

    def __add__(self, other: Cost) -> Cost:
        """One after the other; peaks do not add up."""
        both = (self.flops_with_gradient, other.flops_with_gradient)
        return Cost(self.flops + other.flops, None if None in both else sum(one or 0 for one in both))

    def __mul__(self, times: int) -> Cost:
        return Cost(self.flops * times)


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs of matrix products, convolutions and attention in one call.

    On meta, attention is a product, a softmax and a product: 4 n m d FLOPs forward and 8 n m d backward. Fused kernels compute
    the scores again in the backward, 2 n m d more; causal masks save nothing here.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def measure(read: Callable[[Tensor], Tensor], given: Tensor, gradient: bool = True, peak: bool = True) -> Cost:
    """Cost of `read(given)`, and of it with the gradient to `given`. Weights are frozen.

    Args:
        read: what is counted.
        given: its input, on meta.
        gradient: count the backward too.
        peak: count bytes too.
    """
    forward, both = _calls(read, given)
    flops = Cost(count_flops(forward), count_flops(both) if gradient else None)
    if not peak:
        return flops
    return replace(flops, peak=peak_bytes(forward), peak_with_gradient=peak_bytes(both) if gradient else None)


def _calls(read: Callable[[Tensor], Tensor], given: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """The forward alone, and with its backward to the input."""
    leaf = given.detach().requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            read(given)

    def both() -> None:
        leaf.grad = None
        read(leaf).sum().backward()

    return forward, both


def size_of(*parts: nn.Module) -> tuple[int, int]:
    """Parameters, and their bytes."""
    weights = [value for part in parts for value in part.parameters()]
    return sum(value.numel() for value in weights), sum(value.nbytes for value in weights)


# The costs that several rows share.


@cache
def reward_cost(base: Base, latents: tuple[int, ...], levels: int = 1) -> Cost:
    """One utility; of several levels, their tokens are read once by the head, as the paper's ensemble does."""
    network = shapes.lay_out_reward(base)
    head = network.head
    state, conditioning = network.backbone.example(latents, base.prompt_length)

    def read(noised: Tensor) -> Tensor:
        noisy = NoisedState(noised, state.sigma)
        contexts = [head.contexts(network.backbone.read(noisy, conditioning).float()) for _ in range(levels)]
        return head.read(contexts[0] if levels == 1 else HeadContexts.join(contexts))

    return measure(read, state.noised_latents)


@cache
def evaluation_cost(base: Base, latents: tuple[int, ...], prompt_length: int | None = None) -> Cost:
    """The whole network, once."""
    network = shapes.lay_out_backbone(base, whole=True)
    state, conditioning = network.example(latents, prompt_length or base.sampling_prompt_length)
    with torch.no_grad():
        return Cost(count_flops(lambda: network.run(state, conditioning)))


@cache
def decode_cost(vae: str, latents: tuple[int, ...]) -> Cost:
    """Latents to pixels; clips without their gradient."""
    network = shapes.lay_out_vae(vae)
    return measure(lambda given: network.decode(given).sample, _latents(vae, latents), len(latents) == 3, peak=False)


@cache
def encode_cost(vae: str, height: int, width: int) -> Cost:
    """Pixels to latents."""
    network, pixels = shapes.lay_out_vae(vae), torch.empty(1, 3, height, width, device="meta", dtype=shapes.DTYPE)
    return measure(lambda given: network.encode(given).latent_dist.mode(), pixels, gradient=False, peak=False)


@cache
def scorer(name: str, side: int = shapes.HPSV3_SIDE) -> nn.Module:
    """A pixel reward by name."""
    made: nn.Module = shapes.lay_out(shapes.ClipH if name == "CLIP-H" else lambda: shapes.Hpsv3(side))
    return made


@cache
def scorer_cost(name: str, side: int = shapes.HPSV3_SIDE) -> Cost:
    """Pixels to a score. What the picture's own size is does not matter: it is resized."""
    pixels = torch.empty(1, 3, 512, 512, device="meta", dtype=shapes.DTYPE)
    return measure(scorer(name, side), pixels, peak=False)


@cache
def prompt_cost(t5_tokens: int) -> tuple[Cost, tuple[int, int]]:
    """A prompt through the text encoders of SD3.5, and their size."""
    encoders = shapes.lay_out(lambda: shapes.Sd3Text(t5_tokens))
    with torch.no_grad():
        return Cost(count_flops(lambda: encoders(torch.device("meta")))), size_of(encoders)


@cache
def sampling_step_cost(base: Base, latents: tuple[int, ...]) -> Cost:
    """With guidance, where the generator uses it."""
    return evaluation_cost(base, latents) * base.evaluations


def sampling_cost(base: Base, latents: tuple[int, ...]) -> Cost:
    """All steps, then the decoder."""
    return sampling_step_cost(base, latents) * STEPS + Cost(decode_cost(base.vae, latents).flops)


def _latents(vae: str, latents: tuple[int, ...]) -> Tensor:
    # Qwen-Image's autoencoder is one of clips: a picture is a clip of one frame.
    shape = (latents[0], 1, *latents[1:]) if vae == "Qwen-Image" else latents
    return torch.empty(1, *shape, device="meta", dtype=shapes.DTYPE)


# Rows.


def main(quick: bool = True) -> list[Row]:
    """Quick: SD3.5 Medium and FLUX at 1024 squared, and what stands beside them. Else every base and size, clips too."""
    wanted = [BASES[name] for name in ((PAPER, "FLUX.1 dev") if quick else BASES)]
    pictures = PICTURES[-1:] if quick else PICTURES
    rows = [
        row
        for base in wanted
        for size in (CLIPS if base.kind == "wan" else pictures)
        for row in _rows_of_base(base, *size)
    ]
    rows += [row for size in pictures for row in _rows_of_scorers(*size[:2])]
    rows += [row for size in pictures for row in _rows_from_pictures(*size[:2])]
    return rows if quick else rows + _rows_of_text()


def _row(what: str, kind: str, size: Sequence[int | None], cost: Cost, parameters: tuple[int, int] | None) -> Row:
    height, width, frames = size
    told = {1: ", 1 frame", None: ""}.get(frames, f", {frames} frames")
    with_gradient = cost.flops_with_gradient
    return {
        "what": what,
        "kind": kind,
        "size": f"{width} x {height}{told}",
        "T FLOPs": cost.flops / 1e12,
        "T FLOPs with gradient": None if with_gradient is None else with_gradient / 1e12,
        "T MACs": cost.flops / 2e12,
        "T MACs with gradient": None if with_gradient is None else with_gradient / 2e12,
        "G parameters": None if parameters is None else parameters[0] / 1e9,
        "GB of parameters": None if parameters is None else parameters[1] / 1e9,
        "GB at peak": None if cost.peak is None else cost.peak / 1e9,
        "GB at peak with gradient": None if cost.peak_with_gradient is None else cost.peak_with_gradient / 1e9,
    }


def _rows_of_base(base: Base, height: int, width: int, frames: int | None) -> list[Row]:
    """The reward, once and over three levels; the generator's step and its sampling."""
    latents, size = base.latents(height, width, frames), (height, width, frames)
    reward, network = shapes.lay_out_reward(base), shapes.lay_out_backbone(base, whole=True).network
    kept, whole = size_of(reward.backbone), size_of(network)
    parts = {
        "G parameters kept": kept[0] / 1e9,
        "G parameters dropped": (whole[0] - kept[0]) / 1e9,
        "M parameters of the head": size_of(reward.head)[0] / 1e6,
        "M parameters of the adapter": shapes.adapter_size(base) / 1e6,
        "blocks": f"{reward.backbone.config.depth} of {reward.backbone.facts.num_blocks}",
    }
    cost = reward_cost(base, latents)
    rows = [_row(base.name, "reward", size, cost, size_of(reward)) | _shares(base, latents, size, cost) | parts]
    if base.name == PAPER:
        joined = reward_cost(base, latents, ENSEMBLE)
        what = f"{base.name}, {ENSEMBLE} levels"
        rows.append(_row(what, "ensemble", size, joined, size_of(reward)) | _shares(base, latents, size, joined))
    guided = f", {base.evaluations} evaluations" if base.evaluations > 1 else ""
    step, sampling = sampling_step_cost(base, latents), sampling_cost(base, latents)
    return [
        *rows,
        _row(f"{base.name}: a sampling step{guided}", "step", size, step, whole),
        _row(f"{base.name}: {STEPS} steps and the decoder", "sampling", size, sampling, whole),
        _row(f"{base.name}: decoder", "part", size, decode_cost(base.vae, latents), None),
    ]


def _shares(base: Base, latents: tuple[int, ...], size: Sequence[int | None], cost: Cost) -> Row:
    """The reward against what it replaces (a pixel reward and the decoder it needs) and what it stands beside."""
    step, sampling = sampling_step_cost(base, latents), sampling_cost(base, latents)
    shares: Row = {
        "% of a sampling step": 100 * cost.flops / step.flops,
        "% of sampling": 100 * cost.flops / sampling.flops,
    }
    if size[2] is not None:  # pixel rewards of clips are others
        return shares
    decoder = decode_cost(base.vae, latents)
    for name in ("HPSv3", "CLIP-H"):
        other = decoder + scorer_cost(name)
        assert cost.flops_with_gradient is not None and other.flops_with_gradient is not None
        shares[f"% of {name}"] = 100 * cost.flops / other.flops
        shares[f"% of {name} with gradient"] = 100 * cost.flops_with_gradient / other.flops_with_gradient
    return shares


def _rows_of_scorers(height: int, width: int) -> list[Row]:
    """Pixel rewards on the latents of the paper's base: through its decoder, and back through it for the gradient."""
    base, rows = BASES[PAPER], []
    vae, latents = shapes.lay_out_vae(base.vae), base.latents(height, width)
    wanted = [("HPSv3", shapes.HPSV3_SIDE), ("CLIP-H", 224)]
    if height == 1024:
        wanted.insert(1, ("HPSv3", FULL_SIDE))
    for name, side in wanted:
        network = scorer(name, side)

        def read(given: Tensor, network: nn.Module = network) -> Tensor:
            return network(vae.decode(given).sample)

        # Operations of one part after the other add up; what is held at a time must be counted together.
        forward, both = _calls(read, _latents(base.vae, latents))
        peaks = {"peak": peak_bytes(forward), "peak_with_gradient": peak_bytes(both)}
        cost = replace(decode_cost(base.vae, latents) + scorer_cost(name, side), **peaks)
        what = f"decoder and {name} at {side} x {side}"
        rows.append(_row(what, "pixel reward", (height, width, None), cost, size_of(network, vae.decoder)))
        alone = scorer_cost(name, side)
        rows.append(_row(f"{name} at {side} x {side}", "part", (height, width, None), alone, size_of(network)))
    return rows


def _rows_from_pictures(height: int, width: int) -> list[Row]:
    """A picture and a prompt from disk: the latent reward must encode both; a pixel reward alone is a part above."""
    base = BASES[PAPER]
    prompt, text_size = prompt_cost(base.prompt_length - 77)
    picture, size = encode_cost(base.vae, height, width), (height, width, None)
    reward = Cost(reward_cost(base, base.latents(height, width)).flops)
    return [
        _row(f"{PAPER}: encoder of pictures", "part", size, picture, size_of(shapes.lay_out_vae(base.vae).encoder)),
        _row(f"{PAPER}: text encoders, {base.prompt_length} tokens", "part", size, prompt, text_size),
        _row(f"{PAPER}, from a picture", "from a picture", size, picture + reward, None),
        _row(f"{PAPER}, from a picture and a new prompt", "from a picture", size, picture + reward + prompt, None),
    ]


def _rows_of_text() -> list[Row]:
    """How much of the paper's base hangs on the number of text tokens: reward and one evaluation of the whole network."""
    rows = []
    base, size = BASES[PAPER], (1024, 1024, None)
    latents, network = base.latents(1024, 1024), shapes.lay_out_reward(base)
    for tokens in (1, 77, 205, 333):
        state, conditioning = network.backbone.example(latents, tokens)
        with torch.no_grad():
            features = Cost(count_flops(lambda: network.backbone.read(state, conditioning)))  # noqa: B023 - called here
            reward = Cost(count_flops(lambda: network.head(network.backbone.read(state, conditioning).float())))  # noqa: B023
        told = f"{tokens} text token{'s' if tokens > 1 else ''}"
        rows += [
            _row(f"{PAPER}, {told}: without its head", "text", size, features, None),
            _row(f"{PAPER}, {told}: reward", "text", size, reward, None),
            _row(f"{PAPER}, {told}: whole network", "text", size, evaluation_cost(base, latents, tokens), None),
        ]
    return rows
