"""`dina-lrm encode`: images and prompts to a preference folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dina_lrm.cli.options import DeviceOption, Dtype, DtypeOption, JsonOption, check_device
from dina_lrm.cli.output import print_json


def encode(
    source: Annotated[
        list[Path], typer.Argument(metavar="SOURCE...", help="Tables of comparisons: .jsonl, .json, .csv or .parquet.")
    ],
    base: Annotated[
        str, typer.Option("--base", metavar="B", help="Base pipeline: folder, owner/name or owner/name@revision.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Preference folder to write.")],
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="ROOT", help="What paths are relative to (default: the table's folder)."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="F", help="rows, hpdv3, hpdv2, image_reward or pick_a_pic (default: told by the keys)."
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Of rows that name none.")] = "train",
    held_out: Annotated[
        float,
        typer.Option("--held-out", metavar="SHARE", help="Share of their prompts that goes to `validation` instead."),
    ] = 0.0,
    side: Annotated[
        int | None,
        typer.Option("--side", metavar="PIXELS", help="Of the squares that are encoded (default: the base's own)."),
    ] = None,
    preview: Annotated[
        int, typer.Option("--preview", metavar="PIXELS", min=0, help="Of small pictures kept; 0: none.")
    ] = 96,
    max_errors: Annotated[
        int, typer.Option("--max-errors", metavar="N", min=0, help="Bad rows and pictures that are left out.")
    ] = 0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Pictures in one forward pass.")
    ] = 8,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.FLOAT32,
    as_json: JsonOption = False,
) -> None:
    """Encode pictures once and write a preference folder; killed work goes on where it stopped."""
    check_device(device)
    import torch

    from dina_lrm.backbones import BackboneConfig, load_backbone
    from dina_lrm.checkpoint.families import kind_of_base
    from dina_lrm.data.sources import find_format, read_source
    from dina_lrm.encoding import EncodingSettings, encode_preferences

    settings = EncodingSettings(side, split, held_out, preview, max_errors, batch_size)
    forms = [form or find_format(path) for path in source]  # a wrong table is told before a base is loaded
    name, _, revision = base.partition("@") if not Path(base).exists() else (base, "", "")
    config = BackboneConfig(kind=kind_of_base(name, revision or None), adapter=None)
    # The VAE is all that is asked; the fewest blocks of the network come along.
    config = config.model_copy(update={"image_taps": config.image_taps[:1], "text_taps": config.text_taps[:1]})
    backbone = load_backbone(config, name, device=device, dtype=getattr(torch, dtype.value), revision=revision or None)
    rows = (row for path, known in zip(source, forms, strict=True) for row in read_source(path, images, known))
    about = {"source": [str(path) for path in source], "format": forms, "base": base}
    report = encode_preferences(backbone, rows, out, settings, about)
    if report.errors:
        print(f"left out: {report.told()}", file=sys.stderr)
    if as_json:
        print_json(report.as_json())
        return
    told = ", ".join(f"{count} in {name}" for name, count in report.pairs.items())
    print(
        f"{report.pictures} pictures, {report.candidates} candidates, pairs: {told}; {report.lost_pairs} pairs left out"
    )
    print(out)
