"""The loop: what it leaves, how it goes on, and when it stops."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from pydantic import ValidationError
from safetensors.torch import load_file

from dina_lrm.alignment import Aligner
from dina_lrm.alignment.run import AlignRun
from dina_lrm.errors import ConfigError, WorkError
from dina_lrm.generation.policy import WEIGHTS_FILE
from tests.alignment.tiny import Clock, configured, make_world
from tests.torchrun import on_two_processes

JUDGE = {"kind": "factory", "make": "tests.alignment.tiny:make_scorer"}
TIMES = {"seconds", "samples_per_second"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def measuring(**changes: Any) -> dict[str, Any]:
    judge = {**JUDGE, "name": "judge"}
    return {"every": 1, "num_prompts": 2, "sigmas": (0.2, 0.6), "draws": 2, "grid": 2, "judges": (judge,), **changes}


def rows(out: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in found if row["kind"] == kind]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "pytorch_lora_weights.safetensors")


def same(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_what_a_run_leaves(world, tmp_path) -> None:
    seen: list[Path] = []
    config = configured(world, tmp_path / "run", evaluation=measuring(), monitor={"action": "warn"})
    found = Aligner(config, on_evaluation=seen.append, quiet=True).run()
    out = tmp_path / "run"
    assert found.adapter == out / "adapter" and found.step == 2 and found.stopped is None
    assert [row["step"] for row in rows(out, "update")] == [1, 2]
    evaluations = rows(out, "evaluation")
    assert [row["step"] for row in evaluations] == [0, 1, 2] and len(seen) == 3
    assert evaluations[0]["gain/judge"] == 0 and evaluations[2]["gain/reward"] != 0
    for step in range(3):
        assert (out / "samples" / f"step-{step:06d}.png").is_file()
        assert (out / "adapters" / f"step-{step:06d}" / "pytorch_lora_weights.safetensors").is_file()
    assert same(out / "adapter", out / "adapters" / "step-000002")
    pipeline = DiffusionPipeline.from_pretrained(world / "base")
    pipeline.load_lora_weights(found.adapter)  # the one line that diffusers needs
    assert pipeline.get_active_adapters()


@pytest.mark.parametrize(
    "algorithm", [{"kind": "refl", "kl": 0.1}, {"kind": "nft", "group_size": 2}], ids=["refl", "nft"]
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(world, tmp_path, monkeypatch, algorithm) -> None:
    def config(name: str):
        return configured(
            world,
            tmp_path / name,
            algorithm,
            num_updates=4,
            save_every=0,
            evaluation=measuring(),
            monitor={"action": "warn"},
        )

    Aligner(config("whole"), quiet=True).run()
    update = AlignRun.update

    def stopped(self: AlignRun, number: int) -> Any:
        row = update(self, number)
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    with monkeypatch.context() as patch:
        patch.setattr(AlignRun, "update", stopped)
        with pytest.raises(WorkError, match=r"stopped by SIGTERM after update 2 of 4; it is saved"):
            Aligner(config("parted"), quiet=True).run()
    Aligner(config("parted"), quiet=True).run(resume="auto")
    assert same(tmp_path / "whole" / "adapter", tmp_path / "parted" / "adapter")
    for kind in ("update", "evaluation", "alarm"):
        assert rows(tmp_path / "whole", kind) == rows(tmp_path / "parted", kind)


def test_a_run_of_another_recipe_is_not_resumed(world, tmp_path) -> None:
    Aligner(configured(world, tmp_path / "run"), quiet=True).run()
    with pytest.raises(ConfigError, match="holds checkpoints of an earlier run"):
        Aligner(configured(world, tmp_path / "run"), quiet=True).run()
    other = configured(world, tmp_path / "run", {"kind": "draft"}, seed=3)
    with pytest.raises(ConfigError, match=r"belongs to another run.*algorithm\.kind \(was 'refl', is 'draft'\).*seed"):
        Aligner(other, quiet=True).run(resume="auto")
    (world / "prompts.txt").with_name("others.txt").write_text("something else")
    prompts = configured(world, tmp_path / "run", prompts={"kind": "file", "path": world / "others.txt"})
    with pytest.raises(ConfigError, match="prompts"):
        Aligner(prompts, quiet=True).run(resume="auto")


def test_a_reward_that_fails_for_good_leaves_a_snapshot_to_go_on_from(world, tmp_path) -> None:
    calls: list[int] = []

    def breaks(pixels, prompts):
        calls.append(len(pixels))
        if len(calls) > 1:
            raise ConnectionError("gone")
        return pixels.flatten(1).mean(dim=1)

    config = configured(
        world, tmp_path / "run", {"kind": "dpo", "group_size": 2}, rewards=(JUDGE,), reward_patience=0.0, save_every=0
    )
    with pytest.raises(WorkError, match=r"not answered.*gone. 1 updates are saved"):
        Aligner(config, rewards={"reward": breaks}, quiet=True).run()
    calls.clear()
    whole = configured(world, tmp_path / "whole", {"kind": "dpo", "group_size": 2}, rewards=(JUDGE,), save_every=0)
    Aligner(config, quiet=True).run(resume="auto")
    Aligner(whole, quiet=True).run()
    assert same(tmp_path / "run" / "adapter", tmp_path / "whole" / "adapter")


class Fooled:
    """A monitor that alarms from its second measurement on."""

    def __init__(self, monkeypatch) -> None:
        from dina_lrm.alignment import aligner
        from dina_lrm.alignment.monitor import Alarm, Findings

        class Monitor(aligner.Monitor):
            def judge(self, now):
                found = super().judge(now)
                alarms = (Alarm("grid", 9.0, 1.0, "a grid"),) if now.step else ()
                self.last_good = 0
                return Findings(found.step, alarms, found.figures)

        monkeypatch.setattr(aligner, "Monitor", Monitor)


def test_an_alarm_stops_the_run_and_names_the_last_good_adapter(world, tmp_path, monkeypatch) -> None:
    Fooled(monkeypatch)
    config = configured(world, tmp_path / "run", num_updates=5, evaluation=measuring(), monitor={"patience": 2})
    found = Aligner(config, quiet=True).run()
    out = tmp_path / "run"
    assert found.step == 0 and found.adapter == out / "adapter"
    assert same(out / "adapter", out / "adapters" / "step-000000")  # the last good one, where everybody looks
    assert found.stopped == "stopped after update 2: a grid"
    assert [row["step"] for row in rows(tmp_path / "run", "update")] == [1, 2]
    assert [row["name"] for row in rows(tmp_path / "run", "alarm")] == ["grid", "grid"]


def test_an_alarm_may_strengthen_the_pull_instead(world, tmp_path, monkeypatch) -> None:
    Fooled(monkeypatch)
    action = {"action": "strengthen", "factor": 2.0}
    config = configured(world, tmp_path / "run", {"kind": "refl", "kl": 0.5}, evaluation=measuring(), monitor=action)
    aligner = Aligner(config, quiet=True)
    assert aligner.run().stopped is None
    assert aligner.run_state.algorithm.kl == 2.0  # twice: after both updates
    with pytest.raises(ValidationError, match=r"algorithm\.kl is 0"):  # told before anything is loaded
        configured(world, tmp_path / "other", {"kind": "refl"}, evaluation=measuring(), monitor=action)


def test_a_reward_that_is_away_during_a_measurement_is_waited_for_and_then_resumed(
    world, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("dina_lrm.alignment.run.time", Clock())
    gone: list[bool] = []

    def scorer(pixels, prompts):
        if gone:
            raise ConnectionError("gone")
        return pixels.flatten(1).mean(dim=1)

    update = AlignRun.update

    def then_gone(self: AlignRun, number: int) -> Any:
        row = update(self, number)
        gone.extend([True] * (number == 0))
        return row

    def config(name: str):
        changes: dict[str, Any] = {"rewards": (JUDGE,), "reward_patience": 3.0, "save_every": 0}
        return configured(
            world,
            tmp_path / name,
            {"kind": "dpo", "group_size": 2},
            evaluation=measuring(),
            monitor={"action": "warn"},
            **changes,
        )

    given = {"reward": scorer}
    with monkeypatch.context() as patch:
        patch.setattr(AlignRun, "update", then_gone)
        with (
            pytest.warns(UserWarning, match="the reward is away, asked again for 3 s: gone"),
            pytest.raises(WorkError, match=r"not answered for 3 s: gone. 1 updates are saved"),
        ):
            Aligner(config("parted"), rewards=given, quiet=True).run()
    gone.clear()
    Aligner(config("parted"), rewards=given, quiet=True).run(resume="auto")
    Aligner(config("whole"), rewards=given, quiet=True).run()
    assert rows(tmp_path / "parted", "evaluation") == rows(tmp_path / "whole", "evaluation")


def test_patience_and_a_stronger_pull_survive_a_resume(world, tmp_path, monkeypatch) -> None:
    Fooled(monkeypatch)
    action = {"action": "strengthen", "factor": 2.0, "patience": 2}

    def config(name: str):
        return configured(
            world,
            tmp_path / name,
            {"kind": "refl", "kl": 0.5},
            num_updates=4,
            evaluation=measuring(),
            monitor=action,
            save_every=0,
        )

    whole = Aligner(config("whole"), quiet=True)
    whole.run()
    update = AlignRun.update

    def stopped(self: AlignRun, number: int) -> Any:
        row = update(self, number)
        if number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    with monkeypatch.context() as patch:
        patch.setattr(AlignRun, "update", stopped)
        with pytest.raises(WorkError, match="stopped by SIGTERM"):
            Aligner(config("parted"), quiet=True).run()
    parted = Aligner(config("parted"), quiet=True)
    parted.run(resume="auto")
    assert parted.run_state.algorithm.kl == whole.run_state.algorithm.kl == 0.5 * 2**3  # after updates 2, 3 and 4
    assert same(tmp_path / "whole" / "adapter", tmp_path / "parted" / "adapter")


def test_a_judge_that_says_nothing_is_told_before_the_first_update(world, tmp_path) -> None:
    dumb = {"kind": "factory", "name": "dumb", "make": "tests.alignment.tiny:make_nothing"}
    config = configured(world, tmp_path / "run", evaluation=measuring(judges=(dumb,)))
    with pytest.warns(UserWarning, match="dumb could not judge"), pytest.raises(WorkError, match="dumb gave no number"):
        Aligner(config, quiet=True).run()


def test_two_processes_learn_one_policy_and_share_the_measuring(world, tmp_path) -> None:
    on_two_processes("tests.alignment.two_processes", world, tmp_path / "both")
    ended = [(tmp_path / "both" / f"ended-{rank}.json").read_text() for rank in (0, 1)]
    assert ended[0] == ended[1]
    one = configured(
        world, tmp_path / "one", evaluation=measuring(num_prompts=3, batch_size=2), monitor={"action": "warn"}
    )
    Aligner(one, quiet=True).run()
    # The generator as it was, measured by two processes and by one.
    assert rows(tmp_path / "both", "evaluation")[0] == rows(tmp_path / "one", "evaluation")[0]


def test_processes_that_hold_the_base_together_do_what_each_does_alone(world, tmp_path) -> None:
    flux, out = make_world(tmp_path / "flux", "flux", "flux"), tmp_path / "out"
    on_two_processes("tests.alignment.sharded", world, flux, out)
    told = [json.loads((out / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    for name, (whole, parted) in told[0].items():
        assert parted["weights"] == told[1][name][1]["weights"]
        assert whole["held"] == whole["base"]  # policy and reward have the base in common
        assert parted["held"] == pytest.approx(whole["base"] / 2, rel=0.01)  # and still do, when it is dealt out
        assert whole["gathered"] == whole["blocks"] and parted["gathered"] <= 2 and parted["left"] == 0
        for figure in ("loss", "grad_norm", "judged", "weights", "rewards", "distance"):
            one, other = whole[figure], parted[figure]
            if name == "family":  # half precision rounds sums in another order, and AdamW makes steps of it
                one, other = (one[:1], other[:1]) if figure in ("loss", "grad_norm", "judged") else ([], [])
            near = 0.05 if name == "family" and figure == "grad_norm" else 1e-4
            assert other == pytest.approx(one, rel=near, abs=1e-6), (name, figure)
    assert told[0]["late"][1]["drawn"] != told[1]["late"][1]["drawn"]  # or nothing had to be agreed
    failing = {name: told[0][name][1]["judged"] for name in ("mixed", "alone")}
    assert failing == {"mixed": [0.5, 0.5], "alone": [0.5, 0.5]}  # who was judged on the first process still teaches
    # Begun by two that hold it whole, gone on by two that hold it together.
    whole, parted = (load_file(out / name / "adapter" / WEIGHTS_FILE) for name in ("whole", "parted"))
    assert all(torch.allclose(value, parted[key], atol=1e-4) for key, value in whole.items())
    assert len(rows(out / "parted", "evaluation")) == len(rows(out / "whole", "evaluation")) == 2


def test_a_base_that_cannot_be_dealt_out_is_refused(world, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"base_shards=2 must divide the number of processes, which is 1"):
        Aligner(configured(world, tmp_path / "run", base_shards=2), quiet=True).run()
