"""What the experiment's page says follows from the curves by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from dina_lrm.alignment.measurement import Measurement
from dina_lrm.errors import DataError
from dina_lrm.metrics import Estimate
from studies.alignment.page import write_page
from studies.alignment.settings import ALGORITHMS, QUICK, config_of
from studies.alignment.summary import Curve, at, crossed_mean, curve_of, reach, summarise


def curve(*gains: float) -> Curve:
    judge = [Estimate(gain, gain, gain, 1, 1) for gain in gains]
    return Curve(
        [10 * place for place in range(len(gains))],
        judge,
        judge,
        [list(gains)],
        [1.0] * len(gains),
        [0.0] * len(gains),
        torch.zeros(1, 1),
    )


def test_when_a_curve_reaches_a_gain() -> None:
    assert reach(curve(0.0, 0.1, 0.3), 0.2) == pytest.approx(15)
    assert reach(curve(0.0, 0.1, 0.3), 0.1) == pytest.approx(10)
    assert reach(curve(0.0, 0.3, 0.1), 0.2) == pytest.approx(20 / 3)  # the first time
    assert reach(curve(0.0, 0.1, 0.3), 0.4) is None
    assert reach(curve(0.0, 0.1, 0.3), -0.1) == 0  # it was there before the first update
    assert reach(curve(0.0, -0.2, -0.4), -0.3) == 0


def test_where_a_curve_is_after_so_many_updates() -> None:
    whole = curve(0.0, 0.1, 0.3)
    assert [at(whole, updates) for updates in (0, 5, 10, 15, 20, 99)] == pytest.approx([0, 0.05, 0.1, 0.2, 0.3, 0.3])


def write_run(out: Path, lift: float) -> None:
    for step in (0, 2):
        oracle = torch.arange(8.0) + (lift * step if step else 0.0)
        Measurement(
            step=step,
            group_size=2,
            rewards={"reward": 2 * oracle},
            judges={"oracle": oracle},
            grid=torch.zeros(8),
            norm=torch.ones(8),
            diversity=torch.full((4,), 1.0 - 0.1 * step),
            distance=torch.zeros(8),
        ).save(out / "measurements" / f"step-{step:06d}")


def test_numbers_and_page_of_a_study(tmp_path) -> None:
    lifts = {"latent": 0.2, "pixels": 0.1}
    with pytest.raises(DataError, match="scales"):
        config_of(tmp_path, "refl", "pixels", 0, QUICK)
    (tmp_path / "scales.json").write_text('{"latent": 1.0, "rival-large": 0.5}')
    assert config_of(tmp_path, "refl", "pixels", 0, QUICK).rewards[0].weight == 2
    for arm in ALGORITHMS:
        for reward, lift in lifts.items():
            write_run(config_of(tmp_path, arm, reward, 0, QUICK).out, lift)
    one = curve_of(tmp_path, "refl", "latent", QUICK)
    assert one.updates == [0, 2] and one.judge[1].value == pytest.approx(0.4) and one.diversity[1] == pytest.approx(0.8)
    cost = {
        "flops": {"sampling": 2, "reward": 2, "update": 4, "total": 8},
        "bytes": {"activations": 3, "weights": 3, "total": 6},
    }
    latent = {**cost, "seconds": 1.0, "samples": 4}
    double = {
        "flops": {name: 2 * value for name, value in cost["flops"].items()},
        "bytes": {name: 2 * value for name, value in cost["bytes"].items()},
        "seconds": 4.0,
        "samples": 4,
    }
    results = summarise(tmp_path, QUICK, {arm: {"latent": latent, "pixels": double} for arm in ALGORITHMS})
    against = results["rows"]["nft"]["pixels"]["against"]
    # The pixel-driven run ends at 0.2, where the latent one is after one of its two updates.
    assert against["last"] == pytest.approx({"updates": 1, "seconds": 1 / 8, "flops": 1 / 4})
    assert against["best"] == pytest.approx({"update": 2, "updates": 1, "seconds": 1 / 8, "flops": 1 / 4})
    assert against["share_of_bytes"] == pytest.approx(1 / 2)
    assert against["lead"] == [0.2, 0.2, 0.2]  # every prompt gained 0.4 in the one, 0.2 in the other
    # As many operations as the latent run has spent in all are one update of the other: half of its gain.
    assert against["at_equal_flops"] == {"latent": 0.4, "pixels": 0.1}
    results["second_round"] = {"latent update-30": [-0.14, -0.23, -0.06]}
    results["rewards"] = {
        "accuracy": [
            {"reward": "latent", "accuracy": {"test": [69.0, 66.0, 72.0]}},
            {
                "reward": "rival, large",
                "accuracy": {"test": [64.0, 61.0, 67.0]},
                "lead_of_latent": {"test": [5.0, 2.0, 8.0]},
            },
        ],
        "cost": [
            {"what": what, "parameters": 9e6, "flops": 1e9, "flops_with_gradient": 2e9}
            for what in ("latent", "rival, large", "VAE decoder")
        ],
    }
    page = write_page(results, tmp_path, QUICK, tmp_path / "page").read_text()
    assert (
        "<td>1.00</td><td>2.00</td>" in page and "<td>2.00</td><td>4.00</td>" in page
    )  # a rival pays for the decoder too
    assert "Flow-GRPO" in page and "+0.400" in page and "39.1 and 80.4" in page and not math.isnan(one.judge[1].low)


def test_an_interval_over_seeds_and_prompts() -> None:
    generator = torch.Generator().manual_seed(0)
    prompts, seeds = torch.randn(400, generator=generator), torch.tensor([-0.5, 0.0, 0.5])
    same = crossed_mean(prompts.double().expand(3, -1))
    # Seeds that agree add nothing: the interval is that of the mean over prompts.
    assert same.high - same.low == pytest.approx(2 * 1.96 * float(prompts.std()) / 20, rel=0.1)
    apart = crossed_mean((prompts + seeds[:, None]).double())
    assert apart.value == pytest.approx(same.value, abs=1e-6) and apart.high - apart.low > 3 * (same.high - same.low)
