"""The main job of the project, told in eight steps."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dina_lrm import __version__
from dina_lrm.data import PreferenceData
from dina_lrm.data.schema import INFO_FILE
from dina_lrm.demo.measure import (
    Ranked,
    choose_samples,
    measure_profile,
    measure_table,
    preview_png,
    rank_candidates,
    table_lines,
)
from dina_lrm.demo.models import Models, train_and_tell
from dina_lrm.demo.settings import FAST, FULL, HEADLINE, RULES, RUNS, Budget, train_config
from dina_lrm.demo.steps import Steps
from dina_lrm.demo.world import encode_world, num_blocks, split_facts, world_facts
from dina_lrm.evals import SigmaProfile
from dina_lrm.report import (
    DemoResults,
    EncodingFacts,
    RankedPrompt,
    SplitFacts,
    TableRow,
    TrainingFacts,
    WorldFacts,
    write_report,
)
from dina_lrm.runtime.files import sha256_file
from dina_lrm.worlds.locate import emoji_root

__all__ = ["run_demo"]

_STEPS = 8
Log = Callable[[str], None]


def run_demo(
    out: Path | str,
    fast: bool = False,
    seed: int = 0,
    log: Log | None = None,
    world: Path | str | None = None,
    budget: Budget | None = None,
    quiet: bool = False,
) -> Path:
    """Train a reward model and its control on the emoji world, measure both, rank pictures, write the report.

    A run that was cut short goes on where it stopped when it is called again with the same settings.

    Args:
        out: folder of the run; made if need be.
        fast: a small budget, of about a minute.
        seed: of training and evaluation.
        log: takes the lines of the story; by default they go to stderr.
        world: folder of the world; found by itself if None.
        budget: instead of the full or the fast one.
        quiet: no progress of the training on stderr.

    Returns:
        Absolute path of `report.html`; `results.json` and the folder `model` lie beside it.

    Raises:
        InputError: no world is there, or it is not whole.
    """
    started = time.perf_counter()
    log = log or _to_stderr
    out, world = Path(out), emoji_root(world)
    log(f"DiNa-LRM demo: a reward model that reads noisy latents, on the emoji world in {world}")
    steps = Steps(out, _STEPS, log)
    demo = _Demo(out, world, budget or (FAST if fast else FULL), seed, steps, log, quiet)
    results = demo.results(fast)
    report = steps.always("report", "Write the report", lambda: demo.write(results))
    minutes, seconds = divmod(round(time.perf_counter() - started), 60)
    log(
        f"Done in {minutes} min {seconds:02d} s. The model is in {out / 'model'}, every number in {out / 'results.json'}."
    )
    log("The report, to be opened in a browser:")
    return report.resolve()


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class _Demo:
    """One run: what its steps share."""

    def __init__(self, out: Path, world: Path, budget: Budget, seed: int, steps: Steps, log: Log, quiet: bool) -> None:
        self.out, self.world, self.budget, self.seed = out, world, budget, seed
        self.steps, self.log = steps, log
        self.data = PreferenceData.open(world / "preferences")
        blocks = num_blocks(world)
        self.configs = {
            name: train_config(world, out / "training" / name, run, budget, blocks, seed) for name, run in RUNS.items()
        }
        self.models = Models(self.configs, quiet)

    def results(self, fast: bool) -> DemoResults:
        """All steps but the report."""
        world, splits = self._world()
        encoding = self._encode()
        training = tuple(self._train(name) for name in RUNS)
        table = self._table()
        profile = self.steps.run("profile", "See what each sigma sees", SigmaProfile, {}, self._profile)
        ranked = self.steps.run("rank", "Rank candidates of test prompts", Ranked, {}, self._rank)
        return DemoResults(
            version=__version__,
            fast=fast,
            seed=self.seed,
            finished=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            machine=machine(),
            world=world,
            splits=splits,
            encoding=encoding,
            training=training,
            headline=HEADLINE,
            table=table,
            profile=profile,
            samples=choose_samples(self.data, self.budget),
            rankings=ranked.shown,
            best_of=ranked.best_of,
            times=tuple(self.steps.times),
            commands=self._commands(ranked),
        )

    def _world(self) -> tuple[WorldFacts, dict[str, SplitFacts]]:
        settings = {
            "version": __version__,
            "seed": self.seed,
            "budget": asdict(self.budget),
            "data": sha256_file(self.world / "preferences" / INFO_FILE),
            "generator": [sha256_file(p) for p in sorted((self.world / "pipeline").rglob("*.safetensors"))],
        }
        kept = self.configs["main"].backbone.depth
        facts = self.steps.run(
            "world", "Look at the world", WorldFacts, settings, lambda: world_facts(self.world, kept)
        )
        splits = split_facts(self.data, self.budget.max_prompts)
        self.log(
            f"      generator {facts.transformer_parameters / 1e6:.1f} M parameters, {facts.transformer_blocks} blocks, "
            f"the first {kept} kept; pairs: "
            + ", ".join(f"{split.replace('_', ' ')} {found.pairs:,}" for split, found in splits.items())
        )
        return facts, splits

    def _encode(self) -> EncodingFacts:
        facts = self.steps.run(
            "encode",
            "Encode prompts once, and pictures",
            EncodingFacts,
            {"backbone": self.configs["main"].backbone.model_dump(mode="json")},
            lambda: encode_world(self.world, self.data, self.configs["main"].backbone, self.budget),
        )
        self.log(f"      {facts.prompts:,} prompts, {facts.prompts_per_second:,.0f} a second")
        return facts

    def _train(self, name: str) -> TrainingFacts:
        config, run = self.configs[name], RUNS[name]

        def work() -> TrainingFacts:
            facts = train_and_tell(self.models, name, run)
            if name == "main":
                self.models[name].save_pretrained(self.out / "model")
            return facts

        settings = {"config": config.model_dump(mode="json", exclude={"out", "data", "base"})}
        label = f"Train: LoRA and head on {run.long_label}, {config.num_steps} steps"
        facts = self.steps.run(f"train-{name}", label, TrainingFacts, settings, work)
        at = [p for p in facts.validation if p.step == facts.steps]
        measured = ", ".join(f"{100 * p.accuracy:.1f} at sigma {p.sigma:g}" for p in at)
        self.log(
            f"      {facts.pairs:,} comparisons, {facts.pairs_per_second:,.0f} a second"
            + (f"; validation accuracy {measured}" if at else "")
        )
        return facts

    def _table(self) -> tuple[TableRow, ...]:
        table = self.steps.run(
            "measure",
            "Measure on held-out pairs",
            tuple[TableRow, ...],
            {"rules": {name: asdict(rule) for name, (_, rule) in RULES.items()}, "headline": HEADLINE},
            lambda: measure_table(self.models, self.data, self.budget, self.seed),
        )
        for line in table_lines(table):
            self.log(line)
        return table

    def _profile(self) -> SigmaProfile:
        return measure_profile(self.models["main"], self.data, self.budget, self.seed)

    def _rank(self) -> Ranked:
        return rank_candidates(self.models["main"], self.data, self.budget, self.seed)

    def write(self, results: DemoResults) -> Path:
        """The report, and as a folder for `serve --arena` the pictures of the first ranking."""
        shown = {s.picture for s in results.samples} | {p.picture for r in results.rankings for p in r.pictures}
        pictures = {name: preview_png(self.data, name) for name in sorted(shown)}
        for ranking in results.rankings[:1]:
            self._write_candidates(ranking, pictures)
        return write_report(results, pictures, self.out)

    def _write_candidates(self, ranking: RankedPrompt, pictures: Mapping[str, bytes]) -> None:
        paths = {name: self._picture_path(name) for name in sorted(row.picture for row in ranking.pictures)}
        for name, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pictures[name])
        line = {"prompt": ranking.prompt, "images": [path.name for path in paths.values()]}
        (self.out / "pictures" / "prompts.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")

    def _picture_path(self, name: str) -> Path:
        return self.out / "pictures" / f"{name}.png"

    def _commands(self, ranked: Ranked) -> tuple[str, ...]:
        """What to type next, with paths from here."""
        model = _typed(self.out / "model")
        if not ranked.shown:
            return (f"dina-lrm info {model}",)
        prompt = shlex.quote(ranked.shown[0].prompt)
        images = " ".join(_typed(self._picture_path(name)) for name in _ends(ranked.shown))
        return (
            f"dina-lrm score --model {model} --prompt {prompt} --ensemble 0.2,0.5,0.7 {images}",
            f"dina-lrm compare --model {model} --prompt {prompt} {images}",
            f"dina-lrm info {model}",
        )


def _typed(path: Path) -> str:
    """A path as one would type it from here."""
    near = os.path.relpath(path)
    return shlex.quote(str(path.resolve()) if near.startswith(os.pardir) else near)


def _ends(rankings: tuple[Any, ...]) -> tuple[str, ...]:
    """Best and worst picture of the first ranking."""
    return (rankings[0].pictures[0].picture, rankings[0].pictures[-1].picture) if rankings else ()


def machine() -> dict[str, str]:
    """Hardware and versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": str(cores),
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
