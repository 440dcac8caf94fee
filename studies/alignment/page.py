"""The page of the experiment: judge over updates, operations and seconds; costs; pictures; the paper's numbers beside ours."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dina_lrm.report.figures import BLUE, GREEN, GREY, MUTED, RED, svg_figure
from dina_lrm.report.html import document, paragraph, section, table, tile
from dina_lrm.runtime.files import atomic_write
from studies.alignment.settings import ALGORITHMS, FULL, REWARDS, Arm, Budget, config_of
from studies.runs import SMALL

__all__ = ["write_page"]

COLOURS = {"latent": BLUE, "pixels": RED, "pixels-small": GREEN}
PAPER = {  # ReFL on SD3.5-M, one picture of 1024 x 1024: T multiply-accumulates, and peak memory in GB
    "latent": {"sampling": 209.0, "reward": 3.1, "update": 18.3, "memory": 39.1, "judge": (19.84, 21.17)},
    "pixels": {"sampling": 209.0, "reward": 11.1, "update": 34.4, "memory": 80.4, "judge": (19.77, 20.39)},
}
Row = dict[str, Any]


def write_page(results: Row, root: Path, budget: Budget, out: Path) -> Path:
    """Write `index.html` into a folder.

    Args:
        results: as `summary.summarise` gives them.
        root: folder of the study, for its pictures.
        budget: of the study.
        out: where the page goes.
    """
    body = "".join(
        [
            "<h1>A latent reward and a pixel reward teach the same generator</h1>\n",
            "" if budget == FULL else paragraph(SMALL),
            paragraph(_opening(results), "lead"),
            paragraph(_not_alike(results), "quiet"),
            _tiles(results),
            section("The judge over updates, operations and seconds", _curves(results)),
            section("At equal updates, at equal operations, and where the pixel-driven run ends", _table(results)),
            section("The rewards", _rewards_table(results["rewards"])),
            section("What an update costs", _costs(results), _beside_the_paper(results)),
            section("The reward that was climbed, and diversity", _proxies(results)),
            section("The same prompts and noise, before and after", _pictures(root, budget)),
            f"<footer>Every number on this page is in <code>results/alignment.json</code>; <code>python -m studies.alignment"
            f"</code> makes it anew. Intervals are 95 % bootstraps over seeds and over {results['prompts']} held-out prompts, each "
            f"drawn twice; thin lines are single seeds.</footer>",
        ]
    )
    page = out / "index.html"
    with atomic_write(page) as file:
        file.write(document("Alignment by a latent reward: the emoji world", body).encode())
    return page


def _opening(results: Row) -> str:
    reward = _rewards(results)[-1]
    leads = [(ALGORITHMS[arm].label, row[reward]["against"]["lead"]) for arm, row in results["rows"].items()]
    beyond = " and ".join(label for label, lead in leads if lead[1] > 0) or "none"
    return (
        f"ReFL, DRaFT-1, Flow-GRPO and DiffusionNFT, {len(results['seeds'])} seeds each, driven by DiNa-LRM on noisy latents or "
        "by the rival: a scorer of decoded pixels with three times its parameters, which stands for the vision-language model of this "
        "world. Both learned from the very same preference pairs. The judge is the oracle of the world, from which neither "
        "learned; policies learn from prompts of some concepts and are judged on prompts of others. "
        f"<b>At equal updates the lead of DiNa-LRM is beyond its interval with {beyond}</b>; what it saves in operations and bytes "
        "stands below."
    )


def _not_alike(results: Row) -> str:
    ends = ", ".join(
        f"{name.replace(' update-', ' after ')} updates {_plain(found)}"
        for name, found in results["second_round"].items()
    )
    accuracy = {row["reward"]: row["accuracy"]["test"][0] for row in results["rewards"]["accuracy"]}
    others = " and ".join(f"the {name}, {value:.1f} %" for name, value in accuracy.items() if name != "latent")
    return (
        f"Not alike: of held-out pairs DiNa-LRM orders {accuracy['latent']:.1f} % right, "
        f"{others}. The algorithms’ settings were found under DiNa-LRM. Before either was trained, first rewards of "
        "both kinds (the rival’s a small one) had been climbed without restraint, and what those policies drew was put to the vote; "
        f"against the generator’s own samples the oracle has them at: {ends}. So DiNa-LRM was shown more of what fools it. Rewards "
        "are weighed so that they are spread alike over samples of a prompt, which makes a pull of the same weight as strong; "
        "how far policies then went differs (last table). Flow-GRPO hardly moves: without a pull the judge stopped rising on "
        "validation, and this one holds it close."
    )


def _plain(found: Sequence[float]) -> str:
    return f"{found[0]:+.2f} ({found[1]:+.2f} to {found[2]:+.2f})"


def _tiles(results: Row) -> str:
    tiles, reward = [], _rewards(results)[-1]
    for arm, how in _arms(results):
        latent, against = results["rows"][arm]["latent"]["judge"][-1], results["rows"][arm][reward]["against"]
        lead = "over the rival {:+.3f}, {:+.3f} to {:+.3f}".format(*against["lead"])
        words = f"judge under DiNa-LRM, {latent[1]:+.3f} to {latent[2]:+.3f}; {lead}"
        tiles.append(tile(how.label, f"{latent[0]:+.3f}", words))
    return f'<div class="tiles">{"".join(tiles)}</div>\n'


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>\n"


def _curves(results: Row) -> str:
    parts = []
    scales: list[tuple[str, str, Callable[[Row], float]]] = [
        ("updates", "updates", lambda cost: 1.0),
        ("flops", "operations, T FLOPs", lambda cost: cost["flops"]["total"] / 1e12),
        ("seconds", "seconds of updates", lambda cost: cost["seconds"]),
    ]
    for arm, how in _arms(results):
        for name, label, scale in scales:
            svg = _lines(results, arm, name, label, scale, "judge")
            parts.append(_figure(f"{how.label}: judge over {label.split(',')[0]}", svg))
    keys = " ".join(
        f'<span class="key" style="background: var(--{_variable(reward)})"></span>{REWARDS[reward].label}'
        for reward in _rewards(results)
    )
    return paragraph(keys, "quiet") + f'<div class="plots">{"".join(parts)}</div>\n'


def _variable(reward: str) -> str:
    return {BLUE: "blue", RED: "red", GREEN: "green"}[COLOURS[reward]]


def _arms(results: Row) -> list[tuple[str, Arm]]:
    return [(arm, ALGORITHMS[arm]) for arm in results["rows"]]


def _rewards(results: Row) -> list[str]:
    return list(next(iter(results["rows"].values())))


def _lines(results: Row, arm: str, name: str, label: str, scale: Callable[[Row], float], what: str) -> str:
    def draw(axes: Any) -> None:
        axes.axhline(0, color=MUTED, linewidth=0.8)
        for reward, row in results["rows"][arm].items():
            each = scale(results["costs"][arm][reward])
            x = [each * step for step in row["updates"]]
            mean, low, high = zip(*row[what], strict=True)
            axes.fill_between(x, low, high, color=COLOURS[reward], alpha=0.18, linewidth=0)
            axes.plot(x, mean, color=COLOURS[reward], marker="o", markersize=3.5)
            if what == "judge":
                for seed in row["seeds"]:
                    axes.plot(x, seed, color=COLOURS[reward], linewidth=0.7, alpha=0.5)
        axes.set_xlabel(label)
        axes.set_xlim(left=0)

    return svg_figure(320, 230, f"{what}-{arm}-{name}", draw, f"{what} over {label} with {ALGORITHMS[arm].label}")


def _number(estimate: Sequence[float]) -> str:
    return f"{estimate[0]:+.3f} <span class='ends'>{estimate[1]:+.3f} to {estimate[2]:+.3f}</span>"


def _share(value: float | None) -> str:
    return "never reached" if value is None else "at once" if value <= 0 else f"{100 * value:.0f} %"


def _table(results: Row) -> str:
    heads = ("algorithm", "judge, DiNa-LRM", "judge, {}", "lead at equal updates", "{}, equal operations",
             "its end is reached in seconds", "operations", "its best, operations", "bytes")  # fmt: skip
    tables = []
    for reward in _rewards(results)[1:]:
        lines = []
        for arm, rewards in results["rows"].items():
            against = rewards[reward]["against"]
            last, best = against["last"], against["best"]
            of = f" <span class='ends'>of {best['update']} updates’</span>" if best["update"] else ""
            lines.append(
                (
                    f"<b>{ALGORITHMS[arm].label}</b>",
                    *(_number(rewards[name]["judge"][-1]) for name in ("latent", reward)),
                    _number(against["lead"]),
                    f"{against['at_equal_flops'][reward]:+.3f}",
                    *(_share(share) for share in (last["seconds"], last["flops"])),
                    _share(best["flops"]) + of,
                    _share(against["share_of_bytes"]),
                )
            )
        tables.append(table([head.format(REWARDS[reward].label) for head in heads], lines))
    note = paragraph(
        "Leads: seed by seed and prompt by prompt. Equal operations: the pixel-driven run after as many as the latent one has spent "
        "in all. Its end, its best: the share of the pixel-driven run’s seconds and operations after which the judge’s mean under "
        "DiNa-LRM first equals that run’s last mean, or its best one; where that is not above 0, the generator was there at "
        "once. Bytes: of an update at its peak, weights included, as a share. Each reward was trained once, so leads are of these "
        "rewards.",
        "quiet",
    )
    return "".join(tables) + note


def _rewards_table(rewards: Row) -> str:
    price = {row["what"]: row for row in rewards["cost"]}
    splits = list(rewards["accuracy"][0]["accuracy"])
    head = "".join(f"<th>accuracy, {split.replace('_', ' ')}, %</th>" for split in splits)
    lines = []
    for row in rewards["accuracy"]:
        parts = [price[row["reward"]], *([] if row["reward"] == "latent" else [price["VAE decoder"]])]
        cells = [f"<td>{price[row['reward']]['parameters'] / 1e6:.1f}</td>"]
        cells += [
            f"<td>{sum(part[what] for part in parts) / 1e9:.2f}</td>" for what in ("flops", "flops_with_gradient")
        ]
        for value, low, high in row["accuracy"].values():
            cells.append(f"<td>{value:.1f} <span class='ends'>{low:.1f} to {high:.1f}</span></td>")
        lead = row.get("lead_of_latent", {}).get("test")
        cells.append(
            "<td></td>"
            if lead is None
            else f"<td>{lead[0]:+.1f} <span class='ends'>{lead[1]:+.1f} to {lead[2]:+.1f}</span></td>"
        )
        name = "DiNa-LRM" if row["reward"] == "latent" else f"pixel {row['reward']}"
        lines.append(f"<tr><th>{name}</th>{''.join(cells)}</tr>")
    note = paragraph(
        "Operations are of one picture at the levels that runs ask at, the decoder’s with the rivals’; text is encoded before, for all. "
        "All three learned from the same two rounds of preferences; a rival’s weights are those of its best validation "
        "accuracy on the way. Accuracy is of the decided pairs that nobody trained on.",
        "quiet",
    )
    return (
        '<div class="scroll"><table><thead><tr><th>reward</th><th>parameters, M</th><th>G FLOPs</th><th>with the gradient</th>'
        f"{head}<th>DiNa-LRM leads on test by</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>\n{note}"
    )


def _costs(results: Row) -> str:
    head = (
        "<thead><tr><th>algorithm</th><th>reward</th><th>sampling, G FLOPs a sample</th><th>reward</th><th>update</th>"
        "<th>whole</th><th>activations, MB</th><th>weights, MB</th><th>seconds an update</th></tr></thead>"
    )
    lines = []
    for arm, rewards in results["costs"].items():
        for reward, cost in rewards.items():
            each = [cost["flops"][phase] / cost["samples"] / 1e9 for phase in ("sampling", "reward", "update", "total")]
            numbers = [*(f"{value:.2f}" for value in each)]
            numbers += [f"{cost['bytes'][what] / 2**20:.0f}" for what in ("activations", "weights")]
            numbers.append(f"{cost['seconds']:.2f}")
            cells = "".join(f"<td>{number}</td>" for number in numbers)
            lines.append(f"<tr><th>{ALGORITHMS[arm].label}</th><td>{REWARDS[reward].label}</td>{cells}</tr>")
    return f'<div class="scroll"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>\n'


def _beside_the_paper(results: Row) -> str:
    ours = results["costs"]["refl"]
    reward = next(name for name in ours if name != "latent")

    def draw(axes: Any) -> None:
        names = ("sampling", "reward", "update", "memory")
        for place, name in enumerate(names):
            paper = PAPER["latent"][name] / PAPER["pixels"][name]  # type: ignore[operator]
            if name == "memory":
                here = ours["latent"]["bytes"]["total"] / ours[reward]["bytes"]["total"]
            else:
                here = ours["latent"]["flops"][name] / ours[reward]["flops"][name]
            axes.bar(place - 0.19, 100 * paper, 0.36, color=GREY)
            axes.bar(place + 0.19, 100 * here, 0.36, color=BLUE)
            for x, value in ((place - 0.19, paper), (place + 0.19, here)):
                axes.text(x, 100 * value + 2, f"{100 * value:.0f}", ha="center", color=MUTED, fontsize=11)
        axes.set_xticks(range(len(names)), ["sampling", "reward", "update", "peak memory"])
        axes.set_ylabel("latent, % of pixels")
        axes.set_ylim(0, 118)

    told = (
        "ReFL, latent reward against pixel reward, in %: the paper’s figure (grey: SD3.5-M, 1024 x 1024, against HPSv3; peak memory "
        "39.1 and 80.4 GB, held-out PickScore 19.84 to 21.17 and 19.77 to 20.39 in 150 updates) and ours (blue: the emoji world, against "
        f"the {REWARDS[reward].label}; memory is activations and weights of one update)."
    )
    return f'<div class="plots">{_figure(told, svg_figure(520, 260, "paper", draw, "costs beside the paper"))}</div>\n'


def _proxies(results: Row) -> str:
    parts = [
        _figure(
            f"{how.label}: gain of the reward that was climbed",
            _lines(results, arm, "proxy", "updates", lambda cost: 1.0, "proxy"),
        )
        for arm, how in _arms(results)
    ]
    rows = "".join(
        f"<tr><th>{ALGORITHMS[arm].label}</th>"
        + "".join(f"<td>{100 * row['diversity'][-1]:.0f} %</td>" for row in rewards.values())
        + "".join(f"<td>{1000 * row['distance'][-1]:.2f}</td>" for row in rewards.values())
        + "</tr>"
        for arm, rewards in results["rows"].items()
    )
    head = "".join(
        f"<th>{what}, {REWARDS[reward].label}</th>"
        for what in ("diversity", "distance")
        for reward in _rewards(results)
    )
    ends = f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n'
    note = paragraph(
        "Rewards have units of their own, so only the shape of these curves can be compared. Below, at the end of the runs: "
        "diversity as a share of the start’s, and the mean squared difference of velocities to those of the generator as it was, "
        "in thousandths.",
        "quiet",
    )
    return f'<div class="plots">{"".join(parts)}</div>\n{note}{ends}'


def _pictures(root: Path, budget: Budget) -> str:
    seed = budget.seeds[0]
    parts: list[str] = []
    for arm, how in ALGORITHMS.items():
        for reward in budget.rewards:
            sheets = sorted((config_of(root, arm, reward, seed, budget).out / "samples").glob("step-*.png"))
            if not sheets:
                continue
            if not parts:
                parts.append(_figure("before", _inline(sheets[0])))
            parts.append(_figure(f"{how.label}, {REWARDS[reward].label}", _inline(sheets[-1])))
    return f'<div class="plots">{"".join(parts)}</div>\n'


def _inline(path: Path) -> str:
    file = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(file, "WEBP", quality=70)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img style="width: 100%" src="data:image/webp;base64,{data}" alt="samples">'
