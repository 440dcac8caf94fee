"""Are these latents those that a backbone reads?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dina_lrm.backbones.base import Backbone
from dina_lrm.errors import DataError

__all__ = ["check_latents"]

_SCALES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


ENCODE_AGAIN = "encode the pictures with the model's base (dina-lrm encode --base)"


def check_latents(where: str, made_by: Mapping[str, Any], backbone: Backbone, fix: str = ENCODE_AGAIN) -> None:
    """Refuse latents that another VAE made, or that were scaled otherwise: their scores would mean nothing.

    Args:
        where: they lie, for the error.
        made_by: signature of the backbone that they were made for, as far as it is known.
        backbone: that is to read them.
        fix: what to do about it.

    Raises:
        DataError: naming both.
    """
    ours = backbone.signature()
    shape = made_by.get("latent_shape") or [made_by.get("latent_channels")]
    found: dict[str, tuple[Any, Any]] = {"latent channels": (shape[0], backbone.latent_channels)}
    for name in _SCALES:
        found[f"VAE {name}"] = (made_by.get(f"vae_{name}", made_by.get(name)), ours.get(f"vae_{name}"))
    for what, (here, there) in found.items():
        if here is not None and there is not None and not _same(here, there):
            latents = f"latents of {made_by['class']}" if "class" in made_by else "latents"
            raise DataError(
                f"{where} holds {latents} with {what} {here}, but the model stands on {ours.get('class')} "
                f"{backbone.base!r} with {there}; {fix}"
            )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Sequence) and isinstance(b, Sequence):
        return len(a) == len(b) and all(map(_same, a, b))
    return math.isclose(a, b, rel_tol=1e-4)
