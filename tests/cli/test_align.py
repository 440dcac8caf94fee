"""`dina-lrm align`: where the adapter is goes to stdout, everything else to stderr or JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

SMALL = ("--set", "num_updates=1", "--set", "prompts_per_update=1", "--set", "evaluation.num_prompts=2")


def test_it_ends_with_the_adapter_and_says_where_the_page_is_and_goes_on_when_asked(dina, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ran = dina("align", "recipes.align_emoji_refl", *SMALL, "--out", out)
    assert ran.status == 0, ran.err
    assert ran.out.splitlines() == [str(out / "adapter")]
    assert f"the page: {out / 'index.html'}" in ran.err
    assert re.search(r"gain of oracle after 1 updates: [+-][\d.e-]+, 95 % [+-][\d.e-]+ to [+-][\d.e-]+", ran.err), (
        ran.err
    )
    assert (out / "adapter" / "pytorch_lora_weights.safetensors").is_file() and (out / "index.html").is_file()
    # Not mixed with an earlier run, nor taken up under another seed.
    again = dina("align", "recipes.align_emoji_refl", *SMALL, "--out", out)
    assert again.status == 2 and "--resume auto" in again.err
    other = dina("align", "recipes.align_emoji_refl", *SMALL, "--set", "seed=7", "--out", out, "--resume", "auto")
    assert other.status == 2 and "seed" in other.err
    on = dina("align", "recipes.align_emoji_refl", *SMALL, "--out", out, "--resume", "auto", "--json")
    assert on.status == 0, on.err
    told = json.loads(on.out.splitlines()[-1])
    assert (
        told["adapter"] == str(out / "adapter") and told["page"] == str(out / "index.html") and told["stopped"] is None
    )
