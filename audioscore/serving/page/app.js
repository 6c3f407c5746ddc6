// The page: two takes, what they are compared by, the language, the token.

import { points } from "./charts.js";
import { Refused, askModel, scoreRecording } from "./service.js";
import { fillTexts, language, switchLanguage, text } from "./strings.js";
import { Take } from "./take.js";

const PATIENCE = 2000; // ms between questions to a service that is starting
const MINUTE = 60; // s
const element = (id) => document.getElementById(id);

let model = null; // what the service said last of its model
let notice = null; // key of the text over the takes

const takes = [1, 2].map(
  (number) =>
    new Take(number, {
      score,
      changed: compare,
      longest: () => (model ? model.limits.minutes * MINUTE : Infinity),
    }),
);

async function score(recording, signal) {
  await meetModel();
  const token = element("token").value.trim();
  try {
    const result = await scoreRecording(recording, { token, limits: model.limits, signal });
    return { result, model };
  } catch (fault) {
    if (fault instanceof Refused && fault.key === "status401") {
      element("token-form").hidden = false;
      element("token").focus();
    }
    throw fault;
  }
}

async function meetModel() {
  model = await askModel();
  notice = null;
  element("token-form").hidden = !model.token_required;
  show();
}

/** Ask for the model until the service has one. */
async function awaitModel() {
  try {
    await meetModel();
  } catch (fault) {
    notice = fault.key === "status503" ? "loading" : fault.key;
    show();
    setTimeout(awaitModel, PATIENCE);
  }
}

function compare() {
  const both = takes.map((take) => take.scored?.result);
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

element("takes").append(...takes.map((take) => take.root));
element("language").addEventListener("click", () => {
  switchLanguage();
  show();
  takes.forEach((take) => take.show());
});
element("token-form").addEventListener("submit", (event) => event.preventDefault());
// A file that misses a take shall not replace the page.
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => event.preventDefault());
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => takes.forEach((take) => take.recolour()));
show();
takes.forEach((take) => take.show());
awaitModel();
