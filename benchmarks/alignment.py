"""An update of preference optimisation against a naive one, in one process, in turns, on the emoji world; and what updates of
Stable Diffusion 3.5 Medium hold at 1024 x 1024, counted.

The naive update keeps a second network for the reference where ours switches the adapter off, gives the reward a base of its own
where ours reads the policy's weights, decodes the samples and encodes the pictures again for a reward that could have read the
latents (with a gradient through both in ReFL), and encodes its prompts every time. Each of these is also measured alone.
All else is the same code: prompts, noise, rollout, loss, gradients, clip, AdamW, EMA. Weights are the emoji world's own; the reward's
head is fresh, for what it says does not change what it costs.

Seconds are the processor's, of one thread: other work on the machine hardly touches them.
Bytes are those of tensors: what is made during an update at its peak (`runtime.memory`), and what is held between updates (weights,
the optimiser's and the average's; nothing that only evaluation needs). FLOPs are counted as in `benchmarks/cost.py`.

The rows of kind "counted" are of no run: shapes on the meta device, batch 1, as the paper's figures are. They do not measure
an allocator, kernels' scratch memory or anything else that a process holds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from benchmarks import shapes
from benchmarks.cost import PAPER, count_flops, scorer, size_of
from benchmarks.shapes import BASES
from dina_lrm.alignment import AlignConfig
from dina_lrm.alignment.algorithms import flow_grpo, refl
from dina_lrm.alignment.rewards import Finished, Mixture, Term, Weighted
from dina_lrm.alignment.run import AlignRun
from dina_lrm.backbones import AdapterConfig, BackboneConfig, load_backbone
from dina_lrm.backbones.loading import cast, load_pipeline
from dina_lrm.backbones.pipeline import PipelineBackbone
from dina_lrm.backbones.registry import backbone_class
from dina_lrm.checkpoint import BaseReference, ModelConfig, save_model
from dina_lrm.demo.settings import FULL, RUNS, train_config
from dina_lrm.demo.world import num_blocks
from dina_lrm.generation import Policy
from dina_lrm.model import build_network
from dina_lrm.runtime.accelerator import create_accelerator
from dina_lrm.runtime.memory import FusedKernels, peak_bytes
from dina_lrm.scoring import RewardModel
from dina_lrm.types import Conditioning, NoisedState
from dina_lrm.worlds.emoji import emoji_prompts
from dina_lrm.worlds.locate import emoji_root

Row = dict[str, Any]
SIGMA = 0.4
SIDE = 1024
TOKENS = 16  # as the emoji world's card recommends
# The paper's measurement at 1024 x 1024, batch 1 (section 5): gigabytes, and T multiply-accumulates of an update.
PUBLISHED = {"latents": (39.1, 18.3), "HPSv3": (80.4, 34.4)}


@dataclass(frozen=True)
class Case:
    """What is updated.

    Attributes:
        name: for people.
        algorithm: as in a configuration.
        prompts: of an update.
        steps: of the sampler.
    """

    name: str
    algorithm: Row
    prompts: int
    steps: int

    def settings(self, base: Path | str, reward: Path, folder: Path) -> AlignConfig:
        """A run of it."""
        return AlignConfig.model_validate(
            dict(
                base=str(base),
                out=folder / "run",
                prompts=dict(kind="file", path=folder / "prompts.txt"),
                algorithm=self.algorithm,
                rewards=(dict(kind="latent", model=str(reward), sigmas=(SIGMA,)),),
                sampler=dict(num_steps=self.steps, guidance=2.0),
                max_sequence_length=TOKENS,
                prompts_per_update=self.prompts,
                num_updates=10_000,
                device="cpu",
            )
        )


CASES = (
    Case("ReFL", dict(kind="refl", kl=0.1), 16, 12),
    Case("Flow-GRPO", dict(kind="flow_grpo", group_size=8, kl=0.04), 2, 10),
)


class Reencoded(Term):
    """A reward on a base of its own that is given pictures: decoded by the generator, encoded again, prompts in words."""

    differentiable = True

    def __init__(self, reward: RewardModel) -> None:
        self.reward = reward

    def ask(self, samples: Finished) -> Tensor:
        text = self.reward.encode_prompts(samples.prompts)
        latents = _encoded(self.reward.network.backbone, samples.pixels)
        return self.reward.score(latents=latents, conditioning=text, sigmas=(SIGMA,), seed=samples.seeds).reward


def _encoded(backbone: Any, pixels: Tensor) -> Tensor:
    """As `encode_images`, which makes no graph."""
    raw = backbone._autoencoder().encode(pixels * 2 - 1).latent_dist.mode()
    shift, scale = backbone.shift_and_scale(raw)
    latents: Tensor = (raw - shift) * scale
    return latents


@dataclass
class Pair:
    """A run, and what makes its updates naive.

    Attributes:
        run: ours.
        copy: a second generator, never trained, with its text encoders.
        reward: a second reward, on its own base.
        sampling: seconds of rollouts in the last update.
    """

    run: AlignRun
    copy: Policy
    reward: RewardModel
    sampling: float = 0.0

    @staticmethod
    def of(config: AlignConfig) -> Pair:
        """Load both."""
        copy = Policy(load_pipeline(config.base, torch.float32, "cpu"), config.adapter, config.max_sequence_length)
        copy.requires_grad_(False)
        reward = RewardModel.from_pretrained(config.rewards[0].model, base=config.base)  # type: ignore[union-attr]
        reward.encode_prompts([""])  # its encoders and its VAE are there from now on
        reward.network.backbone._autoencoder().requires_grad_(False)  # type: ignore[attr-defined]
        reward.network.requires_grad_(False)
        return Pair(AlignRun(config, create_accelerator(device="cpu")), copy, reward)

    def kinds(self) -> dict[str, Callable[[], Any]]:
        """What makes an update naive, by name; each a context."""
        return {
            "ours": nullcontext,
            "prompts encoded each time": self._prompts_again,
            "reference is a second network": self._reference_apart,
            "reward on its own base, through pictures": self._through_pictures,
            "naive": self._naive,
        }

    def held(self, kind: str) -> int:
        """Bytes between updates."""
        run, parts = self.run, self.copy.pipeline.components
        states = [value for state in run._optimiser.state.values() for value in state.values()]
        average = [] if run._ema is None else list(run._ema.state_dict().values())
        shared: Any = run.cast.mixture.terms[0].term
        modules: list[nn.Module] = [run.cast.policy.backbone.network]
        if kind in ("prompts encoded each time", "naive"):
            modules += _text_encoders(self.copy.pipeline)
        if kind in ("reference is a second network", "naive"):
            modules.append(parts[self.copy.backbone.part])
        if kind in ("reward on its own base, through pictures", "naive"):
            own: Any = self.reward.network.backbone
            modules += [self.reward.network, own._autoencoder(), parts["vae"], *_text_encoders(own._text_pipeline())]
        else:
            modules.append(shared.reward.network)
        weights = [value for module in modules for value in module.parameters()]
        return _bytes_of([value for value in (*states, *average, *weights) if isinstance(value, Tensor)])

    @contextmanager
    def _prompts_again(self) -> Iterator[None]:
        cast = self.run.cast
        self.run.cast = replace(cast, text=self.copy.backbone.encode_prompts)
        try:
            yield
        finally:
            self.run.cast = cast

    @contextmanager
    def _reference_apart(self) -> Iterator[None]:
        actors, asked = self.run._actors, False

        @contextmanager
        def reference() -> Iterator[None]:
            nonlocal asked
            asked = True
            try:
                yield
            finally:
                asked = False

        def policy(state: NoisedState, conditioning: Conditioning) -> Tensor:
            if not asked:
                return actors.policy(state, conditioning)
            with self.copy.reference():  # a copy of the base needs no adapter
                return self.copy(state, conditioning)

        self.run._actors = replace(actors, policy=policy, reference=reference)
        try:
            yield
        finally:
            self.run._actors = actors

    @contextmanager
    def _through_pictures(self) -> Iterator[None]:
        cast = self.run.cast
        self.run.cast = replace(cast, mixture=Mixture((Weighted("reward", Reencoded(self.reward)),)))
        try:
            yield
        finally:
            self.run.cast = cast

    @contextmanager
    def _naive(self) -> Iterator[None]:
        with self._prompts_again(), self._reference_apart(), self._through_pictures():
            yield

    def update(self, number: int) -> None:
        """One update; seconds of its sampling aside."""
        self.sampling = 0.0

        def timed(*args: Any, rollout: Callable[..., Any] = refl.rollout, **kwargs: Any) -> Any:
            began = time.process_time()
            way = rollout(*args, **kwargs)
            self.sampling += time.process_time() - began
            return way

        with patch.object(refl, "rollout", timed), patch.object(flow_grpo, "rollout", timed):
            self.run.update(number)


def _text_encoders(pipeline: Any) -> list[nn.Module]:
    return [part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part is not None]


def _bytes_of(tensors: Sequence[Tensor]) -> int:
    """Each storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def main(quick: bool = True, world: Path | None = None) -> list[Row]:
    """Quick: two turns of ReFL and one of Flow-GRPO, and no more than what the policy's own step holds; else 8 and 4."""
    root = emoji_root(world)
    turns = (2, 1) if quick else (8, 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = _on_emoji(root, turns)
    finally:
        torch.set_num_threads(threads)
    return rows + (counted(rewards=("latents",), again=(False,)) if quick else counted())


def _on_emoji(root: Path, turns: Sequence[int]) -> list[Row]:
    rows: list[Row] = []
    for case, count in zip(CASES, turns, strict=True):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            reward = emoji_reward(root, folder)
            (folder / "prompts.txt").write_text("\n".join(emoji_prompts("train", root)[:64]))
            rows += measured(case, Pair.of(case.settings(root / "pipeline", reward, folder)), count)
    return rows


def emoji_reward(root: Path, folder: Path) -> Path:
    """A reward of the demo's shape, as it is before it learns."""
    config = train_config(root, folder, RUNS["main"], FULL, num_blocks(root), 0)
    torch.manual_seed(0)
    network = build_network(load_backbone(config.backbone, config.base), config.head)
    told = ModelConfig(backbone=config.backbone, base=BaseReference(name=config.base), head=config.head)
    save_model(folder / "reward", network, told)
    return folder / "reward"


def measured(case: Case, pair: Pair, turns: int) -> list[Row]:
    """Each kind of update in turn, after one of each that is not counted."""
    kinds = pair.kinds()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for turn in range(1 + turns):
        for name, naive in kinds.items():
            began = time.process_time()
            with naive():
                pair.update(turn)
            whole = time.process_time() - began
            if turn:
                taken[name].append((whole, whole - pair.sampling))
    bytes_made, flops = {}, {}
    for name, naive in kinds.items():
        with naive():
            bytes_made[name] = peak_bytes(partial(pair.update, turns + 1))
            with sdpa_kernel(SDPBackend.MATH):  # torch's counter knows no fused attention of a CPU
                flops[name] = count_flops(partial(pair.update, turns + 1))
    rows = []
    for name in kinds:
        both = bytes_made[name] + pair.held(name)
        ratios = [
            sorted(mine[i] / other[i] for mine, other in zip(taken[name], taken["ours"], strict=True)) for i in (0, 1)
        ]
        rows.append(
            {
                "kind": "measured",
                "algorithm": case.name,
                "update": name,
                "CPU seconds": statistics.median(whole for whole, _ in taken[name]),
                "CPU seconds without sampling": statistics.median(rest for _, rest in taken[name]),
                "time over ours": statistics.median(ratios[0]),
                "lowest": ratios[0][0],
                "highest": ratios[0][-1],
                "time over ours without sampling": statistics.median(ratios[1]),
                "MB at peak": bytes_made[name] / 1e6,
                "MB held": pair.held(name) / 1e6,
                "bytes over ours": both / (bytes_made["ours"] + pair.held("ours")),
                "G FLOPs": flops[name] / 1e9,
                "FLOPs over ours": flops[name] / flops["ours"],
            }
        )
    return rows


# Counted, on meta.


def counted(rewards: Sequence[str] = tuple(PUBLISHED), again: Sequence[bool] = (False, True)) -> list[Row]:
    """ReFL's step that learns, of the paper's base: one evaluation with its gradient, through a reward."""
    return [_counted(reward, twice) for reward in rewards for twice in again]


def _again(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Activations computed again; on meta that must be told of fused kernels, too."""
    call = partial(module.__call__, **kwargs)
    return checkpoint(call, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), FusedKernels()))


def _counted(reward: str, again: bool) -> Row:
    base = BASES[PAPER]
    policy = _policy()
    latents = base.latents(SIDE, SIDE)
    state, text = policy.example(latents, base.sampling_prompt_length)
    read, parts = _reader(reward, again)
    if again:
        policy.network.enable_gradient_checkpointing(_again)  # type: ignore[operator]
    trained = [value for value in policy.parameters() if value.requires_grad]

    def update() -> None:
        velocity = policy.flow(policy.run(state, text), state)
        # The level is a number that costs nothing; its place in the chain does.
        torch.autograd.backward(read(state.noised_latents - SIGMA * velocity).sum())
        for value in trained:
            value.grad = None

    activations = peak_bytes(update)
    macs = None if again else count_flops(update) / 2e12
    _reader(reward, again=False)  # networks that are laid out are everybody's: left as they were
    adapter = sum(value.numel() for value in trained)
    weights = size_of(policy, *parts)[1]
    learned = adapter * (4 + 8 + 4)  # float32: weights beside the half that computes, AdamW, the average
    return {
        "kind": "counted",
        "algorithm": "ReFL, one sample",
        "update": f"{PAPER}, {SIDE} x {SIDE}, reward on {'latents' if reward == 'latents' else f'pictures: {reward}'}",
        "activations": "computed again" if again else "kept",
        "GB at peak": activations / 1e9,
        "GB held": (weights + learned) / 1e9,
        "GB": (activations + weights + learned) / 1e9,
        "the paper's GB, measured": PUBLISHED[reward][0],
        "T MACs": macs,
        "the paper's T MACs": None if again else PUBLISHED[reward][1],
    }


def _policy() -> PipelineBackbone:
    """The whole network with the policy's adapter, all in half precision, as autocast computes it."""
    base = BASES[PAPER]
    cls = backbone_class(base.kind)
    config = BackboneConfig(kind=base.kind, image_taps=(0,), text_taps=(0,), adapter=AdapterConfig(rank=32, alpha=64))
    with torch.device("meta"):
        policy = cls(config, cast(cls.network_class.from_config(base.network), shapes.DTYPE), base=PAPER, name=PAPER)
    for value in policy.parameters():
        value.data = value.data.to(shapes.DTYPE)
    return policy


def _reader(reward: str, again: bool) -> tuple[Callable[[Tensor], Tensor], list[nn.Module]]:
    """Clean latents to a reward; and the modules that it holds beside the policy's."""
    base = BASES[PAPER]
    if reward != "latents":
        vae, network = shapes.lay_out_vae(base.vae), scorer(reward)
        _set_checkpointing(vae, network, again)
        return lambda given: network(vae.decode(given).sample), [network, vae.decoder]
    model = shapes.lay_out_reward(base)
    kept: Any = model.backbone.network
    if again:
        kept.enable_gradient_checkpointing(_again)
    else:
        kept.disable_gradient_checkpointing()
    words = model.backbone.example(base.latents(64, 64), base.prompt_length)[1]  # type: ignore[operator]

    def read(given: Tensor) -> Tensor:
        noised = NoisedState((1 - SIGMA) * given + SIGMA * torch.empty_like(given), torch.empty(1, device="meta"))
        return model.head(model.backbone.read(noised, words).float())  # type: ignore[operator]

    return read, [model.head]  # its backbone is the policy's; its adapter is small and left out


def _set_checkpointing(vae: Any, network: Any, again: bool) -> None:
    network.train(again)  # transformers computes again in training only; there is no dropout
    if again:
        vae.enable_gradient_checkpointing(_again)
        told = dict(use_reentrant=False, context_fn=lambda: (nullcontext(), FusedKernels()))
        network.model.activation_checkpointing_enable(told)
    else:
        vae.disable_gradient_checkpointing()
        network.model.activation_checkpointing_disable()
