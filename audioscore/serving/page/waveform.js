// Waveforms of recordings and of the microphone with wavesurfer.js, under a policy that allows no inline styles.

import Recorder from "./vendor/wavesurfer-record.esm.js";
import Ruler from "./vendor/wavesurfer-timeline.esm.js";
import WaveSurfer from "./vendor/wavesurfer.esm.js";
import { clock } from "./strings.js";

const HEIGHT = 72; // CSS pixels
const RULER_HEIGHT = 20;
// The processing for telephone calls would change the singing: no noise suppression, no automatic gain.
const UNPROCESSED = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };

/** Draw the waveform of an audio file in `container`; `player` plays it, and `onTime(seconds)` follows it. */
export function drawRecording(container, player, audio, { onTime, onError }) {
  const wave = create(container, {
    media: player,
    plugins: [Ruler.create({ height: RULER_HEIGHT, secondaryLabelOpacity: 0.8, formatTimeCallback: clock })],
  });
  wave.on("timeupdate", onTime);
  wave.loadBlob(audio).catch(onError);
  return wave;
}

/** Start recording the microphone, drawn in `container`. Throws if that is not possible, see `microphoneError`.
 *
 * Returns {stop, cancel}: stop() returns the audio as the browser encodes it, cancel() deletes it.
 */
export async function recordMicrophone(container, { onTime, onLost }) {
  const recorder = Recorder.create({ renderRecordedAudio: false, scrollingWaveform: true });
  const wave = create(container, { plugins: [recorder], interact: false });
  recorder.on("record-progress", (milliseconds) => onTime(milliseconds / 1000));
  const ended = new Promise((resolve) => recorder.on("record-end", resolve));
  try {
    await recorder.startRecording(UNPROCESSED);
  } catch (error) {
    wave.destroy();
    throw error;
  }
  recorder.on("record-ended-externally", onLost);
  return {
    async stop() {
      if (recorder.isRecording()) {
        recorder.stopRecording();
      }
      const audio = await ended;
      wave.destroy();
      return audio;
    },
    cancel: () => wave.destroy(),
  };
}

/** Key of the text why the microphone is not available; the error of wavesurfer.js does not contain the reason. */
export async function microphoneError() {
  const devices = await navigator.mediaDevices.enumerateDevices();
  if (!devices.some((device) => device.kind === "audioinput")) {
    return "noMicrophone";
  }
  try {
    const permission = await navigator.permissions.query({ name: "microphone" });
    return permission.state === "denied" ? "denied" : "notRecorded";
  } catch {
    return "notRecorded"; // some browsers do not support this query
  }
}

/** The colours of waveforms, from the style sheet of the page for light or dark mode. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { waveColor: of("--wave"), progressColor: of("--played"), cursorColor: of("--ink") };
}

function create(container, options) {
  // wavesurfer.js adds an inline style element, which the policy blocks: remove it before it is attached, and adopt its
  // text as a style sheet of the shadow root.
  const host = document.createElement("div");
  const wave = WaveSurfer.create({
    container: host,
    height: HEIGHT,
    barWidth: 2,
    barGap: 1,
    barRadius: 1,
    normalize: true,
    ...colours(),
    ...options,
  });
  const root = wave.getWrapper().getRootNode();
  const own = root.querySelector("style");
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(own.textContent);
  root.adoptedStyleSheets = [sheet];
  own.remove();
  container.replaceChildren(host);
  return wave;
}
