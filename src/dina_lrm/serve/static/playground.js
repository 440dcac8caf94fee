// Pictures for a prompt, ranked: the answer is one request, the curve and the maps are asked for after it.

import { attention, rank, score } from "./api.js";
import { colour, curve, drop, shareChart, whisker } from "./charts.js";
import { $, el, number, ordinal, percent, plural } from "./dom.js";

const KEPT = "dina-lrm.playground";
const FIELDS = ["prompt", "model", "sigmas", "draws", "fusion", "seed", "adaptive"];
const TYPES = ["image/png", "image/jpeg", "image/webp"];
const CURVE_SIGMAS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
const CURVE_DRAWS = 3;
const CURVE_PICTURES = 8; // in one request: the server takes only so many looks at once, and 27 go to each
const TIE_BAND = 0.05;
const Z_95 = 1.96;
const ADAPTIVE = { max_draws: 16, error_rate: 0.05 };

let pictures = []; // {file, url}
let shown = null; // the answer on the page, with the pictures that it is about
let asking = null; // aborts what is under way
let notices;

export function startPlayground(shared) {
  notices = shared;
  restore();
  for (const name of FIELDS) $(name).addEventListener("input", () => keep(name));
  $("choose").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => {
    add($("files").files);
    $("files").value = "";
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  });
  $("cancel").addEventListener("click", () => asking?.abort());
  $("attention").addEventListener("change", showMaps);
  $("query").addEventListener("change", paintMaps);
  document.addEventListener("models", (event) => offerModels(event.detail));
  listenForPictures();
}

// ------------------------------------------------------------------------------------------- what is asked

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
    for (const name of FIELDS.filter((one) => one in kept && one !== "model")) {
      if ($(name).type === "checkbox") $(name).checked = kept[name];
      else $(name).value = kept[name];
    }
  } catch {
    localStorage.removeItem(KEPT);
  }
  tellOptions();
}

function keep(name) {
  $(name).removeAttribute("aria-invalid");
  if (!document.querySelector("#ask [aria-invalid]")) $("ask-told").textContent = "";
  const values = FIELDS.map((one) => [one, $(one).type === "checkbox" ? $(one).checked : $(one).value]);
  localStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(values)));
  tellOptions();
}

function tellOptions() {
  $("draws").disabled = $("adaptive").checked;
  const draws = $("adaptive").checked ? `looks as needed, up to ${ADAPTIVE.max_draws}` : plural(Number($("draws").value), "look");
  $("options-told").textContent = `noise ${$("sigmas").value || "?"} · ${draws}`;
}

function offerModels(known) {
  const kept = JSON.parse(localStorage.getItem(KEPT) ?? "{}").model;
  const ready = known.filter((one) => one.state === "ready");
  const before = $("model").value || kept;
  $("model").replaceChildren(...ready.map((one) => el("option", { value: one.name, text: one.name })));
  if (ready.some((one) => one.name === before)) $("model").value = before;
  $("model-field").hidden = ready.length < 2;
}

function listenForPictures() {
  const here = () => !$("playground").hidden;
  const hasFiles = (event) => here() && [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    $("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) $("drop").hidden = true;
  });
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    $("drop").hidden = true;
    add(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => {
    const files = event.clipboardData?.files ?? [];
    if (!here() || !files.length) return;
    event.preventDefault();
    add(files);
  });
}

function add(files) {
  const refused = [...files].filter((file) => !TYPES.includes(file.type));
  for (const file of files) {
    if (TYPES.includes(file.type)) pictures.push({ file, url: URL.createObjectURL(file) });
  }
  $("ask-told").textContent = refused.length ? `${refused[0].name} is no PNG, JPEG or WebP picture.` : "";
  listPictures();
}

function listPictures() {
  const items = pictures.map((picture, place) => {
    const remove = el("button", { type: "button", "aria-label": `Remove picture ${place + 1}`, text: "×" });
    remove.addEventListener("click", () => {
      pictures = pictures.filter((one) => one !== picture);
      listPictures();
      ($("chosen").querySelectorAll("button")[Math.min(place, pictures.length - 1)] ?? $("choose")).focus();
    });
    const image = el("img", { src: picture.url, alt: picture.file.name });
    return el("li", {}, image, el("span", { class: "number", text: place + 1 }), remove);
  });
  $("chosen").replaceChildren(...items);
  $("choose").textContent = pictures.length ? "Add pictures" : "Choose pictures";
}

// The request, or null after having said what is missing.
function read() {
  const wrong = (id, told) => {
    $("ask-told").textContent = told;
    if (!["prompt", "choose"].includes(id)) $("options").open = true;
    $(id).setAttribute("aria-invalid", "true");
    $(id).focus();
    return null;
  };
  $("choose").removeAttribute("aria-invalid");
  $("ask-told").textContent = "";
  if (!$("prompt").value.trim()) return wrong("prompt", "Say what the pictures are to be judged for.");
  if (!pictures.length) return wrong("choose", "Choose one picture or more.");
  const sigmas = $("sigmas").value.split(/[\s,;]+/).filter(Boolean).map(Number);
  if (!sigmas.length || !sigmas.every((sigma) => sigma >= 0 && sigma <= 1)) return wrong("sigmas", "Noise levels lie between 0 and 1.");
  const draws = Number($("draws").value);
  if (!$("adaptive").checked && !(Number.isInteger(draws) && draws >= 1)) return wrong("draws", "Looks are a whole number, 1 or more.");
  const seed = $("seed").value === "" ? null : Number($("seed").value);
  if (seed !== null && !(Number.isSafeInteger(seed) && seed >= 0)) return wrong("seed", "The seed is a whole number, 0 or more, or empty.");
  const model = $("model-field").hidden ? null : $("model").value;
  return { model, sigmas, draws: $("adaptive").checked ? 1 : draws, fusion: $("fusion").value, seed, prompt: $("prompt").value };
}

// ------------------------------------------------------------------------------------------------- asking

async function ask() {
  const request = read();
  if (request === null) return;
  asking?.abort();
  const abort = new AbortController();
  asking = abort;
  busy(true);
  try {
    const about = [...pictures];
    const files = about.map((picture) => picture.file);
    const { prompt, ...options } = request;
    // A rule that decides between candidates has nothing to decide about one.
    const adaptive = $("adaptive").checked && about.length > 1 ? ADAPTIVE : null;
    if ($("adaptive").checked && about.length === 1) options.draws = 4;
    const ranking = await rank({ ...options, prompt, adaptive, tie_band: TIE_BAND }, files, abort.signal);
    notices.settled();
    const seed = ranking.reward.seed ?? 0;
    shown = { ranking, about, prompt, sigmas: options.sigmas, seed, model: options.model, maps: new Map() };
    showRanking();
    await Promise.all([askCurve(shown, abort.signal), showMaps()]);
  } catch (trouble) {
    if (trouble.name !== "AbortError") notices.report(trouble, ask);
  } finally {
    if (asking === abort) {
      asking = null;
      busy(false);
    }
  }
}

function busy(is) {
  $("go").disabled = is;
  $("go").textContent = is ? "Scoring" : "Score";
  $("cancel").hidden = !is;
  $("answer").setAttribute("aria-busy", String(is));
}

async function askCurve(answer, signal) {
  drop($("curve"), el("div", { class: "pending" }));
  $("curve-told").textContent = "";
  $("curve-numbers").hidden = true;
  const request = { model: answer.model, prompts: [answer.prompt], sigmas: CURVE_SIGMAS, draws: CURVE_DRAWS, seed: answer.seed };
  try {
    const draws = await drawsOf(request, answer.about.map((picture) => picture.file), CURVE_PICTURES, signal);
    if (shown === answer) showCurve(answer, draws);
  } catch (trouble) {
    if (shown !== answer) return;
    const again = el("button", { type: "button", text: "Draw the curve" });
    again.addEventListener("click", () => askCurve(answer));
    drop($("curve"), el("div", { class: "actions" }, again));
    $("curve-told").textContent = trouble.name === "AbortError" ? "" : trouble.message;
  }
}

// The draws of each picture, asked for in portions, and in smaller ones where the server takes less.
async function drawsOf(request, files, portion, signal) {
  const found = [];
  for (let at = 0; at < files.length; at += portion) {
    const some = files.slice(at, at + portion);
    try {
      found.push(...(await score(request, some, signal)).draws);
    } catch (trouble) {
      if (some.length === 1 || ![413, 422].includes(trouble.status)) throw trouble;
      found.push(...(await drawsOf(request, some, Math.ceil(some.length / 2), signal)));
    }
  }
  return found;
}

// ----------------------------------------------------------------------------------------- what was found

function showRanking() {
  const { ranking, about } = shown;
  const { reward, order, lead } = ranking;
  const half = reward.standard_error.map((error) => Z_95 * error);
  const low = Math.min(...reward.utility.map((utility, i) => utility - half[i]));
  const high = Math.max(...reward.utility.map((utility, i) => utility + half[i]));
  const calibrated = reward.reward.some((one, i) => Math.abs(one - reward.utility[i]) > 1e-6);
  const uneven = new Set(reward.spent).size > 1;
  const cards = order.map((place, at) => {
    const utility = reward.utility[place];
    const line = el("div");
    const head = el("div", { class: "place" }, el("span", { text: order.length > 1 ? ordinal(at + 1) : "Reward" }));
    if (uneven) head.append(el("span", { text: plural(reward.spent[place], "look") }));
    const spread = `± ${number(half[place])}`;
    const told = el("div", { class: "told" }, head,
      el("div", { class: "reward", text: number(reward.reward[place]) }),
      el("div", { class: "utility", text: calibrated ? `raw score ${number(utility)} ${spread}` : spread }),
    );
    if (order.length > 1) {
      told.append(line);
      queueMicrotask(() => whisker(line, utility, [utility - half[place], utility + half[place]], low, high, place));
    }
    const image = el("img", { src: about[place].url, alt: `Picture ${place + 1}, ${about[place].file.name}` });
    const frame = el("div", { class: "picture" }, image, el("span", { class: "number", text: place + 1 }));
    frame.dataset.place = place;
    return el("li", at === 0 && order.length > 1 ? { class: "first" } : {}, frame, told);
  });
  $("empty").hidden = true;
  $("result").hidden = false;
  $("ranked").replaceChildren(...cards);
  $("ranked-title").textContent = order.length > 1 ? "Ranking" : "Reward";
  const revision = reward.revision ? ` (${reward.revision.slice(0, 8)})` : "";
  const spent = reward.spent.reduce((sum, one) => sum + one, 0);
  $("ranked-told").textContent = `± is how far ${calibrated ? "the raw score" : "the reward"} may move with other noise (95 % sure). ${reward.model}${revision}, seed ${shown.seed}, ${plural(spent, "look")} in all.`;
  showLead(lead, order, ranking.decided);
}

function showLead(lead, order, decided) {
  $("lead").hidden = lead === null;
  let said = `Reward ${number(shown.ranking.reward.reward[0])}.`;
  if (lead !== null) {
    const [first, second] = order.map((place) => place + 1);
    const tie = lead.verdict === "tie";
    const title = tie ? `Pictures ${first} and ${second} are a tie` : `Picture ${first} over picture ${second}: ${percent(lead.probability)}`;
    const [low, high] = lead.interval.map(percent);
    $("lead-title").textContent = title;
    $("lead-told").textContent =
      `The model gives picture ${first} a chance of ${number(lead.probability)} to be preferred to picture ${second}; ` +
      `with other noise it may be ${low} to ${high} (95 % sure). ` +
      `Within ${number(lead.tie_band)} of one half it is a tie.` +
      (decided ? "" : " The model stopped looking before the best was sure: take it as open.");
    shareChart($("lead-chart"), lead.probability, lead.interval, { band: lead.tie_band, label: $("lead-told").textContent });
    said = `${title}. ${order.length} pictures ranked: ${order.map((place) => place + 1).join(", ")}.`;
  }
  $("answer-said").textContent = said;
  if ($("result").getBoundingClientRect().top > innerHeight * 0.8) $("result").scrollIntoView({ block: "start" });
}

function showCurve(answer, found) {
  const lines = found.map((draws, place) => {
    const points = CURVE_SIGMAS.map((sigma, level) => {
      const values = draws.filter((_, i) => i % CURVE_SIGMAS.length === level);
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      return { sigma, mean, low: Math.min(...values), high: Math.max(...values) };
    });
    return { name: `Picture ${place + 1}`, short: String(place + 1), series: place, points };
  });
  curve($("curve"), lines, answer.sigmas, `Raw score of ${plural(lines.length, "picture")} at noise levels from 0.1 to 0.9; the numbers follow.`);
  $("curve-told").textContent = `Average of ${CURVE_DRAWS} looks; the shade spans them. Dotted: the noise levels that you asked for.`;
  const head = el("tr", {}, el("th", { scope: "col", text: "noise" }), ...CURVE_SIGMAS.map((sigma) => el("th", { scope: "col", text: sigma })));
  const rows = lines.map((line) =>
    el("tr", {}, el("th", { scope: "row", class: colour(line.series), text: line.name }), ...line.points.map((point) => el("td", { text: number(point.mean) }))),
  );
  $("curve-table").replaceChildren(el("thead", {}, head), el("tbody", {}, ...rows));
  $("curve-numbers").hidden = false;
}

// -------------------------------------------------------------------------------------------------- maps

async function showMaps() {
  const answer = shown;
  $("query").hidden = !$("attention").checked || !answer?.maps.size;
  if (!$("attention").checked || !answer) return paintMaps();
  const sigma = answer.sigmas[0];
  try {
    await Promise.all(
      answer.about.map(async (picture, place) => {
        if (answer.maps.has(place)) return;
        const request = { model: answer.model, prompt: answer.prompt, sigma, seed: answer.seed };
        answer.maps.set(place, await attention(request, [picture.file]));
      }),
    );
  } catch (trouble) {
    if (shown !== answer) return;
    $("attention").checked = false;
    notices.report(trouble, () => {
      $("attention").checked = true;
      showMaps();
    });
  }
  if (shown !== answer) return;
  const first = answer.maps.get(0);
  if (first) {
    const chosen = $("query").value;
    const names = ["All its eyes", ...first.queries.map((_, query) => `Eye ${query + 1}`)];
    $("query").replaceChildren(...names.map((name, place) => el("option", { value: place - 1, text: name })));
    if (chosen !== "" && Number(chosen) < first.queries.length) $("query").value = chosen;
  }
  $("query").hidden = !$("attention").checked || !first;
  paintMaps();
  if ($("attention").checked) $("answer-said").textContent = $("maps-told").textContent;
}

function paintMaps() {
  const visible = $("attention").checked && shown !== null && shown.maps.size > 0;
  $("maps-told").hidden = !visible;
  if (visible) {
    $("maps-told").textContent =
      `Bright: where ${Number($("query").value) < 0 ? "the model looks" : "this eye of the model looks"} most, at noise level ${shown.sigmas[0]}. ` +
      "Dark: what it passes over. It tells where, not why.";
  }
  for (const frame of document.querySelectorAll("#ranked .picture")) {
    frame.querySelector("canvas")?.remove();
    const reply = shown?.maps.get(Number(frame.dataset.place));
    if (!$("attention").checked || !reply) continue;
    const query = Number($("query").value);
    frame.append(painted(query < 0 ? reply.mean : reply.queries[query]));
  }
}

// What the model passes over is darkened, what it looks at stays as it is.
function painted(map) {
  const canvas = el("canvas", { width: map[0].length, height: map.length, role: "img", "aria-label": "Attention map" });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const most = Math.max(...map.flat());
  map.flat().forEach((weight, i) => {
    pixels.data.set([16, 20, 34, Math.round(215 * (1 - weight / most))], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}
