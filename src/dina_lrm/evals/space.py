"""Are the latents of a preference folder those that a model reads?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dina_lrm.backbones import Backbone
from dina_lrm.data import PreferenceData
from dina_lrm.errors import DataError

__all__ = ["check_latent_space"]

_SCALES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def check_latent_space(data: PreferenceData, backbone: Backbone) -> None:
    """Refuse latents that another VAE made, or that were scaled otherwise: their scores would mean nothing.

    Raises:
        DataError: naming both.
    """
    theirs, ours = data.dataset_info().get("backbone", {}), backbone.signature()
    shape = theirs.get("latent_shape") or [None]
    found: dict[str, tuple[Any, Any]] = {"latent channels": (shape[0], backbone.latent_channels)}
    for name in _SCALES:
        found[f"VAE {name}"] = (theirs.get(f"vae_{name}", theirs.get(name)), ours.get(f"vae_{name}"))
    for what, (here, there) in found.items():
        if here is not None and there is not None and not _same(here, there):
            made_by = f"latents of {theirs['class']}" if "class" in theirs else "latents"
            raise DataError(
                f"{data.folder} holds {made_by} with {what} {here}, but the model stands on {ours.get('class')} "
                f"{backbone.base!r} with {there}; encode the pictures with the model's base (dina-lrm encode --base)"
            )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Sequence) and isinstance(b, Sequence):
        return len(a) == len(b) and all(map(_same, a, b))
    return math.isclose(a, b, rel_tol=1e-4)
