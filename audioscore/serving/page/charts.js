// The scale with its bands, and the score over time: both from 50 to 99, so that two takes can be compared by eye.

import { clock, text } from "./strings.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 1000; // of a chart's own units, stretched to the page's width
const HEIGHT = 100;
export const LEVEL = 90; // per cent, of the interval beside every score

/** 87.34 -> "87.3" */
export function points(score) {
  return score.toFixed(1);
}

/** The band a score falls in; a band holds its lower edge, the last one both. */
export function bandOf(score, bands) {
  return bands.find(([, high]) => score < high) ?? bands[bands.length - 1];
}

/** In words, where a score stands on the scale. */
export function standing(score, { scale: [from, to], bands }) {
  if (score < from) {
    return text("below", { low: from });
  }
  if (score > to) {
    return text("above", { high: to });
  }
  const [low, high] = bandOf(score, bands);
  return text("band", { low: Math.max(low, from), high: Math.min(high, to) });
}

/** Bands, interval and score on the scale, in `place`. */
export function drawScale(place, { score, interval: [low, high] }, { scale: [from, to], bands }) {
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
  const seen = bands.filter(([start, end]) => end > from && start < to);
  const parts = seen.map((band) => part(band === own ? "segment own" : "segment", at(band[0]), at(band[1])));
  for (const edge of new Set([from, ...seen.map(([start]) => Math.max(start, from)), to])) {
    const label = part("edge", at(edge));
    label.textContent = edge;
    parts.push(label);
  }
  parts.push(part("reach", at(low), at(high)), part("mark", at(score)));
  place.replaceChildren(...parts);
  const values = { score: points(score), from, to, low: points(low), high: points(high) };
  place.setAttribute("aria-label", text("scale", values));
}

/** The score over time in `place`, as wide as the waveform above it; returns a function that moves its cursor. */
export function drawTimeline(place, { timeline, score, seconds }, { scale: [from, to] }, onSeek) {
  const x = (second) => (second / seconds) * WIDTH;
  const y = (value) => HEIGHT * (1 - (Math.min(Math.max(value, from), to) - from) / (to - from));
  const chart = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const grid = [60, 70, 80, 90].filter((value) => value > from && value < to);
  for (const value of grid) {
    chart.append(draw("line", { class: "grid-line", x1: 0, x2: WIDTH, y1: y(value), y2: y(value) }));
  }
  chart.append(draw("line", { class: "whole", x1: 0, x2: WIDTH, y1: y(score), y2: y(score) }));
  const middles = timeline.map((moment) => [x((moment.start + moment.end) / 2), y(moment.score)]);
  const path = [[0, middles[0][1]], ...middles, [WIDTH, middles[middles.length - 1][1]]];
  chart.append(draw("polyline", { class: "course", points: path.map((point) => point.join(",")).join(" ") }));
  const cursor = document.createElement("div");
  cursor.className = "cursor";
  place.replaceChildren(...grid.map((value) => levelLabel(value, y(value))), chart, cursor);
  const scores = timeline.map((moment) => moment.score);
  const values = { low: points(Math.min(...scores)), high: points(Math.max(...scores)) };
  place.setAttribute("aria-label", text("chart", values));
  place.onclick = (event) => onSeek((event.offsetX / place.clientWidth) * seconds);
  return (second) => {
    cursor.style.left = `${Math.min(second / seconds, 1) * 100}%`;
  };
}

/** The same as rows of a table body. */
export function tabulateTimeline(body, timeline) {
  const rows = timeline.map((moment) => {
    const row = document.createElement("tr");
    row.insertCell().textContent = `${clock(moment.start)}–${clock(moment.end)}`;
    row.insertCell().textContent = points(moment.score);
    return row;
  });
  body.replaceChildren(...rows);
}

function levelLabel(value, top) {
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
