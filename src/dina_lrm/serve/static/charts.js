// Charts as SVG in the width of their place, drawn again when that changes.

import { number, svg } from "./dom.js";

const SERIES = 6; // colours; a further candidate has one of them again, and a number of its own
const DASHES = ["", "7 4", "2 4"];

export const colour = (place) => `s${place % SERIES}`;
const dash = (place) => DASHES[Math.floor(place / SERIES) % DASHES.length];

const drawings = new WeakMap();
const watcher = new ResizeObserver((entries) => {
  for (const entry of entries) redraw(entry.target);
});

function redraw(place) {
  const render = drawings.get(place);
  if (render && place.clientWidth) place.replaceChildren(render(place.clientWidth));
}

// Keep `place` filled with what `render(width)` draws.
export function draw(place, render) {
  drawings.set(place, render);
  watcher.observe(place);
  redraw(place);
}

export function drop(place, ...children) {
  drawings.delete(place);
  watcher.unobserve(place);
  place.replaceChildren(...children);
}

// Round steps of an axis: about `count` of them between low and high.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const far = (one) => Math.abs(Math.log((one * power) / rough));
  const step = power * [1, 2, 5, 10].reduce((best, one) => (far(one) < far(best) ? one : best));
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + step * 1e-6; tick += 1) found.push(tick * step);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

function picture(width, height, label) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
}

// A share with its interval on a line from 0 to 1; `band` shades what counts as a tie, `mark` is what was expected.
export function shareChart(place, share, interval, { band = 0, mark = null, label }) {
  draw(place, (width) => {
    const x = (value) => 10 + (width - 20) * value;
    const made = picture(width, 42, label);
    made.classList.add("s0");
    made.append(svg("line", { x1: x(0), x2: x(1), y1: 14, y2: 14, class: "rule", "stroke-width": 6, "stroke-linecap": "round" }));
    if (band) made.append(svg("rect", { x: x(0.5 - band), width: x(2 * band) - x(0), y: 4, height: 20, rx: 4, fill: "var(--shade)" }));
    made.append(svg("line", { x1: x(0.5), x2: x(0.5), y1: 4, y2: 24, class: "axis" }));
    const [low, high] = interval.map(x);
    made.append(svg("line", { x1: low, x2: high, y1: 14, y2: 14, stroke: "currentColor", "stroke-width": 6, "stroke-opacity": 0.45, "stroke-linecap": "round" }));
    if (mark !== null) made.append(svg("line", { x1: x(mark), x2: x(mark), y1: 3, y2: 25, stroke: "var(--ink)", "stroke-width": 2, "stroke-dasharray": "3 2" }));
    if (share !== null) made.append(svg("circle", { cx: x(share), cy: 14, r: 7, fill: "currentColor", stroke: "var(--surface)", "stroke-width": 2 }));
    for (const [tick, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
      made.append(svg("text", { x: x(tick) + { start: -4, middle: 0, end: 4 }[anchor], y: 40, "text-anchor": anchor }, String(tick)));
    }
    return made;
  });
}

// One value with its interval among others on a common axis from `low` to `high`.
export function whisker(place, value, interval, low, high, series) {
  draw(place, (width) => {
    const room = high - low || 1;
    const x = (at) => 8 + ((width - 16) * (at - low)) / room;
    const made = svg("svg", { viewBox: `0 0 ${width} 20`, width, height: 20, "aria-hidden": "true", class: colour(series) });
    made.append(svg("line", { x1: 4, x2: width - 4, y1: 10, y2: 10, class: "rule", "stroke-width": 2, "stroke-linecap": "round" }));
    made.append(svg("line", { x1: x(interval[0]), x2: x(interval[1]), y1: 10, y2: 10, stroke: "currentColor", "stroke-width": 5, "stroke-opacity": 0.45, "stroke-linecap": "round" }));
    made.append(svg("circle", { cx: x(value), cy: 10, r: 5, fill: "currentColor", stroke: "var(--surface)", "stroke-width": 1.5 }));
    return made;
  });
}

// Utility over sigma, a line a candidate: `lines` are {name, series, points: [{sigma, mean, low, high}]}.
export function curve(place, lines, sigmas, label) {
  draw(place, (width) => {
    const height = Math.max(220, Math.min(330, width * 0.5));
    const edge = { left: 42, right: 30, top: 10, bottom: 36 };
    const points = lines.flatMap((line) => line.points);
    let low = Math.min(...points.map((point) => point.low));
    let high = Math.max(...points.map((point) => point.high));
    const pad = (high - low || 1) * 0.06;
    [low, high] = [low - pad, high + pad];
    const x = (sigma) => edge.left + (width - edge.left - edge.right) * sigma;
    const y = (value) => height - edge.bottom - ((height - edge.top - edge.bottom) * (value - low)) / (high - low);
    const made = picture(width, height, label);
    const axis = ticks(low, high, 5);
    for (const tick of axis.found) {
      made.append(svg("line", { x1: x(0), x2: x(1), y1: y(tick), y2: y(tick), class: "rule" }));
      made.append(svg("text", { x: x(0) - 8, y: y(tick) + 4, "text-anchor": "end" }, number(tick, axis.digits)));
    }
    for (const tick of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
      made.append(svg("text", { x: x(tick), y: height - edge.bottom + 17, "text-anchor": "middle" }, String(tick)));
    }
    made.append(svg("text", { x: x(0.5), y: height - 3, "text-anchor": "middle" }, "noise level"));
    for (const sigma of sigmas) {
      made.append(svg("line", { x1: x(sigma), x2: x(sigma), y1: edge.top, y2: height - edge.bottom, class: "axis", "stroke-dasharray": "2 3" }));
    }
    for (const line of lines) made.append(drawnLine(line, x, y));
    made.append(...names(lines, x, y));
    return made;
  });
}

function drawnLine(line, x, y) {
  const group = svg("g", { class: colour(line.series) });
  const path = (points, value) => points.map((point) => `${x(point.sigma).toFixed(1)} ${y(value(point)).toFixed(1)}`);
  const upper = path(line.points, (point) => point.high);
  const lower = path([...line.points].reverse(), (point) => point.low);
  group.append(svg("path", { d: `M${[...upper, ...lower].join("L")}Z`, fill: "currentColor", "fill-opacity": 0.1 }));
  const middle = path(line.points, (point) => point.mean);
  group.append(svg("path", { d: `M${middle.join("L")}`, fill: "none", stroke: "currentColor", "stroke-width": 2.2, "stroke-linejoin": "round", "stroke-dasharray": dash(line.series) }));
  for (const point of line.points) {
    const told = `${line.name}, noise ${point.sigma}: ${number(point.mean)} (${number(point.low)} to ${number(point.high)})`;
    group.append(svg("circle", { cx: x(point.sigma), cy: y(point.mean), r: 3.2, fill: "currentColor" }, svg("title", {}, told)));
  }
  return group;
}

// Numbers of the candidates at the right ends of their lines, moved apart where they would meet.
function names(lines, x, y) {
  const placed = lines
    .map((line) => ({ line, at: y(line.points.at(-1).mean), x: x(line.points.at(-1).sigma) + 10 }))
    .sort((a, b) => a.at - b.at);
  for (let i = 1; i < placed.length; i += 1) placed[i].at = Math.max(placed[i].at, placed[i - 1].at + 14);
  return placed.map(({ line, at, x: left }) =>
    svg("text", { x: left, y: at + 4, class: colour(line.series), fill: "currentColor", "font-weight": 650 }, line.short),
  );
}
