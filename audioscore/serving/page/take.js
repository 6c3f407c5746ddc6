// One take: a recording taken in, scored, shown. What is shown is always drawn from what is known, in either language.

import { LEVEL, drawScale, drawTimeline, points, standing, tabulateTimeline } from "./charts.js";
import { refusal } from "./refusals.js";
import { Refused } from "./service.js";
import { clock, fillTexts, language, text } from "./strings.js";
import { colours, drawRecording, recordMicrophone, whyNoMicrophone } from "./waveform.js";

export class Take {
  /** `score(recording, signal)` asks the service and gives {result, model}; `changed()` is told of every answer. */
  constructor(number, { score, changed, longest }) {
    this.number = number;
    this.score = score;
    this.changed = changed;
    this.longest = longest; // () => seconds, after which a recording ends by itself
    const template = document.getElementById("take").content;
    this.root = template.querySelector("article").cloneNode(true);
    this.find = (selector) => this.root.querySelector(selector);
    this.forget();
    this.listen();
  }

  /** The answer with its model, where there is a score. */
  get scored() {
    return this.answer?.result.error === null ? this.answer : null;
  }

  forget() {
    this.work?.abort();
    this.wave?.destroy();
    Object.assign(this, { work: null, wave: null, recording: null, name: "", answer: null, fault: null, follow: null });
    Object.assign(this, { microphone: null, elapsed: 0, drawable: true });
    this.find("audio").removeAttribute("src");
  }

  listen() {
    this.find(".record").addEventListener("click", () => this.recordOrStop());
    this.find(".choose").addEventListener("click", () => this.find(".file").click());
    this.find(".file").addEventListener("change", ({ target }) => {
      if (target.files.length > 0) {
        this.take(target.files[0]);
      }
      target.value = ""; // so that the same file can be chosen again
    });
    this.find(".clear").addEventListener("click", () => {
      this.microphone?.cancel();
      this.forget();
      this.show();
      this.changed();
      this.find(".record").focus();
    });
    this.find(".again").addEventListener("click", () => this.ask());
    for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
      this.root.addEventListener(kind, (event) => this.dragged(event));
    }
  }

  dragged(event) {
    event.preventDefault();
    const over = event.type === "dragenter" || event.type === "dragover";
    this.root.classList.toggle("over", over);
    if (event.type === "drop" && event.dataTransfer.files.length > 0 && !this.microphone) {
      this.take(event.dataTransfer.files[0]);
    }
  }

  async recordOrStop() {
    if (this.microphone) {
      const { microphone } = this;
      this.microphone = null;
      this.take(await microphone.stop());
      return;
    }
    this.forget();
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
        onTime: (seconds) => this.heard(seconds),
        onLost: () => this.microphone && this.recordOrStop(),
      });
    } catch (fault) {
      this.fail(await whyNoMicrophone(), { reason: fault.message });
    }
    button.disabled = false;
    this.show();
  }

  heard(seconds) {
    const whole = Math.floor(seconds) !== Math.floor(this.elapsed);
    this.elapsed = seconds;
    if (this.microphone && seconds >= this.longest()) {
      this.recordOrStop();
    } else if (whole) {
      this.show();
    }
  }

  /** Show a recording, and have it scored. */
  take(recording) {
    this.forget();
    this.recording = recording;
    this.name = recording.name ?? "";
    this.find(".sound").hidden = false; // wavesurfer.js measures it
    this.wave = drawRecording(this.find(".wave"), this.find("audio"), recording, {
      onTime: (second) => this.follow?.(second),
      onFault: () => {
        this.drawable = this.recording !== recording;
        this.show();
      },
    });
    this.ask();
  }

  async ask() {
    const work = new AbortController();
    Object.assign(this, { work, answer: null, fault: null });
    this.show();
    try {
      this.answer = await this.score(this.recording, work.signal);
    } catch (fault) {
      if (work.signal.aborted) {
        return;
      }
      this.fault = fault instanceof Refused ? fault : new Refused("statusOther", { status: fault.message });
    }
    if (this.work !== work) {
      return; // another recording has taken this one's place
    }
    this.work = null;
    this.show();
    this.changed();
  }

  fail(key, values) {
    this.fault = new Refused(key, values);
    this.show();
  }

  /** Draw what is known. */
  show() {
    fillTexts(this.root);
    this.find("h2").textContent = text("take", { number: this.number });
    this.find(".record").textContent = text(this.microphone ? "stop" : "record");
    this.find(".record").classList.toggle("running", this.microphone !== null);
    this.find(".choose").disabled = this.microphone !== null;
    this.find(".live").hidden = this.microphone === null;
    this.find(".clear").hidden = !(this.recording || this.microphone || this.fault);
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
    status.setAttribute("aria-live", this.microphone ? "off" : "polite"); // no voice may count into the microphone
    status.setAttribute("aria-busy", String(this.work !== null));
    const fault = this.find(".fault");
    const refused = this.answer?.result.error;
    fault.textContent = this.fault ? text(this.fault.key, this.fault.values) : refused ? refusal(refused, language()) : "";
    fault.hidden = fault.textContent === "";
    this.find(".again").hidden = !(this.fault && this.recording);
  }

  showSound() {
    this.find(".sound").hidden = this.recording === null;
    this.find(".name").textContent = this.name;
    this.find(".wave").hidden = this.find("audio").hidden = !this.drawable;
    this.find(".undrawn").hidden = this.drawable;
  }

  showAnswer() {
    const { result, model } = this.scored ?? {};
    const timed = Boolean(result?.timeline?.length);
    this.find(".answer").hidden = !result;
    for (const part of [".chart", ".caption", ".moments"]) {
      this.find(part).hidden = !timed;
    }
    if (!result) {
      return;
    }
    const [low, high] = result.interval.map(points);
    this.find(".score").textContent = points(result.score);
    this.find(".interval").textContent = text("interval", { level: LEVEL, low, high });
    this.find(".band").textContent = standing(result.score, model);
    drawScale(this.find(".scale"), result, model);
    if (timed) {
      const seek = (second) => this.drawable && this.wave.setTime(second);
      this.follow = drawTimeline(this.find(".chart"), result, model, seek);
      tabulateTimeline(this.find(".moments tbody"), result.timeline);
    }
  }

  recolour() {
    this.wave?.setOptions(colours());
  }
}
