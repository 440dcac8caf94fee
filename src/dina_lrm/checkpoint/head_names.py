"""The release's names of the query head's tensors, and ours: one table, read both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Stems without `.weight` and `.bias`; `#` is the number of a tap.
_TAP = {
    "layer_embed": "layer_embed",
    "proj_in": "project_in",
    "cond_mlp.0": "film.0",
    "cond_mlp.2": "film.2",
    "proj": "narrow",
}
_ATTENTION = {
    "norm_q": "norm",
    "to_q": "to_q",
    "to_out.0": "to_out",
    "norm_v": "readers.image.norm",
    "to_k_vis": "readers.image.to_k",
    "to_v_vis": "readers.image.to_v",
    "gate_vis.0": "readers.image.gate.0",
    "gate_vis.2": "readers.image.gate.2",
    "norm_t": "readers.text.norm",
    "to_k_text": "readers.text.to_k",
    "to_v_text": "readers.text.to_v",
    "gate_text.0": "readers.text.gate.0",
    "gate_text.2": "readers.text.gate.2",
}
TO_OURS: Mapping[str, str] = {
    "query_tokens": "queries",
    **{f"layer_adapters_visual.#.{theirs}": f"image_taps.#.{ours}" for theirs, ours in _TAP.items()},
    **{f"layer_adapters_text.#.{theirs}": f"text_taps.#.{ours}" for theirs, ours in _TAP.items()},
    "agg_visual": "merge_image.0",
    "agg_text": "merge_text.0",
    **{f"attn1.{theirs}": f"attend_both.{ours}" for theirs, ours in _ATTENTION.items()},
    **{f"attn2.{theirs}": f"attend_image.{ours}" for theirs, ours in _ATTENTION.items()},
    "norm_ff": "norm_feed_forward",
    "ff.0": "feed_forward.0",
    "ff.2": "feed_forward.2",
    "head": "to_utility",
    "eta3": "output.centre",
    "eta4": "output.width",
}
TO_THEIRS: Mapping[str, str] = {ours: theirs for theirs, ours in TO_OURS.items()}


def our_name(theirs: str) -> str:
    """A head key of the release in our words; what the release does not have stays as it is."""
    return _translate(theirs, TO_OURS)


def their_name(ours: str) -> str:
    """The inverse of `our_name`."""
    return _translate(ours, TO_THEIRS)


def _translate(name: str, table: Mapping[str, str]) -> str:
    stem, suffix = re.fullmatch(r"(.*?)(\.weight|\.bias)?", name, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    tap = re.match(r"(?:layer_adapters_(?:visual|text)|(?:image|text)_taps)\.(\d+)\.", stem)
    if tap is None:
        return table.get(stem, stem) + suffix
    general = f"{stem[: tap.start(1)]}#{stem[tap.end(1) :]}"
    return table[general].replace("#", tap[1]) + suffix if general in table else name
