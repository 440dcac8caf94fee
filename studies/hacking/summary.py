"""What the monitor said of each run, with judges and without, and what it would have said with other limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from dina_lrm.alignment.config import MonitorConfig
from dina_lrm.alignment.measurement import Measurement
from dina_lrm.alignment.monitor import Findings, Monitor
from studies.hacking.settings import ARMS, Budget
from studies.runs import measurements_of

__all__ = ["CHOSEN_ON", "FALL", "SCALES", "summarise"]

# Standard deviations of the start's samples by which the judge may fall below its best before it counts as fallen: the
# pictures of that moment look worn, not broken.
FALL = 0.25
# The judge has hardly moved, or is clearly going: what lies between says nothing about a sign.
WELL, ILL = 0.05, 0.15
# The limits were chosen on these runs; the others judge them.
CHOSEN_ON = (0,)
SCALES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
SIGNS = ("spread/reward", "profile/reward", "range/reward", "grid", "norm", "diversity", "distance")
_LIMITS = ("spread", "profile", "range", "grid", "norm", "diversity", "distance")


def scaled(scale: float) -> MonitorConfig:
    """The limits of all signs times a number."""
    config = MonitorConfig()
    limits = {name: scale * getattr(config, name) for name in _LIMITS}
    return config.model_copy(update=limits)


def unjudged(course: Sequence[Measurement]) -> list[Measurement]:
    """As most users have it."""
    return [replace(now, judges={}) for now in course]


def said(course: Sequence[Measurement], config: MonitorConfig) -> list[Findings]:
    """What the monitor says of each measurement after the first."""
    monitor = Monitor(config, course[0])
    return [monitor.judge(now) for now in course][1:]


def first_alarm(found: Sequence[Findings]) -> int | None:
    """The step of it."""
    return next((one.step for one in found if one.alarms), None)


def falls_of(found: Sequence[Findings]) -> list[float]:
    """How far the judge is below its best."""
    return [one.figures["monitor/judge/oracle"] for one in found]


def fallen_at(steps: Sequence[int], falls: Sequence[float], amount: float) -> float | None:
    """The update at which the judge has fallen by so much, on a straight line between measurements."""
    points = [(0, 0.0), *zip(steps, falls, strict=True)]
    for (left, before), (right, after) in pairwise(points):
        if before <= amount < after:
            return left + (right - left) * (amount - before) / (after - before)
    return None


def kept(found: Sequence[Findings], judged: Sequence[Findings] | None = None) -> dict[str, float]:
    """The adapter that is recommended when the first alarm stops the run, or the last one: its step, its gain by the judge."""
    at = first_alarm(found)
    before = [one for one in judged or found if at is None or one.step < at]
    return {"step": before[-1].step, "gain": before[-1].figures["gain/oracle"]} if before else {"step": 0, "gain": 0.0}


def run_row(arm: str, seed: int, course: Sequence[Measurement]) -> dict[str, Any]:
    """One run: its course and its alarms."""
    full, bare = said(course, MonitorConfig()), said(unjudged(course), MonitorConfig())
    steps, falls = [one.step for one in full], falls_of(full)
    keys = {"judge": "gain/oracle", "reward": "gain/reward"} | {sign: f"monitor/{sign}" for sign in SIGNS}
    ends = ("", "/low", "/high")
    return {
        "arm": arm,
        "seed": seed,
        "hacked": ARMS[arm].hacked,
        "steps": steps,
        "fall": falls,
        "fallen_at": fallen_at(steps, falls, FALL),
        "alarm_at": {"all": first_alarm(full), "without judges": first_alarm(bare)},
        "kept": {"all": kept(full), "without judges": kept(bare, full)},
        "alarms": {
            "all": [[alarm.name for alarm in one.alarms] for one in full],
            "without judges": [[alarm.name for alarm in one.alarms] for one in bare],
        },
        "course": {name: {end.strip("/") or "value": [one.figures[key + end] for one in full] for end in ends}
                   for name, key in keys.items()},
    }  # fmt: skip


def sign_rows(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each sign alone: what it is where the judge is well, what where it is ill, and how well it tells these apart."""
    config, found = MonitorConfig(), {}
    for sign, limit in zip(SIGNS, _LIMITS, strict=True):
        well, ill = [], []
        for row in rows:
            for fall, value in zip(row["fall"], row["course"][sign]["value"], strict=True):
                if fall < WELL:
                    well.append(value)
                elif fall > ILL:
                    ill.append(value)
        pairs = [(value, other) for value in ill for other in well]
        found[sign] = {
            "limit": getattr(config, limit),
            "well": sorted(well),
            "ill": sorted(ill),
            "told_apart": sum((value > other) + 0.5 * (value == other) for value, other in pairs) / max(1, len(pairs)),
        }
    return found


def scale_rows(courses: Sequence[tuple[dict[str, Any], Sequence[Measurement]]]) -> list[dict[str, Any]]:
    """The rule without judges, its limits times a number: how many it catches in time, how often it cries wolf."""
    found = []
    for scale in SCALES:
        in_time, hacked, false, healthy, leads, falls = 0, 0, 0, 0, [], []
        for row, course in courses:
            looks = said(unjudged(course), scaled(scale))
            if row["fallen_at"] is not None:
                hacked += 1
                at = first_alarm(looks)
                if at is not None:
                    leads.append(row["fallen_at"] - at)
                    falls.append(row["fall"][row["steps"].index(at)])
                    in_time += at <= row["fallen_at"]
            else:
                healthy += len(looks)
                false += sum(bool(one.alarms) for one in looks)
        found.append({"scale": scale, "fallen": hacked, "in_time": in_time, "leads": leads, "falls": falls,
                      "healthy": healthy, "false": false})  # fmt: skip
    return found


def summarise(root: Path, budget: Budget) -> dict[str, Any]:
    """Everything the page shows.

    Args:
        root: folder of the study.
        budget: of it.
    """
    courses = []
    for arm in ARMS:
        for seed in budget.seeds:
            run = root / "runs" / f"{arm}-{seed}"
            if (run / "adapter").is_dir():
                course = measurements_of(run)
                courses.append((run_row(arm, seed, course), course))
    rows = [row for row, _ in courses]
    return {
        "fall": FALL,
        "chosen_on": CHOSEN_ON,
        "monitor": MonitorConfig().model_dump(mode="json"),
        "samples": len(courses[0][1][0].grid),
        "judge_std": float(courses[0][1][0].judges["oracle"].std(correction=0)),
        "runs": rows,
        "signs": sign_rows(rows),
        "scales": scale_rows([(row, course) for row, course in courses if row["seed"] not in CHOSEN_ON] or courses),
    }
