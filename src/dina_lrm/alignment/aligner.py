"""The loop of preference optimisation: updates, rows, measurements, pictures, snapshots, the adapter."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dina_lrm.alignment.config import AlignConfig
from dina_lrm.alignment.evaluation import Look
from dina_lrm.alignment.measurement import Measurement
from dina_lrm.alignment.monitor import Findings, Monitor
from dina_lrm.alignment.run import AlignRun, DivergedError, Row, run_identity
from dina_lrm.errors import WorkError
from dina_lrm.images import sheet
from dina_lrm.runtime.accelerator import any_process, create_accelerator
from dina_lrm.runtime.files import atomic_folder, atomic_write
from dina_lrm.runtime.metrics_log import MetricsLog
from dina_lrm.runtime.progress import ProgressBar
from dina_lrm.runtime.snapshots import CHECKPOINTS, check_identity, choose_snapshot
from dina_lrm.runtime.stop import StopRequest

__all__ = ["Aligned", "Aligner"]

MEASUREMENTS = "measurements"


@dataclass(frozen=True)
class Aligned:
    """What a run left.

    Attributes:
        adapter: OUT/adapter: the last, or the last good one if the monitor stopped the run.
        step: updates behind it.
        stopped: why the monitor ended the run; None where it did not.
    """

    adapter: Path
    step: int
    stopped: str | None = None


class Aligner:
    """Teaches a generator by a reward.

        OUT/config.json        the configuration
        OUT/metrics.jsonl      a row an update, rows of kind "evaluation" and "alarm"
        OUT/checkpoints/       snapshots to resume from
        OUT/adapters/step-N/   adapters at the measurements: `pipeline.load_lora_weights(folder)`
        OUT/measurements/      what the monitor looks at, a sample at a time
        OUT/samples/step-N.png the same prompts and noise over time
        OUT/cache/             encoded prompts
        OUT/adapter/           the adapter, once done; the last good one, if the monitor stopped the run

    Attributes:
        config: of the run.
    """

    def __init__(
        self,
        config: AlignConfig,
        *,
        rewards: dict[str, Any] | None = None,
        on_evaluation: Callable[[Path], None] | None = None,
        quiet: bool = False,
    ) -> None:
        """Args:
        config: of the run.
        rewards: by name, in place of what the configuration would make: a `RewardFunction` (a model that is loaded
            already, a client, an actor) or a scorer of pictures.
        on_evaluation: called with the run's folder after each measurement, to redraw what shows it.
        quiet: no progress on stderr.
        """
        self.config = config
        self.run_state: AlignRun | None = None
        self._rewards, self._on_evaluation, self._quiet = rewards, on_evaluation, quiet

    def run(self, resume: Path | Literal["auto"] | None = None) -> Aligned:
        """Learn to the end, or until the monitor stops it.

        A resumed run equals one that was never interrupted: bit for bit on one CPU machine.

        Args:
            resume: "auto" goes on from the last snapshot if there is one; a path names a snapshot or a run; None starts
                afresh.

        Returns:
            The adapter that is recommended.

        Raises:
            ConfigError: the snapshot is of another run, or a fresh start would mix with an earlier run.
            WorkError: the run diverged, the reward failed for good, or SIGTERM or SIGINT stopped it; a snapshot was saved.
        """
        config = self.config
        accelerator = create_accelerator(config.mixed_precision, 1, config.device, config.reward_patience)
        identity = run_identity(config, accelerator.num_processes)
        snapshot = choose_snapshot(config.out / CHECKPOINTS, resume)
        if snapshot is not None:
            check_identity(snapshot, identity)
        with StopRequest() as stop, torch.random.fork_rng():
            run = self.run_state = AlignRun(config, accelerator, self._rewards)
            if snapshot is not None:
                run.load(snapshot, identity)
            return _Loop(run, identity, stop, self._on_evaluation, self._quiet).go(snapshot.step if snapshot else 0)


class _Loop:
    """One life of a run."""

    def __init__(
        self,
        run: AlignRun,
        identity: dict[str, Any],
        stop: StopRequest,
        on_evaluation: Callable[[Path], None] | None,
        quiet: bool,
    ) -> None:
        self.run, self.config, self.identity, self.stop = run, run.config, identity, stop
        self.main = run.accelerator.is_main_process
        self.on_evaluation, self.quiet = on_evaluation, quiet
        self.monitor: Monitor | None = None
        self.alarms = 0  # measurements in a row that alarmed
        self.log: MetricsLog | None = None

    def go(self, first: int) -> Aligned:
        config = self.config
        if self.main:
            with atomic_write(config.out / "config.json") as file:
                file.write(json.dumps(config.model_dump(mode="json"), indent=2).encode())
            self.log = MetricsLog(config.out / "metrics.jsonl", first)
        bar = ProgressBar("align", config.num_updates, first, enabled=self.main and not self.quiet)
        try:
            with bar:
                return self._updates(first, bar)
        finally:
            if self.log is not None:
                self.log.close()

    def _updates(self, first: int, bar: ProgressBar) -> Aligned:
        config, run = self.config, self.run
        if not first:
            self._measure(0)
        else:
            self._recall(first)
        for number in range(first, config.num_updates):
            done = number + 1
            try:
                row = run.update(number)
            except DivergedError:
                raise
            except WorkError as error:
                raise self._saved(number, error) from error
            stopping = any_process(run.accelerator, self.stop.signal_name is not None)
            last = done == config.num_updates
            if self.log is not None:
                self.log.write(row)
            reward = row[f"reward/{config.rewards[0].name}"]  # as it is: a mixture's own may be normalised to 0
            bar.advance(loss=float(row["loss"] or 0), reward=float(reward if reward is not None else math.nan))
            try:
                fooled = self._measure(done) if _due(done, config.evaluation.every) or last else None
            except WorkError as error:
                run.moved = False  # the update is over and whole
                raise self._saved(done, error) from error
            if _due(done, config.save_every) or last or stopping or fooled:
                run.save(done, self.identity)
            if fooled:
                return self._fooled(done, fooled)
            if stopping and not last:
                raise WorkError(
                    f"the run was stopped by {self.stop.signal_name or 'another process'} after update {done} of "
                    f'{config.num_updates}; it is saved: go on with resume="auto" (--resume auto)'
                )
        run.export(config.out / "adapter")
        return Aligned(config.out / "adapter", config.num_updates)

    def _saved(self, done: int, error: WorkError) -> WorkError:
        """Save what is whole; the error with what to do."""
        if self.run.accelerator.num_processes > 1 or self.run.moved:
            # Other processes do not know, and nobody may wait for them; an update that is half made is no place to go on from.
            return WorkError(f'{error}. Go on from the last snapshot with resume="auto" (--resume auto)')
        if not done:
            return error  # there is nothing to go on from
        self.run.save(done, self.identity)
        return WorkError(f'{error}. {done} updates are saved: go on with resume="auto" (--resume auto)')

    def _measure(self, step: int) -> str | None:
        """Measure, draw, write down; what the monitor has to say if the run is to stop."""
        config, run = self.config, self.run
        if not config.evaluation.every:
            return None
        look = run.evaluate(step)
        if self.monitor is None:
            _require_numbers(look.measurement)
            self.monitor = Monitor(config.monitor, look.measurement)
        findings = self.monitor.judge(look.measurement)
        run.export(_adapter(config.out, step))
        if self.main:
            self._write_down(look, findings)
            if self.on_evaluation is not None:
                self.on_evaluation(config.out)
        self.alarms = self.alarms + 1 if findings.alarms else 0
        if not findings.alarms or self.alarms < config.monitor.patience:
            return None
        if config.monitor.action == "strengthen":
            run.strengthen(config.monitor.factor)
            return None
        words = "; ".join(alarm.words for alarm in findings.alarms)
        return words if config.monitor.action == "stop" else None

    def _write_down(self, look: Look, findings: Findings) -> None:
        config, now = self.config, look.measurement
        now.save(config.out / MEASUREMENTS / f"step-{now.step:06d}")
        if len(look.pixels):
            with atomic_write(config.out / "samples" / f"step-{now.step:06d}.png") as file:
                sheet(look.pixels).save(file, "PNG", optimize=True)
        assert self.log is not None
        told: Row = {"kind": "evaluation", "step": now.step, "seconds": self.run.seconds}
        self.log.write({**told, **findings.figures})
        for alarm in findings.alarms:
            self.log.write({"kind": "alarm", "step": now.step, "name": alarm.name, "value": alarm.value,
                            "threshold": alarm.threshold, "words": alarm.words})  # fmt: skip

    def _recall(self, first: int) -> None:
        """What the monitor knew when the run was cut short; a measurement that was cut short is made now."""
        config = self.config
        folders = sorted((config.out / MEASUREMENTS).glob("step-*"))
        for now in [Measurement.load(folder) for folder in folders if int(folder.name[5:]) <= first]:
            self.monitor = self.monitor or Monitor(config.monitor, now)
            self.alarms = self.alarms + 1 if self.monitor.judge(now).alarms else 0
        if _due(first, config.evaluation.every) and not (config.out / MEASUREMENTS / f"step-{first:06d}").is_dir():
            self._measure(first)

    def _fooled(self, step: int, words: str) -> Aligned:
        assert self.monitor is not None
        good = self.monitor.last_good
        place = self.config.out / "adapter"
        if self.main:
            with atomic_folder(place) as staged:
                shutil.copytree(_adapter(self.config.out, good), staged, dirs_exist_ok=True)
        return Aligned(place, good, f"stopped after update {step}: {words}")


def _require_numbers(start: Measurement) -> None:
    """Refuse to begin with a reward or judge that says nothing: nothing could be compared with it.

    Raises:
        WorkError: naming it.
    """
    for name, values in {**start.rewards, **start.judges}.items():
        if not values.isfinite().any():
            raise WorkError(
                f"{name} gave no number for any sample of the generator as it was; look at what it says first"
            )


def _adapter(out: Path, step: int) -> Path:
    return out / "adapters" / f"step-{step:06d}"


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
