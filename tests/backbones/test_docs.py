"""The ten lines of docs/backbones.md run, each on a tiny pipeline of its kind."""

import re
from pathlib import Path

import pytest
import torch

from dina_lrm.backbones.registry import backbone_class
from tests.pipelines import build_pipeline

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
SNIPPETS = [s for s in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S) if "kind=" in s]
TINY = {"sd3": "sd35"}


def test_every_kind_has_its_lines():
    kinds = {re.search(r'kind="(\w+)"', snippet)[1] for snippet in SNIPPETS}
    assert kinds == {"sd3", "flux", "zimage", "qwen_image", "sdxl", "sd15", "wan"}
    assert all(snippet.count("\n") <= 14 for snippet in SNIPPETS)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: re.search(r'kind="(\w+)"', s)[1])
def test_the_lines_run(snippet, tmp_path, monkeypatch, capsys):
    kind = re.search(r'kind="(\w+)"', snippet)[1]
    backbone = backbone_class(kind)
    if 0 not in backbone.default_text_taps:
        monkeypatch.setattr(backbone, "default_text_taps", (1, 2))
    if kind not in ("sdxl", "sd15"):
        monkeypatch.setattr(backbone, "default_image_taps", (1, 2))
    taps = "image_taps=(1, 2), text_taps=(1, 2)" if kind == "sd3" else ""
    base = build_pipeline(TINY.get(kind, kind), tmp_path / "base")
    lines = re.sub(r'base = "[^"]+"', f'base = r"{base}"', snippet)
    lines = re.sub(r'kind="(\w+)"\)', rf'kind="\1", {taps})', lines)
    lines = lines.replace("cuda", "cpu").replace("width=1536", "width=16")
    lines = re.sub(r"rand\((1, 3,(?: 17,)?) \d+, \d+", r"rand(\1 64, 128", lines)
    torch.manual_seed(0)
    exec(compile(lines, kind, "exec"), {})
    assert re.match(r"tensor\(\[-?\d+\.\d+\]", capsys.readouterr().out)
