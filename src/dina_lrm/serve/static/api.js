// The server's routes, as promises. Whatever goes wrong is a Trouble that says what and when to try again.

const KEY = "dina-lrm.key";

export class Trouble extends Error {
  constructor(status, kind, message, retryAfter) {
    super(message);
    this.status = status; // 0: nobody answered
    this.kind = kind;
    this.retryAfter = retryAfter; // seconds, or null
  }
}

// The key stays in this tab.
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: options.cache ?? "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(0, "gone", "The server cannot be reached.", null);
  }
  if (response.ok) return response;
  let told = null;
  try {
    told = (await response.json()).error;
  } catch {
    // Something between us and the server answered in its own words.
  }
  const seconds = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  const message = told?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  throw new Trouble(response.status, told?.kind ?? "unknown", message, Number.isFinite(seconds) ? seconds : null);
}

async function json(path, options) {
  const response = await call(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(0, "gone", "The connection was cut in the middle of an answer.", null);
  }
}

function form(request, pictures) {
  const body = new FormData();
  body.append("request", JSON.stringify(request));
  for (const picture of pictures) body.append("images", picture);
  return body;
}

const withPictures = (path) => (request, pictures, signal) =>
  json(path, { method: "POST", body: form(request, pictures), signal });

export const score = withPictures("v1/score_images");
export const rank = withPictures("v1/rank");
export const attention = withPictures("v1/attention");
export const models = () => json("v1/models");

// What the server says of itself; "gone" where nobody answers, "waiting" where somebody else does.
export async function health() {
  let response;
  try {
    response = await fetch("healthz", { cache: "no-store" });
  } catch {
    return "gone";
  }
  try {
    return (await response.json()).status ?? "waiting";
  } catch {
    return "waiting";
  }
}

export const arena = {
  pair: (voter) => json(`v1/arena/pair?voter=${encodeURIComponent(voter)}`),
  stats: (voter) => json(`v1/arena/stats?voter=${encodeURIComponent(voter)}`),
  vote: (pair, choice, voter) =>
    json("v1/arena/votes", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ pair, choice, voter }),
    }),
  picture: async (name) => (await call(`v1/arena/pictures/${name}`, { cache: "default" })).blob(),
  export: async (format) => (await call(`v1/arena/export?format=${format}`)).blob(),
};
