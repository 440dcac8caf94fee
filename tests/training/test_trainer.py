from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from dina_lrm.backbones import AdapterConfig, BackboneConfig
from dina_lrm.checkpoint import verify_model
from dina_lrm.errors import CheckpointError, ConfigError, DataError, WorkError
from dina_lrm.heads import MeanPoolHeadConfig
from dina_lrm.runtime.accelerator import create_accelerator
from dina_lrm.runtime.metrics_log import read_metrics
from dina_lrm.runtime.snapshots import find_snapshots
from dina_lrm.training import LevelsConfig, OptimiserConfig, ScheduleConfig, TrainConfig, Trainer, ValidationConfig
from dina_lrm.training import run as run_module
from tests.pipelines import build_pipeline
from tests.torchrun import on_two_processes
from tests.training.fake import FakeBackbone
from tests.training.test_large_recipes import write_preferences as write_tiny_preferences

Configure = Callable[..., TrainConfig]
TIMES = {"seconds", "pairs_per_second"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bits are compared with those of another process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(config: TrainConfig, resume: Any = None) -> Trainer:
    trainer = Trainer(config, quiet=True)
    assert trainer.run(resume) == config.out / "model"
    return trainer


def model_weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(config.out / "model" / "head.safetensors")


def rows(config: TrainConfig, kind: str = "train") -> list[dict[str, Any]]:
    return [row for row in read_metrics(config.out / "metrics.jsonl") if row["kind"] == kind]


def same_weights(one: TrainConfig, other: TrainConfig) -> bool:
    mine, theirs = model_weights(one), model_weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def run_beside(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Another Python process that sees our code and our tests."""
    path = os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
        timeout=600,
    )


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], Any]) -> None:
    """Do something at the end of a step, counted from 1."""
    original = run_module.TrainingRun.step

    def stepped(self: run_module.TrainingRun, index: int) -> Any:
        row = original(self, index)
        if index + 1 == step:
            action()
        return row

    monkeypatch.setattr(run_module.TrainingRun, "step", stepped)


def test_a_run_learns_logs_measures_and_saves(configure: Configure) -> None:
    config = configure(num_steps=60, optimiser=OptimiserConfig(learning_rate=3e-2), save_every=25, keep_last=1)
    trainer = train(config)
    train_rows = rows(config)
    assert [row["step"] for row in train_rows] == list(range(1, 61))
    wanted = {
        "kind",
        "step",
        "loss",
        "accuracy",
        "margin",
        "lr",
        "grad_norm",
        "pairs",
        "pairs_per_second",
        "sigma_mean",
        "seconds",
    }
    assert set(train_rows[0]) == wanted
    validation = rows(config, "validation")
    assert [(row["step"], row["sigma"]) for row in validation[-2:]] == [(60, 0.1), (60, 0.7)]
    assert validation[-2]["accuracy"] == 1.0
    assert validation[-2]["loss"] < validation[0]["loss"]
    assert [s.step for s in find_snapshots(config.out / "checkpoints")] == [60]
    verify_model(config.out / "model")
    assert trainer.network is not None
    saved = model_weights(config)
    assert all(torch.equal(value, saved[name]) for name, value in trainer.network.head.state_dict().items())


def test_text_is_encoded_once_and_its_encoders_go(configure: Configure) -> None:
    config = configure()
    backbone = train(config).network.backbone
    assert isinstance(backbone, FakeBackbone)
    assert sorted(backbone.asked) == ["a cat", "a dog", "a fox"]
    assert not backbone.has_encoders
    again = train(config.model_copy(update={"num_steps": 11, "out": config.out / "more"})).network.backbone
    assert isinstance(again, FakeBackbone)
    assert sorted(again.asked) == ["a cat", "a dog", "a fox"]


def test_two_runs_with_one_seed_are_one_run_to_the_bit(configure: Configure) -> None:
    first, second, other = configure("first"), configure("second"), configure("other", seed=1)
    for config in (first, second, other):
        train(config)
    assert same_weights(first, second)
    assert not same_weights(first, other)


def test_a_run_leaves_the_global_randomness_alone(configure: Configure) -> None:
    before = torch.get_rng_state()
    train(configure())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"backbone": BackboneConfig(image_taps=(1,), text_taps=(1,), adapter=AdapterConfig(rank=2, alpha=4))},
        {"ema_decay": 0.0},
        {"levels": LevelsConfig(stratified=False), "objective": "nll", "soft_labels": False},
    ],
    ids=["head", "accumulation", "adapter", "no-ema", "nll"],
)
def test_stopped_and_resumed_equals_uninterrupted(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    whole, parted = configure("whole", **changes), configure("parted", **changes)
    train(whole)
    with monkeypatch.context() as patch:
        stop_at(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(WorkError, match=r"stopped by SIGTERM after step 4 of 10; it is saved"):
            train(parted)
    assert [s.step for s in find_snapshots(parted.out / "checkpoints")] == [3, 4]
    assert len(rows(parted)) == 4
    assert not (parted.out / "model").exists()
    train(parted, resume="auto")
    assert same_weights(whole, parted)
    strip = [[{k: v for k, v in row.items() if k not in TIMES} for row in rows(c)] for c in (whole, parted)]
    assert strip[0] == strip[1]
    assert rows(whole, "validation") == rows(parted, "validation")


def test_killed_while_saving_then_resumed_equals_uninterrupted(
    configure: Configure, preferences: Path, root: Path
) -> None:
    whole, killed = configure("whole"), configure("killed")
    train(whole)
    command = [sys.executable, "-m", "tests.training.killed", str(preferences), str(killed.out)]
    path = os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    checkpoints = killed.out / "checkpoints"
    assert [s.step for s in find_snapshots(checkpoints)] == [3]
    assert len(rows(killed)) == 6
    assert list(checkpoints.glob(".step-000006*"))
    train(killed, resume="auto")
    assert same_weights(whole, killed)
    assert not list(checkpoints.glob(".*"))
    assert [row["step"] for row in rows(killed)] == list(range(1, 11))


def test_a_path_resumes_from_that_snapshot_or_that_run(configure: Configure) -> None:
    config = configure(keep_last=9)
    train(config)
    reference = model_weights(config)
    for place in (config.out / "checkpoints" / "step-000003", config.out):
        continued = config.model_copy(update={"out": config.out.parent / f"from-{place.name}"})
        train(continued, resume=place)
        assert all(torch.equal(value, reference[name]) for name, value in model_weights(continued).items())
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        train(config, resume=config.out / "checkpoints" / "step-000004")


def test_auto_starts_afresh_where_nothing_is_and_none_refuses_where_something_is(configure: Configure) -> None:
    config = configure(num_steps=2)
    train(config, resume="auto")
    with pytest.raises(ConfigError, match="earlier run up to step 2"):
        train(config)
    train(config, resume="auto")
    assert len(rows(config)) == 2


def test_another_run_is_not_resumed_and_every_difference_is_named(configure: Configure) -> None:
    config = configure()
    train(config)
    changed = configure(head=MeanPoolHeadConfig(width=16), seed=7, save_every=1, keep_last=5)
    with pytest.raises(ConfigError, match=r"head\.width \(was 8, is 16\), seed \(was 0, is 7\)") as caught:
        train(changed, resume="auto")
    assert "save_every" not in str(caught.value)
    assert "keep_last" not in str(caught.value)


def test_changed_data_are_another_run(configure: Configure, preferences: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in preferences.rglob("*"):
        target = copied / path.relative_to(preferences)
        if path.is_dir():
            target.mkdir()
        else:
            target.write_bytes(path.read_bytes())
    config = configure(data=copied)
    train(config)
    described = json.loads((copied / "dataset.json").read_text())
    (copied / "dataset.json").write_text(json.dumps({**described, "name": "other"}))
    with pytest.raises(ConfigError, match=r"data \(was"):
        train(config, resume="auto")


def test_the_average_is_exported_and_the_raw_weights_are_kept(configure: Configure) -> None:
    averaged, raw = configure("averaged"), configure("raw", ema_decay=0.0)
    for config in (averaged, raw):
        train(config)
    kept = load_file(averaged.out / "checkpoints" / "step-000010" / "trainable.safetensors")
    exported = model_weights(averaged)
    unaveraged = model_weights(raw)
    assert all(torch.equal(kept[f"head.{name}"], value) for name, value in unaveraged.items())
    assert not all(torch.equal(exported[name], value) for name, value in unaveraged.items())
    said = [json.loads((c.out / "model" / "config.json").read_text())["provenance"]["weights"] for c in (averaged, raw)]
    assert said == ["ema", "raw"]
    assert {row["weights"] for row in rows(raw, "validation")} == {"raw"}


def test_gradients_are_clipped_once_per_optimiser_step(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    original = run_module.TrainingRun._clip

    def clip(self: run_module.TrainingRun) -> torch.Tensor:
        norm = original(self)
        grads = [p.grad for p in self._parameters.values() if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads]))))
        return norm

    monkeypatch.setattr(run_module.TrainingRun, "_clip", clip)
    optimiser = OptimiserConfig(learning_rate=1e-2, max_grad_norm=1e-3)
    config = configure(num_steps=5, gradient_accumulation_steps=3, optimiser=optimiser)
    train(config)
    assert len(norms) == 5
    assert all(norm == pytest.approx(1e-3, rel=1e-2) for norm in norms)
    assert all(row["grad_norm"] > 1e-3 for row in rows(config))


def test_accumulated_micro_steps_equal_one_large_step(configure: Configure) -> None:
    levels = LevelsConfig.model_validate({"law": {"kind": "constant"}})
    same = {"num_steps": 1, "schedule": ScheduleConfig(warm_up=0), "levels": levels}
    large = configure("large", batch_size=8, **same)
    small = configure("small", batch_size=4, gradient_accumulation_steps=2, **same)
    for config in (large, small):
        train(config)
    # The same pairs at the same level through other noise: alike in size, not in bits.
    assert rows(small)[0]["loss"] == pytest.approx(rows(large)[0]["loss"], abs=0.05)
    assert len(rows(small)) == 1


def test_the_rate_follows_the_schedule_by_optimiser_steps(configure: Configure) -> None:
    config = configure(gradient_accumulation_steps=2)
    train(config)
    rates = [row["lr"] for row in rows(config)]
    assert rates == pytest.approx([1e-2 * config.schedule.factor(step, 10) for step in range(10)])
    assert rates[0] == pytest.approx(5e-3)


def test_levels_are_stratified_over_all_micro_steps(configure: Configure) -> None:
    config = configure(gradient_accumulation_steps=4, num_steps=3)
    train(config)
    assert all(abs(row["sigma_mean"] - 0.5) <= 0.5 / 16 for row in rows(config))


def test_divergence_names_the_step(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure()

    def poison(self: run_module.TrainingRun, index: int) -> Any:
        if index == 3:
            with torch.no_grad():
                next(iter(self._parameters.values())).fill_(torch.nan)
        return original(self, index)

    original = run_module.TrainingRun.step
    monkeypatch.setattr(run_module.TrainingRun, "step", poison)
    with pytest.raises(WorkError, match="diverged at step 4"):
        train(config)
    assert [s.step for s in find_snapshots(config.out / "checkpoints")] == [3]
    assert len(rows(config)) == 3


def test_the_control_differs_in_its_base_only(configure: Configure) -> None:
    backbone = BackboneConfig(image_taps=(1,), text_taps=(1,), adapter=None)
    runs = [
        train(configure(kind, initialise=kind, backbone=backbone, num_steps=2)) for kind in ("pretrained", "random")
    ]
    bases = [t.network.backbone.network.image.weight for t in runs]
    assert not torch.equal(*bases)
    assert runs[0].network.head.merge_image[0].weight.shape == runs[1].network.head.merge_image[0].weight.shape


def test_measuring_does_not_change_what_is_learned(configure: Configure) -> None:
    often, never = (
        configure("often", validation=ValidationConfig(every=1, sigmas=(0.2,))),
        configure("never", validation=ValidationConfig(every=0)),
    )
    for config in (often, never):
        train(config)
    assert same_weights(often, never)
    assert len(rows(often, "validation")) == 10
    assert rows(never, "validation") == []


def test_latents_of_another_base_are_refused(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.training.fake.CHANNELS", 16)
    with pytest.raises(DataError, match="4 channels, base 'fake' takes 16"):
        train(configure())


def test_bad_places_are_told(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no preference folder"):
        train(configure(data=tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no split 'practice'"):
        train(configure(split="practice"))


def test_noise_of_validation_has_no_neighbours(configure: Configure) -> None:
    one, other = (
        configure("one"),
        configure("other", validation=ValidationConfig(every=5, num_pairs=8, sigmas=(0.1, 0.7), batch_size=8)),
    )
    for config in (one, other):
        train(config)
    for mine, theirs in zip(rows(one, "validation"), rows(other, "validation"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
        assert mine["accuracy"] == theirs["accuracy"]


@pytest.mark.parametrize("max_candidates", ["", "3"])
def test_two_processes_learn_one_model_from_strata_over_both(
    configure: Configure, preferences: Path, max_candidates: str
) -> None:
    config = configure()
    on_two_processes("tests.training.two_processes", preferences, config.out, max_candidates)
    ended = [(config.out / f"ended-{rank}.json").read_text() for rank in (0, 1)]
    assert ended[0] == ended[1]
    assert [row["step"] for row in rows(config)] == list(range(1, 11))
    if not max_candidates:  # with prompts, sigma_mean weighs each by its pairs
        assert all(abs(row["sigma_mean"] - 0.5) <= 0.5 / 8 for row in rows(config))
        assert all(row["pairs"] == 8 for row in rows(config))
    assert len(rows(config, "validation")) == 4
    verify_model(config.out / "model")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_processes_that_hold_the_base_together_learn_the_same_model(root: Path, tmp_path: Path, precision: str) -> None:
    write_tiny_preferences(tmp_path / "data", 16)
    base = build_pipeline("sd35", tmp_path / "base")
    out = tmp_path / "out"
    on_two_processes("tests.training.sharded", tmp_path / "data", base, out, precision)
    dealt = json.loads((out / "dealt.json").read_text())
    assert dealt["1"] == 0 and dealt["2"] > 0
    whole, parted = (list(read_metrics(out / n / "metrics.jsonl")) for n in "12")
    assert len(whole) == len(parted) == 3 * (1 + 3)  # a step, and three levels of a validation, each time
    # What half precision rounds away grows from step to step: there the first alone must agree.
    for one, other in list(zip(whole, parted, strict=True))[: None if precision == "no" else 1]:
        assert one.keys() == other.keys()
        for figure in [name for name, value in one.items() if isinstance(value, float) and name not in TIMES]:
            assert other[figure] == pytest.approx(one[figure], rel=1e-4, abs=1e-6), figure
    for name in ("head.safetensors", "adapter/adapter_model.safetensors") if precision == "no" else ():
        one, other = (load_file(out / n / "model" / name) for n in "12")
        # A difference of utilities does not know their bias, nor a softmax its keys': AdamW makes steps of what is rounding.
        felt = [key for key in one if not key.endswith(("to_utility.bias", "to_k.bias"))]
        assert len(felt) > len(one) / 2 and all(torch.allclose(one[key], other[key], atol=1e-4) for key in felt)


def test_a_base_that_is_not_frozen_or_cannot_be_dealt_out_is_refused(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"base_shards=2 must divide the number of processes, which is 1"):
        train(configure(base_shards=2))
    with pytest.raises(ValidationError, match=r"backbone.weights=own learns them all"):
        configure(base_shards=2, backbone=BackboneConfig(adapter=None, weights="own"))


def test_learning_from_groups_goes_on_to_the_same_bits(configure: Configure) -> None:
    changes = {"max_candidates": 5, "batch_size": 2, "num_steps": 6, "save_every": 2, "keep_last": 3}
    whole, cut = configure("whole", **changes), configure("cut", **changes)
    train(whole)
    assert all(row["loss"] > 0 for row in rows(whole))
    train(cut, whole.out / "checkpoints" / "step-000004")
    assert same_weights(whole, cut)


def test_the_scale_of_a_float16_loss_is_kept(configure: Configure) -> None:
    config = configure()

    def run(scale: float) -> run_module.TrainingRun:
        made = run_module.TrainingRun(config, create_accelerator(device="cpu"))
        made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return made

    first, again = run(64.0), run(2.0)
    first.save(1, {})
    again.load(find_snapshots(config.out / "checkpoints")[-1], {})
    assert again.accelerator.scaler.get_scale() == 64.0


def test_a_model_folder_of_other_things_is_told_before_the_run(configure: Configure) -> None:
    config = configure()
    (config.out / "model").mkdir(parents=True)
    (config.out / "model" / "notes.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"holds notes.txt"):
        train(config)
    assert not (config.out / "metrics.jsonl").exists()
