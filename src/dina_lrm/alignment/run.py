"""The state of one run: what the loop moves, measures, saves and exports."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dina_lrm.alignment.algorithms import Actors, Judged, PromptBatch, Step
from dina_lrm.alignment.assemble import latents_shape, load_cast, real_latents, share_base
from dina_lrm.alignment.config import AlignConfig, ReflConfig
from dina_lrm.alignment.evaluation import Evaluation, Look
from dina_lrm.alignment.prompts import evenly, read_prompts
from dina_lrm.alignment.rewards import AWAY, Finished, Verdict
from dina_lrm.data import PairBatches
from dina_lrm.errors import InputError, WorkError
from dina_lrm.runtime.accelerator import Accelerator, as_first_process, average_gradients, mean_over_processes
from dina_lrm.runtime.ema import Ema
from dina_lrm.runtime.optimiser import build_optimiser, trainable_parameters
from dina_lrm.runtime.seeds import derive_seed, derived_generator
from dina_lrm.runtime.sharding import check_shards
from dina_lrm.runtime.snapshots import CHECKPOINTS, Snapshot, load_snapshot, prune_snapshots, save_snapshot
from dina_lrm.types import Conditioning, NoisedState

__all__ = ["AlignRun", "DivergedError", "run_identity"]

T = TypeVar("T")
Row = dict[str, int | float | str | None]


class DivergedError(WorkError):
    """The run has left the numbers; going on with it would only diverge again."""


# What may differ between a run and its continuation: none of it changes what is learned.
FREE_KEYS = {"out", "save_every", "keep_last", "device", "base_shards", "reward_patience", "max_failed_updates"}


def run_identity(config: AlignConfig, num_processes: int) -> dict[str, Any]:
    """What makes two runs the same run, as JSON values."""
    prompts = read_prompts(config.prompts)
    return {
        **config.model_dump(mode="json", exclude=FREE_KEYS | {"prompts"}),
        "prompts": derive_seed(0, "\n".join(prompts)),
        "num_processes": num_processes,
    }


def _tied(judged: Judged, latents: Tensor) -> Judged:
    """Rewards with a way back to the latents, of gradient 0 if nobody could judge them: all processes go back alike."""
    if not latents.requires_grad or judged.reward.requires_grad:
        return judged
    way = latents.flatten(1).sum(dim=1).to(judged.reward)
    return Judged(torch.where(torch.ones_like(judged.valid), judged.reward, way), judged.valid)


class AlignRun:
    """One run in memory. Built from a configuration; a loop calls `update`, `evaluate`, `save` and at last `export`.

    Attributes:
        config: of the run.
        cast: policy, rewards and judges.
        algorithm: that learns.
        seconds: spent in updates so far, over all its lives.
        moved: whether the update that is running, or has failed, has changed the policy already.
    """

    def __init__(self, config: AlignConfig, accelerator: Accelerator, given: dict[str, Any] | None = None) -> None:
        """Load everything once and encode all prompts.

        Args:
            config: of the run.
            accelerator: where it runs.
            given: rewards by name that are at hand already.

        Raises:
            InputError: prompts, rewards and base that do not fit together.
        """
        self.config, self.accelerator = config, accelerator
        self.algorithm = config.algorithm.build()
        config.schedule.check_fits(config.num_updates)
        self._prompts = read_prompts(config.prompts)
        held_out = evenly(self._held_out(), config.evaluation.num_prompts)
        check_shards(config.base_shards, accelerator.num_processes)
        with accelerator.main_process_first():
            self.cast = load_cast(config, (*self._prompts, *held_out), accelerator.device, given)
        self._shared = config.base_shards > 1  # then all processes ask the networks equally often, and in one order
        if self._shared:
            share_base(self.cast, config.base_shards, accelerator)
        policy = self.cast.policy
        self._parameters = trainable_parameters(policy.backbone)
        self._optimiser = build_optimiser(self._parameters, config.optimiser)
        self._ema = Ema(self._parameters, config.ema_decay) if config.ema_decay else None
        self._shape = latents_shape(policy, config.sampler)
        self._negative = self.cast.prompt_lookup([""])
        self._batches = PairBatches(
            len(self._prompts),
            config.prompts_per_update * config.micro_batches,
            config.seed,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self._actors = self._act()
        self._evaluation = self._evaluate_with(held_out)
        self._verdicts: list[Verdict] = []
        self._number, self.moved = 0, False
        self._rewarded: bool | None = None  # whether any sample of this update was judged
        self._failed, self._last_failure = 0, ""  # updates in a row without a reward, and why
        self._pull = 1.0
        self.seconds = 0.0

    def _held_out(self) -> tuple[str, ...]:
        if not self.config.evaluation.every:
            return ()
        given = self.config.evaluation.prompts
        return self._prompts if given is None else read_prompts(given)

    def _act(self) -> Actors:
        config, policy = self.config, self.cast.policy
        real = None
        if isinstance(config.algorithm, ReflConfig) and config.algorithm.pretraining:
            assert config.pretraining_data is not None
            real = real_latents(config.pretraining_data, self.cast.text, self._prompts, policy)
        return Actors(
            policy=self.velocity,
            reference=policy.reference,
            reward=self._judge,
            reward_of_state=self._judge_state if self.algorithm.reads_states else None,
            sigmas=policy.backbone.sampler_sigmas(config.sampler.num_steps, self._shape),
            negative=self._negative,
            guidance=config.sampler.guidance,
            parameters=self._parameters,
            real=real,
            agreed=partial(as_first_process, self.accelerator),
            steps_again=not self._shared,
        )

    def _evaluate_with(self, held_out: tuple[str, ...]) -> Evaluation:
        config = self.config
        sampler = config.evaluation.sampler or config.sampler
        shape = latents_shape(self.cast.policy, sampler)
        sigmas = self.cast.policy.backbone.sampler_sigmas(sampler.num_steps, shape)
        evaluation, guidance = config.evaluation, sampler.guidance
        return Evaluation(
            evaluation, held_out, self.cast, sigmas, guidance, shape, self._negative, self.wait_for, self._shared
        )

    def velocity(self, state: NoisedState, conditioning: Conditioning) -> Tensor:
        """What the policy says, under the run's precision."""
        with self.accelerator.autocast():
            velocity: Tensor = self.cast.policy(state, conditioning)
        return velocity

    # Learning.

    def update(self, number: int) -> Row:
        """One update, counted from 0: rollouts, rewards, and as many optimiser steps as the algorithm takes of them.

        Returns:
            A row for metrics.jsonl; the step it names is the number of updates done.

        Raises:
            DivergedError: loss or gradient is not finite.
            WorkError: the reward has failed too long; unless `moved`, the policy is as it was before.
        """
        started = time.perf_counter()
        factor = self.config.schedule.factor(number, self.config.num_updates)
        for group in self._optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        rank = self.accelerator.process_index
        torch.manual_seed(derive_seed(self.config.seed, "dropout", rank, number))
        self._verdicts.clear()
        self.moved, self._rewarded = False, None
        self._number = number
        running = [self._begin(number, micro) for micro in range(self.config.micro_batches)]
        steps: list[Step] = []
        norms: list[float] = []
        while (found := self._backward(running)) is not None:
            steps += found
            if found[-1].ends:
                norms.append(self._step(number, found))
        self.algorithm.finish(self._actors)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        return {
            "kind": "update",
            "step": number + 1,
            **self._figures(steps),
            "lr": self.config.optimiser.learning_rate * factor,
            "grad_norm": sum(norms) / len(norms),
            "samples_per_second": self.samples_an_update / seconds,
            "seconds": self.seconds,
        }

    @property
    def samples_an_update(self) -> int:
        """Of all processes."""
        config = self.config
        return (
            config.prompts_per_update
            * config.micro_batches
            * self.algorithm.group_size
            * self.accelerator.num_processes
        )

    def _backward(self, running: Iterable[Iterator[Step]]) -> list[Step] | None:
        """The next loss of every micro batch, its gradient added; None when they are done."""
        found = []
        for losses in running:
            step = next(losses, None)
            if step is None:
                return None
            if step.loss.requires_grad:
                self.accelerator.backward(step.loss / self.config.micro_batches)
            found.append(Step(step.loss.detach(), step.ends, step.figures))
        return found

    def _begin(self, number: int, micro: int) -> Iterator[Step]:
        """The losses of one micro batch."""
        rank = self.accelerator.process_index
        generator = derived_generator(self.config.seed, "update", rank, number, micro)
        return self.algorithm.update(self._actors, self._batch(number, micro), generator)

    def _batch(self, number: int, micro: int) -> PromptBatch:
        config, size = self.config, self.config.prompts_per_update
        places = self._batches.batch(number)[micro * size : (micro + 1) * size].tolist()
        each = self.algorithm.group_size
        prompts = tuple(self._prompts[place] for place in places for _ in range(each))
        rank = self.accelerator.process_index
        generator = derived_generator(config.seed, "noise", rank, number, micro)
        noise = torch.randn(len(prompts), *self._shape, generator=generator).to(self.cast.policy.device)
        return PromptBatch(prompts, self.cast.prompt_lookup(prompts), each, noise)

    def _step(self, number: int, steps: list[Step]) -> float:
        average_gradients(self.accelerator, self._parameters.values())
        limit = self.config.optimiser.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), math.inf if limit is None else limit)
        loss = mean_over_processes(self.accelerator, torch.stack([step.loss.float() for step in steps]).mean())
        if not (torch.isfinite(norm) and torch.isfinite(loss)):
            self._optimiser.zero_grad()
            raise DivergedError(
                f"update {number + 1} diverged: loss {float(loss):g}, gradient norm {float(norm):g}; begin again under another "
                "out, with a lower optimiser.learning_rate or a stronger pull towards the reference"
            )
        if self._any_reward():
            self._optimiser.step()
            self.moved = True
            if self._ema is not None:
                self._ema.update()
        self._optimiser.zero_grad()
        return float(norm)

    def _any_reward(self) -> bool:
        """Whether any sample of any process was judged in this update; too many updates without one are the end."""
        if self._rewarded is not None:
            return self._rewarded
        judged = torch.tensor(float(any(bool(verdict.total.valid.any()) for verdict in self._verdicts)))
        found = bool(mean_over_processes(self.accelerator, judged.to(self.accelerator.device)) > 0)
        self._rewarded = found
        self._failed = 0 if found else self._failed + 1
        if self._failed >= self.config.max_failed_updates:
            raise WorkError(
                f"the reward gave nothing for {self._failed} updates in a row, so nothing was learned; look at what it says: "
                f"{self._last_failure or 'all its numbers were not finite'}"
            )
        return found

    # Judging.

    def _judge(self, latents: Tensor, batch: PromptBatch) -> Judged:
        samples = Finished(
            latents,
            batch.prompts,
            self.cast.policy.backbone.decode_latents,
            self._reward_seeds(batch),
            batch.group_size,
        )
        verdict = self.cast.mixture(samples, self._patiently)
        self._verdicts.append(verdict)
        return _tied(verdict.total, latents) if self._shared else verdict.total

    def _judge_state(self, state: NoisedState, batch: PromptBatch) -> Judged:
        verdict = self.cast.mixture.of_state(state, batch.prompts, batch.group_size, self._patiently)
        self._verdicts.append(verdict)
        return verdict.total

    def _reward_seeds(self, batch: PromptBatch) -> tuple[int, ...]:
        """Samples of a prompt meet the same noise, and other noise in the next update."""
        rank, number = self.accelerator.process_index, self._number
        return tuple(derive_seed(self.config.seed, f"reward of {prompt}", rank, number) for prompt in batch.prompts)

    def _patiently(self, name: str, ask: Callable[[], Judged], count: int) -> Judged:
        """Ask; wait for a judge that is away; what fails in another way is a mask."""
        try:
            return self.wait_for(ask)
        except (InputError, WorkError):
            raise
        except Exception as error:
            self._last_failure = f"{name}: {error!r}"
            warnings.warn(f"{name} failed for all {count} samples: {error!r}", stacklevel=2)
            nothing = torch.zeros(count, device=self.cast.policy.device)
            return Judged(nothing, nothing.bool())

    def wait_for(self, ask: Callable[[], T]) -> T:
        """Ask, and ask again while the one who is asked is away.

        Raises:
            WorkError: for longer than the run has patience.
        """
        began, pause, patience = math.inf, 1.0, self.config.reward_patience
        while True:
            try:
                return ask()
            except AWAY as error:
                began = min(began, time.monotonic())  # it may have worked for long before
                waited = time.monotonic() - began
                if waited >= patience:
                    raise WorkError(f"the reward has not answered for {waited:.0f} s: {error}") from error
                if pause == 1:
                    warnings.warn(f"the reward is away, asked again for {patience:.0f} s: {error}", stacklevel=2)
                time.sleep(min(pause, patience - waited))
                pause = min(2 * pause, 30.0)

    def _figures(self, steps: list[Step]) -> Row:
        """Means over the update and over processes."""
        # Parts of one optimiser step's loss add up; micro batches, which end as often, are averaged.
        whole = torch.stack([step.loss.float() for step in steps]).sum() / sum(step.ends for step in steps)
        told: dict[str, list[Tensor]] = {"loss": [whole]}
        for step in steps:
            for name, value in step.figures.items():
                told.setdefault(name, []).append(value.detach())
        device = self.accelerator.device
        row: Row = {}
        for name, values in sorted(told.items()):
            mean = torch.stack([value.float().to(device) for value in values]).nanmean()
            row[name] = float(mean_over_processes(self.accelerator, mean))
        return {**row, **self._rewards_told()}

    def _rewards_told(self) -> Row:
        """The share that was judged and the mean of each reward: the same names on every process, whatever failed there."""
        names = [weighted.name for weighted in self.cast.mixture.terms]
        sums = torch.zeros(len(names) + 1, 2, device=self.accelerator.device)
        for verdict in self._verdicts:
            sums[-1] += torch.stack([verdict.total.valid.sum(), torch.tensor(len(verdict.total.valid))]).to(sums)
            for place, name in enumerate(names):
                if name in verdict.parts:
                    judged = verdict.parts[name]
                    rewards = judged.reward.detach()[judged.valid]
                    sums[place] += torch.stack([rewards.sum(), judged.valid.sum()]).to(sums)
        total, count = mean_over_processes(self.accelerator, sums).unbind(dim=1)
        means = (total / count).tolist()
        return {**{f"reward/{name}": mean for name, mean in zip(names, means, strict=False)}, "judged": means[-1]}

    # Measuring.

    def evaluate(self, step: int) -> Look:
        """Measure the weights that would be exported now."""
        with self.exported():
            return self._evaluation.measure(self.velocity, step, self.accelerator)

    def exported(self) -> AbstractContextManager[None]:
        """Inside, the policy has the weights that would be exported."""
        return nullcontext() if self._ema is None else self._ema.swapped()

    @property
    def held_out(self) -> tuple[str, ...]:
        """The prompts that are measured on."""
        return self._evaluation.prompts

    # Keeping.

    def strengthen(self, factor: float) -> None:
        """Pull harder towards the generator as it was, from now on."""
        self.algorithm.strengthen(factor)
        self._pull *= factor

    def save(self, step: int, identity: dict[str, Any]) -> None:
        """Write a snapshot after `step` updates and remove what is too many."""
        if self.accelerator.is_main_process:
            folder = self.config.out / CHECKPOINTS
            progress = {"seconds": self.seconds, "pull": self._pull, "failed": self._failed}
            save_snapshot(
                folder,
                step,
                self._parameters,
                self._optimiser,
                self._ema,
                identity,
                progress,
                self.algorithm.state_dict(),
            )
            prune_snapshots(folder, self.config.keep_last)
        self.accelerator.wait_for_everyone()

    def load(self, snapshot: Snapshot, identity: dict[str, Any]) -> None:
        """Go back to where a snapshot was taken."""
        found = load_snapshot(snapshot, self._parameters, self._optimiser, self._ema, identity)
        self.algorithm.load_state_dict(found.memory)
        self.seconds, self._failed = float(found.progress["seconds"]), int(found.progress["failed"])
        if found.progress["pull"] != 1:
            self.strengthen(float(found.progress["pull"]))

    def export(self, folder: Path) -> None:
        """Write the adapter as it would be used now; `pipeline.load_lora_weights(folder)` reads it."""
        if self.accelerator.is_main_process:
            with self.exported():
                self.cast.policy.save_pretrained(folder)
        self.accelerator.wait_for_everyone()
