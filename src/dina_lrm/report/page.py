"""The page: every number from `DemoResults`, every picture from the mapping beside it, nothing from the network."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from dina_lrm.errors import ValueRangeError
from dina_lrm.evals import AccuracyEstimate, EvalCard
from dina_lrm.report.figures import profile_figure, reliability_figure, training_figure
from dina_lrm.report.html import document, duration, paragraph, section, tile
from dina_lrm.report.results import BestOf, DemoResults, RankedPicture, RankedPrompt, TableRow
from dina_lrm.runtime.files import atomic_write

__all__ = ["write_report"]

_LOW, _HIGH = 40.0, 100.0  # the scale of the whiskers, %


def write_report(results: DemoResults, pictures: Mapping[str, bytes], out: Path) -> Path:
    """Write `report.html` and `results.json` into a folder.

    Args:
        results: every number.
        pictures: PNG, WebP or JPEG bytes by the names that `results` uses.
        out: the folder; made if need be.

    Returns:
        The path of `report.html`.

    Raises:
        ValueRangeError: the results name a picture that is not given.
    """
    html = render(results, pictures)
    out.mkdir(parents=True, exist_ok=True)
    results.save(out / "results.json")
    page = out / "report.html"
    with atomic_write(page) as file:
        file.write(html.encode())
    return page


def render(results: DemoResults, pictures: Mapping[str, bytes]) -> str:
    """The page as one string."""
    parts = [
        _opening(results),
        _tiles(results),
        _samples(results, pictures),
        _training(results),
        _accuracy(results),
        _profile(results),
        _reliability(results),
        _rankings(results, pictures),
        _use(results),
        _times(results),
        "<footer>Every number on this page is in <code>results.json</code> beside it. Intervals are 95 % percentile bootstraps "
        "over prompts: pairs of one prompt are alike, so prompts are drawn anew, not pairs.</footer>",
    ]
    return document(f"DiNa-LRM: {results.world.name}", "".join(parts))


def _picture(pictures: Mapping[str, bytes], name: str, described: str) -> str:
    if name not in pictures:
        raise ValueRangeError(f"the results show picture {name!r}, which is not among the {len(pictures)} given")
    data = pictures[name]
    kind = "png" if data[:4] == b"\x89PNG" else "jpeg" if data[:2] == b"\xff\xd8" else "webp"
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<img src="{source}" alt="{escape(described)}" loading="lazy">'


def _percent(estimate: AccuracyEstimate, digits: int = 1) -> str:
    return "–" if math.isnan(estimate.value) else f"{100 * estimate.value:.{digits}f}"


def _ends(estimate: AccuracyEstimate) -> str:
    return "" if math.isnan(estimate.low) else f"{100 * estimate.low:.1f} – {100 * estimate.high:.1f}"


def _opening(results: DemoResults) -> str:
    world = results.world
    train, test = results.splits["train"], results.splits["test"]
    fast = (
        paragraph(
            f"<b>Fast run.</b> Trained for {results.training[0].steps} steps and measured on {test.measured_prompts} of "
            f"{test.prompts} test prompts, to show that everything works; the numbers of a full run are better and firmer.",
            "note",
        )
        if results.fast
        else ""
    )
    return (
        "<h1>A reward model that reads noisy diffusion states</h1>\n"
        + paragraph(
            f"A diffusion transformer that draws emoji from prompts ({world.transformer_parameters / 1e6:.1f} M parameters) knows "
            "what belongs to a prompt. "
            f"DiNa-LRM keeps its first {world.kept_blocks} of {world.transformer_blocks} blocks, noises the latents of a picture, "
            "and learns from pairwise votes how much the picture is worth for its prompt, "
            f"with a small adapter and a head ({results.training[0].trained_parameters / 1e6:.2f} M parameters are trained). "
            f"Everything below was learned and measured in this run: {train.pairs:,} training pairs, {test.measured_pairs:,} test "
            f"pairs of {test.measured_prompts:,} prompts that training never saw.",
            "lead",
        )
        + paragraph(
            "The votes come from a program, not from people: nine simulated annotators a pair, around the utility of an "
            "oracle that judges pixels with networks of its own. So the truth is known, and so is the best that any model could do.",
            "quiet",
        )
        + fast
    )


def _tiles(results: DemoResults) -> str:
    row = results.row(results.headline)
    card = row.cards["test"]
    tiles = [
        tile(
            "Right order",
            f"{_percent(card.accuracy)} %",
            f"of test pairs, {escape(row.label)}; 95 %: {_ends(card.accuracy)}",
        ),
        tile("Ceiling", f"{_percent(card.ceiling)} %", "the oracle’s own order against the noisy votes"),
    ]
    control = next((r for r in results.table if r.name == "random"), None)
    if control is not None:
        gap = control.gap["test"]
        tiles.append(
            tile(
                "Pretraining is worth",
                f"{100 * gap.value:+.1f}",
                f"points over the same training on random weights; 95 %: {_ends(gap)}",
            )
        )
    tiles += [
        tile(
            f"Best of {best.n} {best.pool}",
            f"{100 * best.captured:.0f} %",
            "of what a perfect choice would gain over a blind one, in oracle utility",
        )
        for best in results.best_of[:1]
        if not math.isnan(best.captured)
    ]
    return f'<div class="tiles">\n{"".join(tiles)}</div>\n'


def _samples(results: DemoResults, pictures: Mapping[str, bytes]) -> str:
    grid = "".join(f"<div>{_picture(pictures, s.picture, s.prompt)}{escape(s.prompt)}</div>\n" for s in results.samples)
    size = results.world.image_size
    quality = "; ".join(f"{escape(name)}: {value:.1f}" for name, value in results.world.quality.items())
    return section(
        "What the generator draws",
        paragraph(
            f"{escape(results.world.description)} Its own pictures for test prompts, {size} × {size} pixels, none chosen by hand: "
            "the reward model has to judge such as these."
        ),
        f'<div class="pictures">\n{grid}</div>\n',
        paragraph(f"Measured when it was built: {quality}.", "quiet") if quality else "",
    )


def _training(results: DemoResults) -> str:
    titles = {
        "loss": f"Loss ({escape(results.training[0].objective)})",
        "accuracy": "Accuracy, % (dots: validation)",
        "learning_rate": "Learning rate of the head, 10⁻⁴",
    }
    plots = "".join(
        f"<figure><figcaption>{title}</figcaption>{training_figure(results.training, what)}</figure>\n"
        for what, title in titles.items()
    )
    facts = "; ".join(
        f"<b>{escape(run.label)}</b> {run.steps:,} steps of {run.batch_size} prompts, {run.pairs:,} comparisons, in "
        f"{duration(run.seconds)} ({run.pairs_per_second:,.0f} comparisons a second)"
        for run in results.training
    )
    return section(
        "Training",
        paragraph(
            "A step takes a few prompts with all their labelled pairs. The pictures of a prompt are noised with one sigma, drawn "
            "anew from 0 to 1, and one noise, and go through the network once; the law of choice expects less where the noise "
            "is louder. The control has the same blocks, budget and schedule, but its backbone "
            "starts from random weights."
        ),
        f'<div class="plots">\n{plots}</div>\n',
        paragraph(facts + ".", "quiet"),
    )


def _whisker(estimate: AccuracyEstimate, ceiling: AccuracyEstimate | None) -> str:
    def place(share: float) -> float:
        return min(100.0, max(0.0, (100 * share - _LOW) / (_HIGH - _LOW) * 100))

    if math.isnan(estimate.value):
        return ""
    low, high, value = place(estimate.low), place(estimate.high), place(estimate.value)
    top = "" if ceiling is None else f'<i class="top" style="left:{place(ceiling.value):.1f}%"></i>'
    return (
        f'<span class="whisker"><i class="chance" style="left:{place(0.5):.1f}%"></i>{top}'
        f'<i class="range" style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
        f'<i class="dot" style="left:{value:.1f}%"></i></span>'
    )


def _cell(estimate: AccuracyEstimate, ceiling: AccuracyEstimate | None) -> str:
    return (
        f'<td><span class="number">{_percent(estimate)}</span> <span class="ends">{_ends(estimate)}</span>'
        f"{_whisker(estimate, ceiling)}</td>"
    )


def _table_row(label: str, note: str, kind: str, cells: Iterable[str]) -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    return f'<tr class="{kind}"><th scope="row">{escape(label)}{small}</th>{"".join(cells)}</tr>\n'


def _measured_splits(results: DemoResults) -> list[str]:
    return list(results.row(results.headline).cards)


def _accuracy(results: DemoResults) -> str:
    splits = _measured_splits(results)
    headline = results.row(results.headline)
    heads = "".join(
        f"<th>{escape(results.splits[s].label)}<br>{results.splits[s].measured_pairs:,} pairs</th>" for s in splits
    )
    body = []
    for group, title in (
        ("model", "The model, asked in four ways"),
        ("control", f"Controls, asked as “{headline.label}”"),
    ):
        body.append(f'<tr class="head"><td colspan="{1 + len(splits)}">{escape(title)}</td></tr>\n')
        body += [_accuracy_row(row, row is headline, splits) for row in results.table if row.group == group]
    body.append(f'<tr class="head"><td colspan="{1 + len(splits)}">The best that can be reached</td></tr>\n')
    ceilings = (_cell(headline.cards[s].ceiling, None) for s in splits)
    body.append(_table_row("Oracle", "its noise-free order against the same votes", "ceiling", ceilings))
    ties = headline.cards["test"]
    return section(
        "Held-out accuracy",
        paragraph(
            "How often the order of the rewards is the order of the votes, in %, with 95 % intervals. The strip below each number runs "
            "from 40 to 100: thin line chance, thick line the oracle’s ceiling."
        ),
        f'<table class="accuracy"><thead><tr><th></th>{heads}</tr></thead><tbody>\n{"".join(body)}</tbody></table>\n',
        paragraph(
            f"Pairs whose votes are tied are left out ({ties.vote_ties} of {ties.pairs} test pairs); equal rewards would count half "
            f"({ties.predicted_ties} here). " + _leads(results),
            "quiet",
        ),
        _by_kind(results),
        _against_oracle(results, splits),
    )


def _accuracy_row(row: TableRow, is_headline: bool, splits: Iterable[str]) -> str:
    cells = (_cell(row.cards[s].accuracy, row.cards[s].ceiling) if s in row.cards else "<td>–</td>" for s in splits)
    return _table_row(row.label, row.note, f"{row.group} headline" if is_headline else row.group, cells)


def _leads(results: DemoResults) -> str:
    told = [
        f"{escape(row.label.lower())} {100 * row.gap['test'].value:+.1f} ({_ends(row.gap['test'])})"
        for row in results.table
        if "test" in row.gap and row.group == "control"
    ]
    label = escape(results.row(results.headline).label)
    return f"Lead of “{label}” on the same test pairs, in points: {'; '.join(told)}." if told else ""


def _by_kind(results: DemoResults) -> str:
    kinds = list(results.row(results.headline).cards["test"].accuracy_by_kind)

    def cell(estimate: AccuracyEstimate | None) -> str:
        if estimate is None:
            return "<td>–</td>"
        return f'<td>{_percent(estimate)} <span class="ends">{_ends(estimate)}</span></td>'

    rows = "".join(
        _table_row(row.label, "", row.group, (cell(row.cards["test"].accuracy_by_kind.get(kind)) for kind in kinds))
        for row in results.table
    )
    ceiling = results.row(results.headline).cards["test"].ceiling_by_kind
    rows += _table_row("Oracle", "", "ceiling", (cell(ceiling.get(kind)) for kind in kinds))
    heads = "".join(f"<th>{escape(kind)}</th>" for kind in kinds)
    return (
        "<details><summary>Test accuracy by kind of pair</summary>"
        f'<div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead><tbody>\n{rows}</tbody></table></div></details>\n'
    )


def _against_oracle(results: DemoResults, splits: Iterable[str]) -> str:
    splits = list(splits)

    def cell(card: EvalCard | None) -> str:
        if card is None:
            return "<td>–</td>"
        return (
            f'<td>{_percent(card.oracle_accuracy)} <span class="ends">{_ends(card.oracle_accuracy)}</span>'
            f'<br><span class="ends">tau {card.kendall_tau.value:.2f}</span></td>'
        )

    rows = "".join(
        _table_row(row.label, "", row.group, (cell(row.cards.get(s)) for s in splits)) for row in results.table
    )
    heads = "".join(f"<th>{escape(results.splits[s].label)}</th>" for s in splits)
    return (
        "<details><summary>Accuracy against the oracle’s noise-free order, and Kendall’s tau within a prompt</summary>"
        f'<div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead><tbody>\n{rows}</tbody></table></div></details>\n'
    )


def _profile(results: DemoResults) -> str:
    marked = sorted({s for row in results.table if row.group == "model" for s in row.cards["test"].sigmas})
    wide, narrow = (profile_figure(results.profile, marked, width) for width in (940, 350))
    return section(
        "What each sigma sees",
        paragraph(
            "The same test pairs, scored with one draw at each noise level and split by what tells the two pictures apart. The dot "
            "marks the best level of each kind; bands are 95 % intervals; dotted verticals are the levels used in the table above."
        ),
        f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>\n',
        paragraph(_best_levels(results), "quiet"),
    )


def _best_levels(results: DemoResults) -> str:
    profile, told = results.profile, []
    for kind, estimates in profile.by_kind.items():
        best = max(range(len(estimates)), key=lambda i: estimates[i].value)
        told.append(f"{escape(kind)} at {profile.sigmas[best]:g} ({_percent(estimates[best])} %)")
    return f"Best read: {', '.join(told)}."


def _reliability(results: DemoResults) -> str:
    splits = _measured_splits(results)
    row = results.row(results.headline)
    lines = "".join(
        _table_row(
            results.splits[s].label,
            "",
            "",
            (
                f"<td>{text}</td>"
                for text in (
                    f"{100 * row.cards[s].calibration.ece:.1f}",
                    f"{row.cards[s].calibration.brier.value:.3f}",
                    f"{row.cards[s].calibration.nll.value:.3f}",
                    f"{row.cards[s].calibration.vote_entropy:.3f}",
                )
            ),
        )
        for s in splits
    )
    table = (
        "<table><thead><tr><th></th><th>ECE, points</th><th>Brier</th><th>log loss</th><th>least log loss</th></tr></thead>"
        f"<tbody>\n{lines}</tbody></table>\n"
    )
    return section(
        "Is the probability honest?",
        '<div class="side"><div>',
        reliability_figure(row.cards["test"].calibration, row.name),
        "</div><div>",
        paragraph(
            "The law of choice turns two utilities into a probability. Test pairs are sorted by how sure the model is and cut into ten "
            "equal bins; each dot compares the mean probability given to the favoured picture with the share of votes it got. "
            f"Above the diagonal the model is too timid, below it too bold. Asked as “{escape(row.label)}”."
        ),
        table,
        paragraph(
            "Least log loss is the entropy of the votes themselves: no model can do better. Log loss in nats, against shares of votes.",
            "quiet",
        ),
        "</div></div>",
    )


_POOLS = {
    "of the generator": "The generator’s own pictures for the first test prompts, drawn with few and many steps, weak and strong guidance.",
    "of every origin": "The same prompts with candidates drawn at random from all there are: the generator’s, real art, other "
    "motifs and styles, damaged art.",
}


def _rankings(results: DemoResults, pictures: Mapping[str, bytes]) -> str:
    count = max((len(prompt.pictures) for prompt in results.rankings), default=0)
    pools = dict.fromkeys(prompt.pool for prompt in results.rankings)
    rows = "".join(
        f"<h3>Candidates {escape(pool)}</h3>"
        + paragraph(escape(_POOLS.get(pool, "")))
        + "".join(_ranking(prompt, pictures) for prompt in results.rankings if prompt.pool == pool)
        for pool in pools
    )
    return section(
        f"Best of {count}, worst of {count}",
        paragraph(
            "From left to right by reward: "
            '<span class="key" style="background:var(--good)"></span>best to '
            '<span class="key" style="background:var(--bad)"></span>worst. Below each picture its reward, the rank that the '
            "oracle gives it, and where it came from."
        ),
        rows,
        _gains(results),
    )


def _gains(results: DemoResults) -> str:
    if not results.best_of:
        return ""
    return (
        "<h3>What choosing gains</h3>"
        + paragraph(
            "Mean oracle utility (0 to 9 in the emoji world) of the picture that is chosen, over prompts, with 95 % intervals."
        )
        + '<div class="scroll"><table><thead><tr><th></th><th>the model’s best</th><th>average</th><th>the model’s worst</th>'
        + "<th>truly best</th><th>gain captured</th></tr></thead><tbody>\n"
        + "".join(_gain(best) for best in results.best_of)
        + "</tbody></table></div>\n"
    )


def _ranking(prompt: RankedPrompt, pictures: Mapping[str, bytes]) -> str:
    def cell(place: int, shown: RankedPicture) -> str:
        kind = "best" if place == 0 else "worst" if place == len(prompt.pictures) - 1 else ""
        rank = "" if shown.oracle_rank is None else f"oracle {shown.oracle_rank}"
        image = _picture(pictures, shown.picture, f"{prompt.prompt}, rank {place + 1}")
        return f'<div class="{kind}">{image}<b>{shown.reward:+.2f}</b>{rank}<br>{escape(shown.origin)}</div>\n'

    cells = "".join(cell(place, shown) for place, shown in enumerate(prompt.pictures))
    return f'<div class="prompt">{escape(prompt.prompt)}</div><div class="ranked">\n{cells}</div>\n'


def _gain(best: BestOf) -> str:
    def cell(estimate: AccuracyEstimate) -> str:
        return f'<td>{estimate.value:.2f} <span class="ends">{estimate.low:.2f} – {estimate.high:.2f}</span></td>'

    captured = "–" if math.isnan(best.captured) else f"{100 * best.captured:.0f} %"
    label = f"{best.n} {best.pool}; {best.prompts} prompts"
    cells = [cell(e) for e in (best.best, best.average, best.worst, best.oracle_best)]
    return _table_row(label, "", "", [*cells, f"<td>{captured}</td>"])


def _use(results: DemoResults) -> str:
    commands = "".join(f"<pre>{escape(command)}</pre>\n" for command in results.commands)
    told = "From the folder in which the demo ran; its previews are compressed, so rewards differ a little from those above:"
    return section("Use the model", paragraph(told), commands)


def _times(results: DemoResults) -> str:
    rows = "".join(f"<tr><td>{escape(t.label)}</td><td>{duration(t.seconds)}</td></tr>\n" for t in results.times)
    total = duration(sum(t.seconds for t in results.times))
    row = results.row(results.headline)
    machine = ", ".join(f"{escape(name)} {escape(value)}" for name, value in results.machine.items())
    encoding = results.encoding
    pictures = (
        f" and {encoding.pictures_per_second:,.0f} pictures a second; {encoding.pictures} pictures of the art came back from the VAE "
        f"at {encoding.reconstruction_psnr:.1f} dB"
        if encoding.pictures
        else " a second"
    )
    return section(
        "Time",
        f"<table><tbody>\n{rows}<tr><td><b>Together</b></td><td><b>{total}</b></td></tr></tbody></table>\n",
        paragraph(
            f"Encoding: {encoding.prompts_per_second:,.0f} prompts{pictures}. "
            f"Scoring as “{escape(row.label)}”: {row.cards['test'].candidates_per_second:,.0f} pictures a second."
        ),
        paragraph(
            f"dina-lrm {escape(results.version)}, seed {results.seed}, {machine}. Finished {escape(results.finished)}.",
            "quiet",
        ),
    )
