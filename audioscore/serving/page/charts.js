// The scale with its bands, and the score over time; both use the same range, so that two recordings are comparable.

import { clock, text } from "./strings.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 1000; // of a chart in its own units, scaled to the width of the page
const HEIGHT = 100;
export const LEVEL = 90; // confidence level of the intervals, in per cent

/** 87.34 -> "87.3" */
export function points(score) {
  return score.toFixed(1);
}

/** The band of a score; a band includes its lower limit, the last band both limits. */
export function bandOf(score, bands) {
  return bands.find(([, high]) => score < high) ?? bands[bands.length - 1];
}

/** Text with the band of a score. */
export function bandText(score, { scale: [from, to], bands }) {
  if (score < from) {
    return text("below", { low: from });
  }
  if (score > to) {
    return text("above", { high: to });
  }
  const [low, high] = bandOf(score, bands);
  return text("band", { low: Math.max(low, from), high: Math.min(high, to) });
}

/** Draw bands, interval and score on the scale in `container`. */
export function drawScale(container, { score, interval: [low, high] }, { scale: [from, to], bands }) {
  const at = (value) => ((Math.min(Math.max(value, from), to) - from) / (to - from)) * 100;
  const part = (name, left, right) => {
    const element = document.createElement("div");
    element.className = name;
    element.style.left = `${left}%`;
    if (right !== undefined) {
      element.style.width = `${right - left}%`;
    }
    return element;
  };
  const own = bandOf(Math.min(Math.max(score, from), to), bands);
  const visible = bands.filter(([start, end]) => end > from && start < to);
  const parts = visible.map((band) => part(band === own ? "segment own" : "segment", at(band[0]), at(band[1])));
  for (const edge of new Set([from, ...visible.map(([start]) => Math.max(start, from)), to])) {
    const label = part("edge", at(edge));
    label.textContent = edge;
    parts.push(label);
  }
  parts.push(part("reach", at(low), at(high)), part("mark", at(score)));
  container.replaceChildren(...parts);
  const values = { score: points(score), from, to, low: points(low), high: points(high) };
  container.setAttribute("aria-label", text("scale", values));
}

/** Draw the score over time in `container`, as wide as the waveform; returns a function that moves its cursor. */
export function drawTimeline(container, { timeline, score, seconds }, { scale: [from, to] }, onSeek) {
  const x = (second) => (second / seconds) * WIDTH;
  const y = (value) => HEIGHT * (1 - (Math.min(Math.max(value, from), to) - from) / (to - from));
  const chart = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const grid = [60, 70, 80, 90].filter((value) => value > from && value < to);
  for (const value of grid) {
    chart.append(draw("line", { class: "grid-line", x1: 0, x2: WIDTH, y1: y(value), y2: y(value) }));
  }
  chart.append(draw("line", { class: "whole", x1: 0, x2: WIDTH, y1: y(score), y2: y(score) }));
  const middles = timeline.map((segment) => [x((segment.start + segment.end) / 2), y(segment.score)]);
  const path = [[0, middles[0][1]], ...middles, [WIDTH, middles[middles.length - 1][1]]];
  chart.append(draw("polyline", { class: "course", points: path.map((point) => point.join(",")).join(" ") }));
  const cursor = document.createElement("div");
  cursor.className = "cursor";
  container.replaceChildren(...grid.map((value) => gridLabel(value, y(value))), chart, cursor);
  const scores = timeline.map((segment) => segment.score);
  const values = { low: points(Math.min(...scores)), high: points(Math.max(...scores)) };
  container.setAttribute("aria-label", text("chart", values));
  container.onclick = (event) => onSeek((event.offsetX / container.clientWidth) * seconds);
  return (second) => {
    cursor.style.left = `${Math.min(second / seconds, 1) * 100}%`;
  };
}

/** Write the score over time as rows of a table body. */
export function tabulateTimeline(body, timeline) {
  const rows = timeline.map((segment) => {
    const row = document.createElement("tr");
    row.insertCell().textContent = `${clock(segment.start)}–${clock(segment.end)}`;
    row.insertCell().textContent = points(segment.score);
    return row;
  });
  body.replaceChildren(...rows);
}

function gridLabel(value, top) {
  const label = document.createElement("span");
  label.className = "level";
  label.textContent = value;
  label.style.top = `${top}%`;
  return label;
}

function draw(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    element.setAttribute(key, value);
  }
  return element;
}
