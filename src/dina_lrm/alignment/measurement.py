"""What is known of a generator after so many updates: every number that a monitor looks at, a sample at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dina_lrm.errors import DataError
from dina_lrm.runtime.files import atomic_folder

__all__ = ["Measurement"]

FACTS_FILE = "measurement.json"
TENSORS_FILE = "measurement.safetensors"
_TENSORS = ("grid", "norm", "diversity", "distance")
_GROUPS = ("rewards", "judges", "spreads", "profiles")


@dataclass(frozen=True)
class Measurement:
    """Held-out samples of a policy, measured; the same prompts and noise each time, so that differences are paired.

    Attributes:
        step: updates behind it; 0 is the generator as it was.
        group_size: samples of one prompt stand behind each other, so many of each.
        rewards: of what is learned from, by name `[n]`; NaN where there is none.
        judges: of what nothing is learned from, by name `[n]`.
        spreads: of latent rewards, by name: standard deviation of a sample's utility over draws `[n]`.
        profiles: of latent rewards, by name: reward at each of `sigmas` `[n k]`.
        sigmas: the levels of profiles.
        grid: how much of a regular pattern a picture has `[n]` (`measures.grid_score`).
        norm: root mean square of the latents `[n]`.
        diversity: mean distance between samples of one prompt `[q]`; empty with one a prompt.
        distance: mean squared difference of velocities to those of the generator as it was `[n]`.
    """

    step: int
    group_size: int
    rewards: Mapping[str, Tensor]
    judges: Mapping[str, Tensor]
    grid: Tensor
    norm: Tensor
    diversity: Tensor
    distance: Tensor
    spreads: Mapping[str, Tensor] = field(default_factory=dict)
    profiles: Mapping[str, Tensor] = field(default_factory=dict)
    sigmas: tuple[float, ...] = ()

    def save(self, folder: str | Path) -> None:
        """Write it, whole or not at all.

        Args:
            folder: is replaced.
        """
        facts = {"step": self.step, "group_size": self.group_size, "sigmas": list(self.sigmas)}
        tensors: dict[str, Tensor] = {name: getattr(self, name) for name in _TENSORS}
        for group in _GROUPS:
            tensors |= {f"{group}/{name}": value for name, value in getattr(self, group).items()}
        with atomic_folder(folder) as place:
            (place / FACTS_FILE).write_text(json.dumps(facts) + "\n", encoding="utf-8")
            own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
            save_file(own, place / TENSORS_FILE)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote.

        Args:
            folder: of it.

        Raises:
            DataError: the folder is not whole.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
            tensors = load_file(folder / TENSORS_FILE)
            values: dict[str, Any] = {name: tensors.pop(name) for name in _TENSORS} | {group: {} for group in _GROUPS}
            for key, value in tensors.items():
                group, _, name = key.partition("/")
                values[group][name] = value
            return cls(int(facts["step"]), int(facts["group_size"]), sigmas=tuple(facts["sigmas"]), **values)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DataError(
                f"{folder} is no measurement ({error!r}); it must hold {FACTS_FILE} and {TENSORS_FILE} of one run"
            ) from error
