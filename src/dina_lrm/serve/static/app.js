// What both views share: which of them is shown, whether the server is there, and what it says when it refuses.

import { Trouble, health, key, models } from "./api.js";
import { startArena } from "./arena.js";
import { startPlayground } from "./playground.js";
import { $ } from "./dom.js";

const VIEWS = ["playground", "arena"];
const POLL = 3000; // milliseconds between looks at a server that is not ready
let retry = null; // what to do again when the notice is answered
let timer = null;

// ------------------------------------------------------------------------------------------------ notices

const HEADINGS = {
  0: "The server cannot be reached",
  401: "The server asks for a key",
  403: "The server does not allow this",
  408: "The upload took too long",
  413: "That is more than the server takes",
  415: "The server cannot read that",
  421: "The server does not answer under this name",
  429: "The server is busy",
  503: "The server is not ready",
  504: "The answer took too long",
};

// What a status alone does not say.
const BY_KIND = {
  loading: "The model is being loaded",
  draining: "The server is being stopped",
  unavailable: "The model cannot answer",
  busy: "The server is busy",
};

// What may go well if it is asked once more, as it is.
const MAY_PASS = (status) => status === 0 || status === 408 || status === 429 || status >= 500;

// What passes by itself, and soon.
const PASSES = ({ status, kind }) => (status === 429 || status === 503) && kind !== "draining" && kind !== "unavailable";

function clear() {
  clearInterval(timer);
  retry = null;
  $("notice").hidden = true;
}

// In place of what the server says to programs.
function words(trouble) {
  if (trouble.status === 401 && key.get()) return "The key you gave is not one of its keys.";
  if (trouble.status === 401) return "Whoever runs it has one. It stays in this tab.";
  if (trouble.status === 0) return "Is it running, and are you online? Nothing you entered is lost.";
  return trouble.message;
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}`.replace(/([^.!?])$/, "$1.");

// Say what went wrong; `again` does it once more. What was typed stays where it is.
export function report(trouble, again) {
  clear();
  if (!(trouble instanceof Trouble)) {
    console.error(trouble);
    trouble = new Trouble(-1, "page", "Something in this page failed; the browser's console says what.", null);
  }
  retry = again;
  const heading = BY_KIND[trouble.kind] ?? HEADINGS[trouble.status] ?? (trouble.status >= 500 ? "The server failed" : "The server refused");
  const said = document.createElement("strong");
  said.textContent = heading;
  const more = document.createElement("span");
  more.textContent = sentence(words(trouble));
  $("notice-text").replaceChildren(said, more);
  $("key-form").hidden = trouble.status !== 401;
  $("notice-again").hidden = again === null || !MAY_PASS(trouble.status);
  $("notice-again").textContent = "Try again now";
  $("notice").hidden = false;
  if (trouble.status === 401) $("key").focus();
  else if (again !== null && PASSES(trouble)) countDown(trouble.retryAfter ?? 3);
  if (trouble.status === 0 || trouble.status === 503) watch();
}

// Try again by itself when the server said it would have room.
function countDown(seconds) {
  const show = () => ($("notice-again").textContent = `Trying again in ${seconds} s`);
  show();
  timer = setInterval(() => {
    seconds -= 1;
    if (seconds > 0) show();
    else answer();
  }, 1000);
}

function answer() {
  const again = retry;
  clear();
  again?.();
}

export const settled = () => clear();

$("notice-again").addEventListener("click", answer);
$("notice-stop").addEventListener("click", clear);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) {
    $("notice-text").lastElementChild.textContent = "A key is plain letters, digits and signs, without spaces.";
    return;
  }
  key.set(given);
  answer();
  watch();
});

// ------------------------------------------------------------------------------------------------- status

const STATES = {
  loading: "The model is being loaded",
  draining: "The server is being stopped",
  failed: "The model has failed",
  waiting: "The server is not ready",
  gone: "Server not reachable",
};
let watching = false;

async function watch() {
  if (watching) return;
  watching = true;
  let state = await health();
  while (state !== "ready") {
    tell(state, STATES[state] ?? state);
    await new Promise((resolve) => setTimeout(resolve, POLL));
    state = await health();
  }
  watching = false;
  tell("ready", "Ready");
  try {
    const known = (await models()).models;
    const shown = known.find((one) => one.default) ?? known[0];
    if (shown) tell("ready", shown.name);
    document.dispatchEvent(new CustomEvent("models", { detail: known }));
  } catch {
    // A key is missing: whoever asks for something is told.
  }
}

function tell(state, words) {
  $("status").dataset.state = state;
  if ($("status").textContent !== words) $("status").textContent = words;
}

addEventListener("offline", watch);
addEventListener("online", watch);

// -------------------------------------------------------------------------------------------------- views

function show() {
  const name = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "playground";
  for (const view of VIEWS) $(view).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${name === "arena" ? "Arena" : "Playground"} · DiNa-LRM`;
  document.dispatchEvent(new CustomEvent("view", { detail: name }));
}

startPlayground({ report, settled });
startArena({ report, settled });
addEventListener("hashchange", () => {
  if (location.hash !== "#main") {
    clear();
    show();
  }
});
show();
watch();
