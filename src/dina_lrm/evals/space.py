"""Are the latents of a preference folder those that a model reads?"""

from __future__ import annotations

from dina_lrm.backbones import Backbone, check_latents
from dina_lrm.data import PreferenceData

__all__ = ["check_latent_space"]


def check_latent_space(data: PreferenceData, backbone: Backbone) -> None:
    """Refuse a folder whose latents mean nothing to a model.

    Raises:
        DataError: naming both.
    """
    check_latents(str(data.folder), data.dataset_info().get("backbone", {}), backbone)
