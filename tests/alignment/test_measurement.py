"""A measurement on disk."""

from __future__ import annotations

import pytest
import torch

from dina_lrm.alignment.measurement import Measurement
from dina_lrm.errors import DataError


def some() -> Measurement:
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Measurement(
        step=40,
        group_size=2,
        rewards={"lrm": numbers(6), "pixels": torch.tensor([1.0, float("nan"), 2, 3, 4, 5])},
        judges={},
        grid=numbers(6),
        norm=numbers(6),
        diversity=numbers(3),
        distance=numbers(6),
        spreads={"lrm": numbers(6)},
        profiles={"lrm": numbers(6, 2)},
        sigmas=(0.1, 0.45),
    )


def test_it_comes_back_as_it_was(tmp_path) -> None:
    before = some()
    before.save(tmp_path / "step-40")
    after = Measurement.load(tmp_path / "step-40")
    assert (after.step, after.group_size, after.sigmas, after.judges) == (40, 2, (0.1, 0.45), {})
    for name in ("rewards", "spreads", "profiles"):
        left, right = getattr(before, name), getattr(after, name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key].nan_to_num(-9), right[key].nan_to_num(-9)) for key in left)
    for name in ("grid", "norm", "diversity", "distance"):
        assert torch.equal(getattr(before, name), getattr(after, name))


def test_views_and_shared_storage_are_written(tmp_path) -> None:
    base = torch.arange(12.0)
    one = Measurement(0, 1, {"a": base[:6], "b": base[::2]}, {}, base[:6], base[6:], base[:0], base[:6])
    one.save(tmp_path / "m")
    assert torch.equal(Measurement.load(tmp_path / "m").rewards["b"], base[::2])


@pytest.mark.parametrize("lost", ["measurement.json", "measurement.safetensors"])
def test_a_folder_that_is_not_whole_is_refused(tmp_path, lost) -> None:
    some().save(tmp_path / "m")
    (tmp_path / "m" / lost).unlink()
    with pytest.raises(DataError, match="no measurement"):
        Measurement.load(tmp_path / "m")
    some().save(tmp_path / "m")
    (tmp_path / "m" / lost).write_bytes(b"{}")
    with pytest.raises(DataError, match="no measurement"):
        Measurement.load(tmp_path / "m")
