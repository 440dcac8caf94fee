"""The state of one run: what a training loop moves, measures, saves and exports."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dina_lrm.checkpoint import BaseReference, ModelConfig, refuse_foreign, save_model
from dina_lrm.data import PairBatches, PreferenceData, PromptGroups, collate, collate_groups, unique_prompts
from dina_lrm.encoding import encode_prompts_once
from dina_lrm.errors import DataError, WorkError
from dina_lrm.runtime.accelerator import Accelerator, average_gradients, mean_over_processes
from dina_lrm.runtime.ema import Ema
from dina_lrm.runtime.files import sha256_file
from dina_lrm.runtime.optimiser import build_optimiser, trainable_parameters
from dina_lrm.runtime.seeds import derive_seed, derived_generator
from dina_lrm.runtime.sharding import check_shards, shard_frozen
from dina_lrm.runtime.snapshots import CHECKPOINTS, Snapshot, load_snapshot, prune_snapshots, save_snapshot
from dina_lrm.training.assemble import load_network, random_base_seed
from dina_lrm.training.config import TrainConfig
from dina_lrm.training.step import StepResult, training_step
from dina_lrm.training.validation import Validation
from dina_lrm.types import PreferenceBatch, PreferenceGroups

__all__ = ["TrainingRun", "run_identity"]

Row = dict[str, int | float | str | None]

# What may differ between a run and its continuation: none of it changes what is learned.
FREE_KEYS = {"out", "validation", "save_every", "keep_last", "device", "base_shards"}


def run_identity(config: TrainConfig, num_processes: int) -> dict[str, Any]:
    """What makes two runs the same run, as JSON values."""
    described = PreferenceData.open(config.data).folder / "dataset.json"
    return {
        **config.model_dump(mode="json", exclude=FREE_KEYS | {"data"}),
        "data": sha256_file(described),
        "num_processes": num_processes,
    }


class TrainingRun:
    """One run in memory. Built from a configuration; a loop calls `step`, `validate`, `save` and at last `export`.

    Attributes:
        config: of the run.
        network: backbone and head; holds the raw weights while training.
        num_steps: optimiser steps of the whole run.
        seconds: spent in steps so far, over all its lives.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        """Load, encode the prompts once, drop what encoded them, build the optimiser.

        Args:
            config: of the run.
            accelerator: where it runs.

        Raises:
            DataError: the latents are not of this backbone, or a split is empty.
        """
        self.config, self.accelerator = config, accelerator
        refuse_foreign(config.out / "model")  # told now, not after the last step
        self._data = PreferenceData.open(config.data)
        self._pairs = self._data.pairs(config.split)
        if not len(self._pairs):
            raise DataError(f"split {config.split!r} of {config.data} has no pairs; at least one is needed")
        self._groups = None if config.max_candidates is None else PromptGroups.of(self._pairs, config.max_candidates)
        num_units = len(self._pairs if self._groups is None else self._groups)
        self.num_steps = config.total_steps(num_units, accelerator.num_processes)
        config.schedule.check_fits(self.num_steps)
        check_shards(config.base_shards, accelerator.num_processes)
        self._shared = config.base_shards > 1  # then all processes run the network equally often
        self.network = load_network(config, "cpu" if self._shared else accelerator.device)
        if self._shared:
            self._share_base()
        self._check_latents()
        tables = [self._pairs]
        if config.validation.every:
            held_out = self._data.pairs(config.validation.split)
            if not len(held_out):
                raise DataError(
                    f"split {config.validation.split!r} of {config.data} has no pairs to validate on; "
                    "name another as validation.split, or set validation.every to 0"
                )
            tables.append(held_out)
        with accelerator.main_process_first():
            self._prompts = encode_prompts_once(
                self.network.backbone, unique_prompts(*tables), cache_dir=config.out / "cache"
            )
        self.network.backbone.drop_encoders()
        self._validation = Validation(self._data, self._prompts, config.validation) if config.validation.every else None
        self._parameters = trainable_parameters(self.network)
        self._optimiser = build_optimiser(self._parameters, config.optimiser)
        self._ema = Ema(self._parameters, config.ema_decay) if config.ema_decay else None
        # DDP copies whole networks; where the base is dealt out only gradients are exchanged, in `_clip`.
        placed = False if self._shared else None
        self._wrapped = accelerator.prepare_model(self.network, device_placement=placed, evaluation_mode=self._shared)
        self._stepper = accelerator.prepare(self._optimiser)
        self._batches = PairBatches(
            num_units, config.batch_size, config.seed, accelerator.process_index, accelerator.num_processes
        )
        self._process = self.network.backbone.process
        self._levels = config.levels.build()
        self._likelihood = config.likelihood.build()
        self._objective = config.build_objective()
        self.seconds = 0.0
        self._wrapped.train()

    def _share_base(self) -> None:
        backbone, accelerator = self.network.backbone, self.accelerator
        networks = [(backbone.network, backbone.blocks)]
        shard_frozen(networks, accelerator.device, accelerator.num_processes, self.config.base_shards)
        self.network.head.to(accelerator.device)
        self.network.dealt_out = True

    def step(self, step: int) -> Row:
        """One optimiser step, counted from 0.

        Returns:
            A row for metrics.jsonl; the step it names is the number of steps done.

        Raises:
            WorkError: loss or gradient is not finite.
        """
        started = time.perf_counter()
        factor = self.config.schedule.factor(step, self.num_steps)
        for group in self._optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        results: list[StepResult] = []
        norm = torch.zeros(())
        for micro in range(self.config.gradient_accumulation_steps):
            with self.accelerator.accumulate(self._wrapped):
                result = self._forward(step, micro)
                self.accelerator.backward(result.loss)
                results.append(result.map(torch.Tensor.detach))
                if self.accelerator.sync_gradients:
                    norm = self._clip()
                    self._require_finite(step, norm, results)
                self._stepper.step()
                self._stepper.zero_grad()
        if self._ema is not None and not self.accelerator.optimizer_step_was_skipped:
            self._ema.update()
        seconds = time.perf_counter() - started
        self.seconds += seconds
        pairs = self._num_pairs(results)
        return {
            "kind": "train",
            "step": step + 1,
            **self._figures(results),
            "lr": self.config.optimiser.learning_rate * factor,
            "grad_norm": float(norm),
            "pairs": pairs,
            "pairs_per_second": pairs / seconds,
            "seconds": self.seconds,
        }

    def _forward(self, step: int, micro: int) -> StepResult:
        config, rank, world = self.config, self.accelerator.process_index, self.accelerator.num_processes
        index = step * config.gradient_accumulation_steps + micro
        batch = self._batch(index, rank).to(self.accelerator.device)
        # All groups of an optimiser step share one draw of levels, so strata cover the global batch, not each process's.
        total = config.batch_size * config.gradient_accumulation_steps * world
        levels = self._levels.sample(total, derived_generator(config.seed, "levels", step))
        first = (micro * world + rank) * config.batch_size
        # Dropout reads the global generator; seeded here, it too is a function of the step.
        torch.manual_seed(derive_seed(config.seed, "dropout", rank, index))
        return training_step(
            self._wrapped,
            batch,
            self._process,
            self._levels,
            self._likelihood,
            self._objective,
            derived_generator(config.seed, "noise", rank, index),
            sigma=levels[first : first + config.batch_size],
            soft_labels=config.soft_labels,
        )

    def _num_pairs(self, results: list[StepResult]) -> int:
        """Of all processes: prompts have few pairs or many."""
        own = torch.tensor(float(sum(len(result.margin) for result in results)), device=self.accelerator.device)
        return round(float(mean_over_processes(self.accelerator, own)) * self.accelerator.num_processes)

    def _batch(self, index: int, rank: int) -> PreferenceBatch | PreferenceGroups:
        places = self._batches.batch(index)
        if self._groups is None:
            return collate(self._data, self._pairs, places, self._prompts)
        seed = derive_seed(self.config.seed, "candidates", rank, index)
        return collate_groups(self._data, self._groups, places, self._prompts, seed)

    def _clip(self) -> Tensor:
        if self._shared:
            average_gradients(self.accelerator, self._parameters.values())
        limit = self.config.optimiser.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(list(self._parameters.values()), math.inf if limit is None else limit)
        assert isinstance(norm, Tensor)
        return norm

    def _require_finite(self, step: int, norm: Tensor, results: list[StepResult]) -> None:
        loss = mean_over_processes(self.accelerator, torch.stack([r.loss for r in results]).mean())
        # With float16 the scaler expects an infinite gradient now and then, and skips that step itself.
        gradient_matters = self.config.mixed_precision != "fp16"
        if not torch.isfinite(loss) or (gradient_matters and not torch.isfinite(norm)):
            raise WorkError(
                f"training diverged at step {step + 1}: loss {float(loss):g}, gradient norm {float(norm):g}; "
                "lower optimiser.learning_rate and resume from the last checkpoint under another out, or start again"
            )

    def _figures(self, results: list[StepResult]) -> Row:
        means = torch.stack(
            [
                torch.stack([r.loss for r in results]).mean(),
                torch.stack([r.accuracy for r in results]).nanmean(),
                torch.cat([r.margin for r in results]).mean(),
                torch.cat([r.sigma for r in results]).mean(),
            ]
        )
        loss, accuracy, margin, sigma = mean_over_processes(self.accelerator, means).tolist()
        return {"loss": loss, "accuracy": accuracy, "margin": margin, "sigma_mean": sigma}

    def validate(self, step: int) -> list[Row]:
        """Measure the weights that would be exported now; one row a noise level, none if nothing is to be measured."""
        if self._validation is None:
            return []
        with self._exported():
            sums = self._validation.measure(
                self._wrapped,
                self._process,
                self._likelihood,
                self.accelerator.device,
                self.accelerator.process_index,
                self.accelerator.num_processes,
                self._shared,
            )
        # A mean over the processes serves as the sum: scores are ratios of these.
        scores = self._validation.scores(mean_over_processes(self.accelerator, sums.to(self.accelerator.device)).cpu())
        told: Row = {"kind": "validation", "step": step, "weights": self.weights, "split": self.config.validation.split}
        return [{**told, **asdict(score)} for score in scores]

    @property
    def weights(self) -> str:
        """Which weights are measured and exported: "ema" or "raw"."""
        return "raw" if self._ema is None else "ema"

    def save(self, step: int, identity: dict[str, Any]) -> None:
        """Write a snapshot after `step` steps and remove what is too many."""
        if self.accelerator.is_main_process:
            folder = self.config.out / CHECKPOINTS
            scaler = self.accelerator.scaler  # of the loss in float16; its scale is found anew over hundreds of steps
            progress = {"seconds": self.seconds, "scaler": scaler and scaler.state_dict()}
            save_snapshot(folder, step, self._parameters, self._optimiser, self._ema, identity, progress)
            prune_snapshots(folder, self.config.keep_last)
        self.accelerator.wait_for_everyone()

    def load(self, snapshot: Snapshot, identity: dict[str, Any]) -> None:
        """Go back to where a snapshot was taken."""
        progress = load_snapshot(snapshot, self._parameters, self._optimiser, self._ema, identity).progress
        self.seconds = float(progress["seconds"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(progress["scaler"])

    def export(self, identity: dict[str, Any]) -> Path:
        """Write the model folder and leave its weights in the network."""
        if self._ema is not None:
            self._ema.copy_to_parameters()
        folder = self.config.out / "model"
        if self.accelerator.is_main_process:
            save_model(folder, self.network, self._model_config(identity))
        self.accelerator.wait_for_everyone()
        self._wrapped.eval()
        return folder

    def _model_config(self, identity: dict[str, Any]) -> ModelConfig:
        config, base = self.config, self.config.base
        return ModelConfig(
            backbone=config.backbone,
            base=BaseReference(
                name=str(Path(base).absolute()) if Path(base).is_dir() else base,
                revision=config.base_revision,
                random_seed=random_base_seed(config),
            ),
            head=config.head,
            likelihood=config.likelihood,
            provenance={
                "weights": self.weights,
                "steps": self.num_steps,
                "pairs": len(self._pairs),
                "seconds": round(self.seconds, 1),
                "torch": str(torch.__version__),
                "training": identity,
            },
        )

    def _exported(self) -> Any:
        return torch.no_grad() if self._ema is None else self._ema.swapped()

    def _check_latents(self) -> None:
        channels, expected = self._data.latents([0]).shape[1], self.network.backbone.latent_channels
        if channels != expected:
            raise DataError(
                f"latents of {self.config.data} have {channels} channels, base {self.config.base!r} takes {expected}; "
                "encode the pictures with this base"
            )
