"""The wheel carries the emoji world: `worlds/emoji/` goes to `dina_lrm/_worlds/emoji/`.

An editable install reads the checkout instead, so nothing is copied for one; a static force-include would.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CARRIED = (
    "pipeline",
    "judge",
    "oracle",
    "preferences",
    "reward",
    "art",
    "licences",
    "measurements.json",
    "README.md",
    "PREFERENCES.md",
)


class CustomBuildHook(BuildHookInterface[Any]):
    """Adds the world's files to a standard wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Say what goes where, for all of `CARRIED` that has been built."""
        if version == "editable":
            return
        world = Path(self.root) / "worlds" / "emoji"
        present = [name for name in CARRIED if (world / name).exists()]
        build_data["force_include"].update({str(world / name): f"dina_lrm/_worlds/emoji/{name}" for name in present})
