// The page: two recordings, their comparison, the language, and the access token.

import { points } from "./charts.js";
import { RecordingCard } from "./recording.js";
import { RequestError, fetchModel, scoreRecording } from "./service.js";
import { fillTexts, language, switchLanguage, text } from "./strings.js";

const RETRY = 2000; // ms between requests to a service that is starting
const MINUTE = 60; // s
const element = (id) => document.getElementById(id);

let model = null; // the service's last response about its model
let notice = null; // key of the text above the recordings

const cards = [1, 2].map(
  (number) =>
    new RecordingCard(number, {
      score,
      changed: compare,
      longest: () => (model ? model.limits.minutes * MINUTE : Infinity),
    }),
);

async function score(audio, signal) {
  await loadModel();
  const token = element("token").value.trim();
  try {
    const result = await scoreRecording(audio, { token, limits: model.limits, signal });
    return { result, model };
  } catch (error) {
    if (error instanceof RequestError && error.key === "status401") {
      element("token-form").hidden = false;
      element("token").focus();
    }
    throw error;
  }
}

async function loadModel() {
  model = await fetchModel();
  notice = null;
  element("token-form").hidden = !model.token_required;
  show();
}

/** Poll until the service has a model. */
async function awaitModel() {
  try {
    await loadModel();
  } catch (error) {
    notice = error.key === "status503" ? "loading" : error.key;
    show();
    setTimeout(awaitModel, RETRY);
  }
}

function compare() {
  const both = cards.map((card) => card.scored?.result);
  const section = element("comparison");
  section.hidden = !both.every(Boolean);
  if (section.hidden) {
    return;
  }
  const [better, worse] = both[0].score >= both[1].score ? [0, 1] : [1, 0];
  const difference = points(both[better].score - both[worse].score);
  const values = { better: better + 1, worse: worse + 1, points: difference };
  const overlap = both[better].interval[0] <= both[worse].interval[1];
  const sentences = [text(difference === points(0) ? "same" : "higher", values), text(overlap ? "overlap" : "apart")];
  section.querySelector(".verdict").textContent = sentences.join(language() === "zh" ? "" : " ");
}

function show() {
  document.documentElement.lang = language() === "zh" ? "zh-CN" : "en";
  document.title = text("title");
  fillTexts(document);
  element("language").textContent = text("language");
  element("language").setAttribute("aria-label", text("languageLabel"));
  element("language").lang = language() === "zh" ? "en" : "zh-CN";
  element("notice").textContent = notice ? text(notice) : "";
  element("model").textContent = model ? modelLine() : "";
  compare();
}

function modelLine() {
  const { minutes, megabytes } = model.limits;
  const version = model.version === null ? "" : ` v${model.version}`;
  return text("model", { ...model, version, minutes: Math.round(minutes * 10) / 10, megabytes });
}

element("recordings").append(...cards.map((card) => card.root));
element("language").addEventListener("click", () => {
  switchLanguage();
  show();
  cards.forEach((card) => card.show());
});
element("token-form").addEventListener("submit", (event) => event.preventDefault());
// A file that is dropped outside of the recordings must not replace the page.
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => event.preventDefault());
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => cards.forEach((card) => card.updateColours()));
show();
cards.forEach((card) => card.show());
awaitModel();
