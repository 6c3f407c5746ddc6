// One recording on the page: recorded or chosen, scored, and shown in the current language.

import { LEVEL, bandText, drawScale, drawTimeline, points, tabulateTimeline } from "./charts.js";
import { note, refusal } from "./refusals.js";
import { RequestError } from "./service.js";
import { clock, fillTexts, language, text } from "./strings.js";
import { colours, drawRecording, microphoneError, recordMicrophone } from "./waveform.js";

function listItem(content) {
  const item = document.createElement("li");
  item.textContent = content;
  return item;
}

export class RecordingCard {
  /** `score(audio, signal)` returns {result, model} from the service; `changed()` is called after each result. */
  constructor(number, { score, changed, longest }) {
    this.number = number;
    this.score = score;
    this.changed = changed;
    this.longest = longest; // () => seconds, after which recording stops
    const template = document.getElementById("recording").content;
    this.root = template.querySelector("article").cloneNode(true);
    this.find = (selector) => this.root.querySelector(selector);
    this.clear();
    this.addListeners();
  }

  /** The result with its model, if there is a score. */
  get scored() {
    return this.answer?.result.error === null ? this.answer : null;
  }

  clear() {
    this.work?.abort();
    this.wave?.destroy();
    Object.assign(this, { work: null, wave: null, audio: null, name: "", answer: null, error: null, follow: null });
    Object.assign(this, { microphone: null, elapsed: 0, drawable: true });
    this.find("audio").removeAttribute("src");
  }

  addListeners() {
    this.find(".record").addEventListener("click", () => this.recordOrStop());
    this.find(".choose").addEventListener("click", () => this.find(".file").click());
    this.find(".file").addEventListener("change", ({ target }) => {
      if (target.files.length > 0) {
        this.use(target.files[0]);
      }
      target.value = ""; // so that the same file can be chosen again
    });
    this.find(".clear").addEventListener("click", () => {
      this.microphone?.cancel();
      this.clear();
      this.show();
      this.changed();
      this.find(".record").focus();
    });
    this.find(".again").addEventListener("click", () => this.requestScore());
    for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
      this.root.addEventListener(kind, (event) => this.onDrag(event));
    }
  }

  onDrag(event) {
    event.preventDefault();
    const over = event.type === "dragenter" || event.type === "dragover";
    this.root.classList.toggle("over", over);
    if (event.type === "drop" && event.dataTransfer.files.length > 0 && !this.microphone) {
      this.use(event.dataTransfer.files[0]);
    }
  }

  async recordOrStop() {
    if (this.microphone) {
      const { microphone } = this;
      this.microphone = null;
      this.use(await microphone.stop());
      return;
    }
    this.clear();
    this.show();
    this.changed();
    if (!navigator.mediaDevices) {
      this.fail("insecure");
      return;
    }
    const button = this.find(".record");
    button.disabled = true;
    try {
      this.find(".live").hidden = false; // wavesurfer.js measures it
      this.microphone = await recordMicrophone(this.find(".live"), {
        onTime: (seconds) => this.onRecordingTime(seconds),
        onLost: () => this.microphone && this.recordOrStop(),
      });
    } catch (error) {
      this.fail(await microphoneError(), { reason: error.message });
    }
    button.disabled = false;
    this.show();
  }

  onRecordingTime(seconds) {
    const whole = Math.floor(seconds) !== Math.floor(this.elapsed);
    this.elapsed = seconds;
    if (this.microphone && seconds >= this.longest()) {
      this.recordOrStop();
    } else if (whole) {
      this.show();
    }
  }

  /** Show an audio file, and request its score. */
  use(audio) {
    this.clear();
    this.audio = audio;
    this.name = audio.name ?? "";
    this.find(".sound").hidden = false; // wavesurfer.js measures it
    this.wave = drawRecording(this.find(".wave"), this.find("audio"), audio, {
      onTime: (second) => this.follow?.(second),
      onError: () => {
        this.drawable = this.audio !== audio;
        this.show();
      },
    });
    this.requestScore();
  }

  async requestScore() {
    const work = new AbortController();
    Object.assign(this, { work, answer: null, error: null });
    this.show();
    try {
      this.answer = await this.score(this.audio, work.signal);
    } catch (error) {
      if (work.signal.aborted) {
        return;
      }
      this.error = error instanceof RequestError ? error : new RequestError("statusOther", { status: error.message });
    }
    if (this.work !== work) {
      return; // replaced by another audio file
    }
    this.work = null;
    this.show();
    this.changed();
  }

  fail(key, values) {
    this.error = new RequestError(key, values);
    this.show();
  }

  /** Draw the current state. */
  show() {
    fillTexts(this.root);
    this.find("h2").textContent = text("heading", { number: this.number });
    this.find(".record").textContent = text(this.microphone ? "stop" : "record");
    this.find(".record").classList.toggle("running", this.microphone !== null);
    this.find(".choose").disabled = this.microphone !== null;
    this.find(".live").hidden = this.microphone === null;
    this.find(".clear").hidden = !(this.audio || this.microphone || this.error);
    this.find(".clear").textContent = text(this.work || this.microphone ? "cancel" : "clear");
    this.showStatus();
    this.showSound();
    this.showAnswer();
  }

  showStatus() {
    const status = this.find(".status");
    status.textContent = this.work ? text("scoring") : "";
    if (this.microphone) {
      status.textContent = text("recording", { time: clock(this.elapsed) });
    }
    status.setAttribute("aria-live", this.microphone ? "off" : "polite"); // a screen reader would be recorded
    status.setAttribute("aria-busy", String(this.work !== null));
    const shown = this.find(".error");
    const refused = this.answer?.result.error;
    shown.textContent = this.error ? text(this.error.key, this.error.values) : refused ? refusal(refused, language()) : "";
    shown.hidden = shown.textContent === "";
    this.find(".again").hidden = !(this.error && this.audio);
  }

  showSound() {
    this.find(".sound").hidden = this.audio === null;
    this.find(".name").textContent = this.name;
    this.find(".wave").hidden = this.find("audio").hidden = !this.drawable;
    this.find(".undrawn").hidden = this.drawable;
  }

  showAnswer() {
    const { result, model } = this.scored ?? {};
    const timed = Boolean(result?.timeline?.length);
    this.find(".answer").hidden = !result;
    for (const part of [".chart", ".caption", ".segments"]) {
      this.find(part).hidden = !timed;
    }
    if (!result) {
      return;
    }
    const [low, high] = result.interval.map(points);
    this.find(".score").textContent = points(result.score);
    this.find(".interval").textContent = text("interval", { level: LEVEL, low, high });
    this.find(".band").textContent = bandText(result.score, model);
    drawScale(this.find(".scale"), result, model);
    this.find(".notes").replaceChildren(...result.notes.map((one) => listItem(note(one, language()))));
    if (timed) {
      const seek = (second) => this.drawable && this.wave.setTime(second);
      this.follow = drawTimeline(this.find(".chart"), result, model, seek);
      tabulateTimeline(this.find(".segments tbody"), result.timeline);
    }
  }

  updateColours() {
    this.wave?.setOptions(colours());
  }
}
