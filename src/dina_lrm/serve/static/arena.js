// Two pictures, one choice, again and again; and in the end how people and model agree.

import { Trouble, arena } from "./api.js";
import { shareChart } from "./charts.js";
import { $, el, number, percent, plural } from "./dom.js";

const VOTER = "dina-lrm.voter";
const ROUND = 20; // answers after which the agreement is shown
const LOOK_AGAIN = 2500; // milliseconds
const KEYS = { ArrowLeft: "left", ArrowRight: "right", t: "tie", s: "skip" };
const SAID = { left: "The left one.", right: "The right one.", tie: "A tie.", skip: "Skipped." };

let current = null; // the pair on the page
let busy = false;
let begun = false;
let allSeen = false;
let urls = [];
let notices;

export function startArena(shared) {
  notices = shared;
  for (const button of document.querySelectorAll("#pair [data-choice]")) {
    button.addEventListener("click", () => choose(button.dataset.choice));
  }
  addEventListener("keydown", (event) => {
    const plain = !event.ctrlKey && !event.metaKey && !event.altKey && !event.repeat;
    const choice = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!plain || !choice || $("pair").hidden || $("arena").hidden || event.target.closest("input, textarea, select")) return;
    event.preventDefault();
    choose(choice);
  });
  $("finish").addEventListener("click", showAgreement);
  $("more").addEventListener("click", next);
  $("export-zip").addEventListener("click", () => download("zip"));
  $("export-json").addEventListener("click", () => download("json"));
  document.addEventListener("view", (event) => {
    if (event.detail === "arena" && !begun) next();
  });
}

// A name by which the server knows which pairs were seen: made here, of nothing that tells who it is.
function voter() {
  let name = localStorage.getItem(VOTER);
  if (!name) {
    name = [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    localStorage.setItem(VOTER, name);
  }
  return name;
}

function wait(is) {
  busy = is;
  $("pair").setAttribute("aria-busy", String(is));
}

async function next() {
  begun = true;
  wait(true);
  try {
    let pair = await arena.pair(voter());
    let blobs = null;
    while (pair.pair !== null && blobs === null) {
      const before = pair.pair;
      try {
        blobs = await both(pair);
      } catch (trouble) {
        if (trouble.kind !== "bad_input") throw trouble;
        pair = await arena.pair(voter()); // one of them cannot be read, and the server shows it no more
        if (pair.pair === before) throw trouble;
      }
    }
    allSeen = pair.pair === null;
    if (allSeen) return await showAgreement();
    for (const url of urls) URL.revokeObjectURL(url);
    urls = blobs.map((blob) => URL.createObjectURL(blob));
    notices.settled();
    show(pair);
  } catch (trouble) {
    if (trouble instanceof Trouble && trouble.status === 404 && trouble.kind === "not_found" && current === null) return absent();
    notices.report(trouble, next);
  } finally {
    wait(false);
  }
}

// Both pictures are shown at once: none has a head start.
const both = (pair) => Promise.all([arena.picture(pair.left), arena.picture(pair.right)]);

function show(pair) {
  current = pair;
  for (const [side, url] of [["left", urls[0]], ["right", urls[1]]]) $(side).src = url;
  unpick();
  $("pair-prompt").textContent = pair.prompt;
  const done = pair.answered % ROUND;
  $("round").max = ROUND;
  $("round").value = done;
  $("round-told").textContent = `${done} of ${ROUND}`;
  $("finish").hidden = pair.answered === 0;
  $("arena-none").hidden = true;
  $("agreement").hidden = true;
  $("pair").hidden = false;
  say(`Which picture is better for: ${pair.prompt}? Left arrow, right arrow, T for a tie, S to skip.`);
}

function unpick() {
  for (const picked of document.querySelectorAll(".picked")) picked.classList.remove("picked");
}

const say = (words) => ($("arena-said").textContent = words);

async function choose(choice) {
  if (busy || current === null) return;
  wait(true);
  unpick();
  for (const button of document.querySelectorAll(`#pair [data-choice="${choice}"]`)) button.classList.add("picked");
  await send(choice);
}

// Sent again until the server has it: the same answer twice is one vote.
async function send(choice) {
  const { pair } = current;
  wait(true);
  try {
    const reply = await arena.vote(pair, choice, voter());
    notices.settled();
    say(SAID[choice]);
    await (reply.answered % ROUND === 0 && reply.recorded ? showAgreement() : next());
  } catch (trouble) {
    if (trouble instanceof Trouble && (trouble.status === 409 || trouble.kind === "bad_input")) {
      // Answered in another tab, or a pair of another time: nothing to be sent again.
      return next();
    }
    wait(false);
    notices.report(trouble, () => send(choice));
  }
}

function absent() {
  begun = false;
  $("pair").hidden = true;
  $("agreement").hidden = true;
  $("arena-none").hidden = false;
  $("arena-none").replaceChildren(
    "This server has no arena. Start it with a folder of candidates: ",
    el("code", { text: "dina-lrm serve --model MODEL --arena FOLDER" }),
  );
}

async function showAgreement() {
  wait(true);
  try {
    const stats = await arena.stats(voter());
    notices.settled();
    fill(stats);
    $("pair").hidden = true;
    $("arena-none").hidden = true;
    $("more").hidden = allSeen;
    $("agreement").hidden = false;
    $("agreement-title").focus();
    say("");
    refresh(stats);
  } catch (trouble) {
    notices.report(trouble, showAgreement);
  } finally {
    wait(false);
  }
}

// The model may still be looking at what was voted on.
async function refresh(stats) {
  while (stats.unscored && stats.model !== null) {
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN));
    if ($("agreement").hidden || $("arena").hidden) return;
    try {
      stats = await arena.stats(voter());
    } catch {
      return; // what is shown is still true
    }
    if (!$("agreement").hidden) fill(stats);
  }
}

function fill(stats) {
  const rows = [];
  if (stats.mine) rows.push(["You, pairs at random", stats.mine], ["You, pairs the model was unsure of", stats.mine_active]);
  if (stats.voters > 1) rows.push(["Everybody, pairs at random", stats.random], ["Everybody, pairs the model was unsure of", stats.active]);
  $("agreement-rows").replaceChildren(...rows.filter(([, one]) => one.votes + one.skips > 0).map(([name, one]) => row(name, one)));
  const waiting = stats.unscored && stats.model !== null ? ` ${plural(stats.unscored, "vote")} not compared yet: the model is still looking at the pictures.` : "";
  const never = stats.unscorable ? ` ${plural(stats.unscorable, "vote")} cannot be compared: the model cannot read a picture.` : "";
  $("agreement-told").textContent =
    (allSeen ? "You have seen every pair. " : "") +
    compared(stats) +
    ` ${plural(stats.answers, "answer")} of ${plural(stats.voters, "voter")} so far.${waiting}${never}`;
}

function compared({ model, objection }) {
  if (objection !== null) return `The model does not judge these pictures: ${objection}.`;
  if (model === null) return "No model is loaded to compare with.";
  return `Compared with ${model}. Only pairs at random tell how far people and model agree in general; the others were picked because they are hard. Ties and skips are not counted.`;
}

function row(name, agreement) {
  const { compared, agreed, share, interval, expected, ties, skips } = agreement;
  const chart = el("div");
  const more = [ties ? plural(ties, "tie") : "", skips ? plural(skips, "skip") : ""].filter(Boolean).join(", ");
  if (share === null) {
    return el("div", { class: "row" }, el("span", { text: name }), el("p", { class: "hint", text: `Nothing to compare yet${more ? ` (${more})` : ""}.` }));
  }
  const told = `${number(agreed, Number.isInteger(agreed) ? 0 : 1)} of ${compared} choices alike; for all such pairs that means between ${percent(interval[0])} and ${percent(interval[1])} (95 % sure). The model itself expects ${percent(expected)} (dashed).${more ? ` Besides, ${more}.` : ""}`;
  queueMicrotask(() => shareChart(chart, share, interval, { mark: expected, label: told }));
  return el("div", { class: "row" }, el("span", { text: name }), el("b", { text: percent(share) }), chart, el("p", { class: "hint", text: told }));
}

async function download(format) {
  try {
    const blob = await arena.export(format);
    const url = URL.createObjectURL(blob);
    el("a", { href: url, download: `arena-votes.${format}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    notices.settled();
  } catch (trouble) {
    notices.report(trouble, () => download(format));
  }
}
