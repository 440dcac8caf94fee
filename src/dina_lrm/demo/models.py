"""The models of the demo: trained once, loaded when a step asks for one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from dina_lrm.checkpoint import LoadedModel
from dina_lrm.checkpoint.folder import read_config
from dina_lrm.demo.settings import Run
from dina_lrm.demo.steps import fingerprint
from dina_lrm.errors import ConfigError
from dina_lrm.report import TrainingFacts, ValidationPoint
from dina_lrm.runtime.metrics_log import read_metrics
from dina_lrm.scoring import RewardModel
from dina_lrm.training import TrainConfig, Trainer

__all__ = ["Models", "train_and_tell"]

_CURVE_POINTS = 150
_STAMP = "demo-settings"


class Models:
    """Reward models by the name of their run.

    A run that was cut short goes on from its last snapshot; one that is finished is only loaded. A folder that was
    trained with other settings is trained afresh.
    """

    def __init__(self, configs: dict[str, TrainConfig], quiet: bool = False) -> None:
        """Args:
        configs: of the runs.
        quiet: no progress on stderr.
        """
        self.configs = configs
        self._quiet = quiet
        self._loaded: dict[str, RewardModel] = {}

    def __getitem__(self, name: str) -> RewardModel:
        """The model of a run, trained if it is not yet."""
        if name not in self._loaded:
            self._loaded[name] = self._train(self.configs[name])
        return self._loaded[name]

    def _train(self, config: TrainConfig) -> RewardModel:
        stamp = fingerprint(config.model_dump(mode="json"))
        stamped = config.out / _STAMP
        if not (stamped.is_file() and stamped.read_text() == stamp):
            if config.out.is_dir() and any(config.out.iterdir()) and not stamped.is_file():
                raise ConfigError(f"{config.out} holds files that no demo wrote; remove it, or choose another --out")
            shutil.rmtree(config.out, ignore_errors=True)
            config.out.mkdir(parents=True)
            stamped.write_text(stamp)
        trainer = Trainer(config, quiet=self._quiet)
        # After the last snapshot there is nothing left to train: a finished run only comes back into memory.
        folder = trainer.run(resume="auto")
        assert trainer.network is not None
        network = trainer.network.eval().requires_grad_(False)
        return RewardModel(LoadedModel(network, read_config(folder)))


def train_and_tell(models: Models, name: str, run: Run) -> TrainingFacts:
    """Train a model if it is not yet, and say what the report says of it, from its metrics and its weights."""
    model, config = models[name], models.configs[name]
    rows = read_metrics(config.out / "metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "train"]
    seconds = float(steps[-1]["seconds"] or 0)
    pairs = sum(int(row["pairs"] or 0) for row in steps)
    trained = [*model.network.head.state_dict().values(), *model.network.backbone.adapter_state().values()]
    return TrainingFacts(
        name=name,
        label=run.label,
        backbone=run.initialise,
        head=config.head.kind,
        objective=config.objective,
        steps=len(steps),
        batch_size=config.batch_size,
        pairs=pairs,
        trained_parameters=sum(tensor.numel() for tensor in trained),
        seconds=seconds,
        pairs_per_second=pairs / seconds,
        model=f"{config.out.parent.name}/{config.out.name}/model",
        at_step=tuple(int(part[-1]["step"] or 0) for part in _windows(steps)),
        loss=_means(steps, "loss"),
        accuracy=_means(steps, "accuracy"),
        learning_rate=_means(steps, "lr"),
        validation=tuple(
            ValidationPoint.model_validate({key: row[key] for key in ("step", "sigma", "accuracy")})
            for row in rows
            if row["kind"] == "validation"
        ),
    )


Row = dict[str, int | float | str | None]


def _windows(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """The rows in at most `_CURVE_POINTS` runs of neighbours."""
    size = -(-len(rows) // _CURVE_POINTS)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _means(rows: Sequence[Row], name: str) -> tuple[float, ...]:
    def mean(part: Sequence[Row]) -> float:
        values = [float(value) for row in part if (value := row[name]) is not None]
        return sum(values) / len(values) if values else float("nan")

    return tuple(mean(part) for part in _windows(rows))
