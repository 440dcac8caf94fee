"""The monitor: each alarm for what it is made for and for nothing else, quiet on noise, a function of the measurements."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dina_lrm.alignment.config import MonitorConfig
from dina_lrm.alignment.measurement import Measurement
from dina_lrm.alignment.monitor import Findings, Monitor
from dina_lrm.errors import ShapeError, ValueRangeError

PROMPTS, EACH = 48, 2
SIGMAS = (0.1, 0.4, 0.8)
CONFIG = MonitorConfig()


def measured(step: int, seed: int = 0, judged: bool = True) -> Measurement:
    """Samples of a generator: those of one prompt are alike, and one seed gives one generator's one set of samples."""
    generator = torch.Generator().manual_seed(seed)

    def samples(mean: float, std: float) -> Tensor:
        prompt = torch.randn(PROMPTS, 1, generator=generator).expand(PROMPTS, EACH).reshape(-1)
        own = torch.randn(PROMPTS * EACH, generator=generator)
        return mean + std * (0.7 * prompt + 0.7 * own)

    reward = samples(-0.9, 0.7)
    return Measurement(
        step=step,
        group_size=EACH,
        rewards={"lrm": reward},
        judges={"oracle": 5.7 + 1.3 * (0.5 * (reward + 0.9) / 0.7 + samples(0, 0.8))} if judged else {},
        grid=samples(0, 0.2),
        norm=samples(1.0, 0.05),
        diversity=0.8 + 0.1 * torch.randn(PROMPTS, generator=generator),
        distance=torch.zeros(PROMPTS * EACH) if step == 0 else 0.002 + samples(0, 0.0005).abs(),
        spreads={"lrm": samples(0.13, 0.03)},
        profiles={"lrm": torch.stack([reward + samples(shift, 0.1) for shift in (-0.2, 0, 0.9)], dim=1)},
        sigmas=SIGMAS,
    )


START = measured(0)


def judge(now: Measurement, start: Measurement = START, config: MonitorConfig = CONFIG) -> Findings:
    return Monitor(config, start).judge(now)


def names(findings: Findings) -> list[str]:
    return [alarm.name for alarm in findings.alarms]


def raised(values: Tensor, by: float) -> Tensor:
    """By so many standard deviations."""
    return values + by * values.std(correction=0)


def changed(step: int = 10, **what: object) -> Measurement:
    return replace(START, step=step, **what)


def only_low(by: float) -> Measurement:
    """The reward rises at one level, which is not the one that is optimised."""
    profile = START.profiles["lrm"].clone()
    profile[:, 0] = raised(profile[:, 0], by)
    return changed(profiles={"lrm": profile})


def top(share: float) -> Measurement:
    """So many samples have a reward that none had; the others have less, so that the mean is what it was."""
    reward = START.rewards["lrm"].clone()
    many = round(share * len(reward))
    reward[:many] = START.rewards["lrm"].max() + 0.1
    reward[many:] -= (reward.mean() - START.rewards["lrm"].mean()) * len(reward) / (len(reward) - many)
    return changed(rewards={"lrm": reward})


# What makes each sign stand far beyond its limit, and nothing else.
SIGNS = {
    "spread/lrm": lambda by: changed(spreads={"lrm": raised(START.spreads["lrm"], -by * CONFIG.spread)}),
    "profile/lrm": lambda by: only_low(by * CONFIG.profile),
    "range/lrm": lambda by: top(min(1.0, by * CONFIG.range + 0.15)),
    "grid": lambda by: changed(grid=raised(START.grid, by * CONFIG.grid)),
    "norm": lambda by: changed(norm=raised(START.norm, -by * CONFIG.norm)),
    "diversity": lambda by: changed(diversity=START.diversity * (1 - by * CONFIG.diversity)),
    "distance": lambda by: changed(distance=by * CONFIG.distance * (1 + START.norm.square())),
}


@pytest.mark.parametrize("name", SIGNS)
def test_one_sign_far_beyond_its_limit_alarms(name) -> None:
    findings = judge(SIGNS[name](2.3))
    assert names(findings) == [name]
    (alarm,) = findings.alarms
    assert alarm.value > 2 * alarm.threshold and findings.figures[f"monitor/{name}/limit"] == alarm.threshold
    assert findings.figures[f"monitor/{name}"] == alarm.value
    assert len(alarm.words.split()) > 8 and "nan" not in alarm.words


@pytest.mark.parametrize("name", SIGNS)
def test_one_sign_beyond_its_limit_is_not_enough(name) -> None:
    findings = judge(SIGNS[name](1.3))
    assert not findings.alarms and findings.figures["monitor/signs"] == 1


def test_two_signs_beyond_their_limits_alarm_together() -> None:
    both = replace(SIGNS["grid"](1.3), norm=SIGNS["norm"](1.3).norm)
    assert names(judge(both)) == ["grid", "norm"]
    assert not judge(both, config=MonitorConfig(signs=3)).alarms


def test_a_judge_below_its_best_alarms() -> None:
    monitor = Monitor(CONFIG, START)
    verdicts = START.judges["oracle"]
    assert not monitor.judge(changed(10, judges={"oracle": raised(verdicts, 0.5)})).alarms
    # Still better than at the start, and past its best.
    findings = monitor.judge(changed(20, judges={"oracle": raised(verdicts, 0.3)}))
    assert names(findings) == ["judge/oracle"] and "step 10" in findings.alarms[0].words
    assert math.isclose(findings.alarms[0].value, 0.2, rel_tol=1e-6) and monitor.last_good == 10


def test_a_judge_that_falls_a_little_is_let_fall_unless_the_reward_rises() -> None:
    verdicts, rewards = START.judges["oracle"], START.rewards["lrm"]
    fallen = changed(judges={"oracle": raised(verdicts, -0.05)})
    assert not judge(fallen).alarms
    assert names(judge(replace(fallen, rewards={"lrm": raised(rewards, 0.1)}))) == ["divergence/lrm/oracle"]
    assert not judge(replace(fallen, rewards={"lrm": raised(rewards, -0.1)})).alarms


def test_gains_against_each_other_alarm_though_both_rise() -> None:
    gain = torch.randn(PROMPTS * EACH, generator=torch.Generator().manual_seed(5))
    gain = 0.1 * (gain - gain.mean())
    apart = changed(
        rewards={"lrm": START.rewards["lrm"] + 0.1 + gain}, judges={"oracle": START.judges["oracle"] + 0.1 - gain}
    )
    findings = judge(apart)
    assert names(findings) == ["disagreement/lrm/oracle"] and findings.alarms[0].value > 0.9
    together = replace(apart, judges={"oracle": START.judges["oracle"] + 0.1 + gain})
    assert not judge(together).alarms
    lower = replace(apart, rewards={"lrm": START.rewards["lrm"] - 0.1 + gain})
    assert not judge(lower).alarms


def test_a_healthy_gain_is_quiet() -> None:
    better = changed(
        rewards={"lrm": raised(START.rewards["lrm"], 0.3)},
        judges={"oracle": raised(START.judges["oracle"], 0.2)},
        profiles={"lrm": START.profiles["lrm"] + 0.2},
    )
    findings = judge(better)
    assert not findings.alarms and findings.figures["monitor/signs"] == 0
    gain = findings.figures["gain/lrm"]
    assert math.isclose(gain, 0.3 * float(START.rewards["lrm"].std(correction=0)), rel_tol=1e-5)
    assert findings.figures["gain/lrm/low"] <= gain <= findings.figures["gain/lrm/high"]


def test_the_start_itself_is_no_alarm_and_every_figure_of_it_is_there() -> None:
    findings = judge(START)
    assert not findings.alarms
    assert {"reward/lrm", "judge/oracle/low", "profile/lrm/0.4", "spread/lrm", "grid", "distance"} <= set(
        findings.figures
    )
    assert all(f"monitor/{name}" in findings.figures for name in SIGNS)


def test_it_is_quiet_on_other_samples_of_the_same_generator() -> None:
    """Not even the noise is shared, as it is in a run: 100 seeds, and 2 % of them at most alarm."""
    looks = [judge(measured(10, seed=2 * seed + 1), measured(0, seed=2 * seed)) for seed in range(100)]
    assert sum(bool(findings.alarms) for findings in looks) <= 2
    assert not any(findings.figures["monitor/signs"] for findings in looks)


def test_replayed_it_says_and_knows_the_same() -> None:
    course = [START, SIGNS["grid"](0.5), replace(SIGNS["grid"](2.5), step=20), replace(SIGNS["norm"](0.1), step=30)]
    course += [changed(40, judges={"oracle": raised(START.judges["oracle"], -0.4)})]
    live = Monitor(CONFIG, START)
    found = [live.judge(now) for now in course]
    assert live.last_good == 30
    for cut in range(1, len(course)):
        again = Monitor.replay(CONFIG, course[:cut])
        assert repr([again.judge(now) for now in course[cut:]]) == repr(found[cut:])  # NaN is not itself, its text is
        assert again.last_good == live.last_good


def test_samples_without_a_reward_are_left_out() -> None:
    reward = START.rewards["lrm"].clone()
    reward[::3] = math.nan
    findings = judge(changed(rewards={"lrm": reward}))
    assert not findings.alarms and math.isclose(findings.figures["gain/lrm"], 0, abs_tol=1e-9)
    nobody = judge(changed(rewards={"lrm": torch.full_like(reward, math.nan)}))
    assert not nobody.alarms and math.isnan(nobody.figures["monitor/range/lrm"])


def test_without_judges_or_latent_rewards_the_rest_is_looked_at() -> None:
    bare = replace(START, judges={}, spreads={}, profiles={}, sigmas=(), group_size=1, diversity=torch.zeros(0))
    findings = judge(replace(bare, step=10, grid=raised(bare.grid, 1.0)), bare)
    assert names(findings) == ["grid"]
    assert not any("judge" in name or "diversity" in name or "profile" in name for name in findings.figures)


def test_other_samples_are_refused() -> None:
    with pytest.raises(ShapeError, match="judges"):
        judge(changed(judges={}))
    with pytest.raises(ShapeError, match="groups of 1"):
        judge(changed(group_size=1))
    with pytest.raises(ValueRangeError, match="none"):
        Monitor.replay(CONFIG, [])
