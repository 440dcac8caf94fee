"""The training loop: steps, rows, measurements, snapshots, the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from dina_lrm.errors import WorkError
from dina_lrm.model import RewardNetwork
from dina_lrm.runtime.accelerator import any_process, create_accelerator
from dina_lrm.runtime.files import atomic_write
from dina_lrm.runtime.metrics_log import MetricsLog
from dina_lrm.runtime.progress import ProgressBar
from dina_lrm.runtime.snapshots import CHECKPOINTS, check_identity, choose_snapshot
from dina_lrm.runtime.stop import StopRequest
from dina_lrm.training.config import TrainConfig
from dina_lrm.training.run import TrainingRun, run_identity

__all__ = ["Trainer"]


class Trainer:
    """Learns a reward model.

        OUT/config.json        the configuration
        OUT/metrics.jsonl      a row a step, and rows of kind "validation"
        OUT/checkpoints/       snapshots to resume from
        OUT/cache/             encoded prompts
        OUT/model/             the model, once done

    Attributes:
        config: of the run.
        network: after `run`, the model in memory with the weights that were exported.
    """

    def __init__(self, config: TrainConfig, *, quiet: bool = False) -> None:
        """Args:
        config: of the run.
        quiet: no progress on stderr.
        """
        self.config = config
        self.network: RewardNetwork | None = None
        self._quiet = quiet

    def run(self, resume: Path | Literal["auto"] | None = None) -> Path:
        """Train to the end.

        A resumed run equals one that was never interrupted: bit for bit on one CPU machine.

        Args:
            resume: "auto" goes on from the last snapshot if there is one; a path names a snapshot or a run; None starts
                afresh.

        Returns:
            Folder of the model.

        Raises:
            ConfigError: the snapshot is of another run, or a fresh start would mix with an earlier run.
            WorkError: training diverged, or SIGTERM or SIGINT stopped it; a snapshot was saved on the stop.
        """
        config = self.config
        accelerator = create_accelerator(config.mixed_precision, config.gradient_accumulation_steps, config.device)
        identity = run_identity(config, accelerator.num_processes)
        snapshot = choose_snapshot(config.out / CHECKPOINTS, resume)
        if snapshot is not None:
            check_identity(snapshot, identity)
        with StopRequest() as stop, torch.random.fork_rng():
            run = TrainingRun(config, accelerator)
            if snapshot is not None:
                run.load(snapshot, identity)
            self._loop(run, snapshot.step if snapshot else 0, identity, stop)
            folder = run.export(identity)
        self.network = run.network
        return folder

    def _loop(self, run: TrainingRun, first: int, identity: dict[str, Any], stop: StopRequest) -> None:
        config, main = self.config, run.accelerator.is_main_process
        if main:
            with atomic_write(config.out / "config.json") as file:
                file.write(json.dumps(config.model_dump(mode="json"), indent=2).encode())
        log = MetricsLog(config.out / "metrics.jsonl", first) if main else None
        bar = ProgressBar("train", run.num_steps, first, enabled=main and not self._quiet)
        try:
            with bar:
                for step in range(first, run.num_steps):
                    done = step + 1
                    rows = [run.step(step)]
                    stopping = any_process(run.accelerator, stop.signal_name is not None)
                    last = done == run.num_steps
                    if _due(done, config.validation.every) or last:
                        rows += run.validate(done)
                    if log is not None:
                        log.extend(rows)
                    bar.advance(**{name: float(rows[0][name] or 0) for name in ("loss", "accuracy")})
                    if _due(done, config.save_every) or last or stopping:
                        run.save(done, identity)
                    if stopping and not last:
                        raise WorkError(
                            f"training was stopped by {stop.signal_name or 'another process'} after step {done} of "
                            f'{run.num_steps}; it is saved: go on with resume="auto" (--resume auto)'
                        )
        finally:
            if log is not None:
                log.close()


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
