// Waveforms by wavesurfer.js, of recordings and of the microphone, under a policy that allows no inline style.

import Recorder from "./vendor/wavesurfer-record.esm.js";
import Ruler from "./vendor/wavesurfer-timeline.esm.js";
import WaveSurfer from "./vendor/wavesurfer.esm.js";
import { clock } from "./strings.js";

const HEIGHT = 72; // CSS pixels
const RULER_HEIGHT = 20;
// Singing is to be heard as it is sung, not as a telephone call: no suppression, no automatic gain.
const AS_SUNG = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };

/** The waveform of a recording in `place`, played by the `player` element. `onTime(seconds)` follows it. */
export function drawRecording(place, player, recording, { onTime, onFault }) {
  const wave = create(place, {
    media: player,
    plugins: [Ruler.create({ height: RULER_HEIGHT, secondaryLabelOpacity: 0.8, formatTimeCallback: clock })],
  });
  wave.on("timeupdate", onTime);
  wave.loadBlob(recording).catch(onFault);
  return wave;
}

/** Start recording the microphone, drawn in `place`. Throws where it cannot; `whyNoMicrophone` tells more.
 *
 * Returns {stop, cancel}: stop() gives the recording as the browser encodes it, cancel() throws it away.
 */
export async function recordMicrophone(place, { onTime, onLost }) {
  const recorder = Recorder.create({ renderRecordedAudio: false, scrollingWaveform: true });
  const wave = create(place, { plugins: [recorder], interact: false });
  recorder.on("record-progress", (milliseconds) => onTime(milliseconds / 1000));
  const ended = new Promise((resolve) => recorder.on("record-end", resolve));
  try {
    await recorder.startRecording(AS_SUNG);
  } catch (fault) {
    wave.destroy();
    throw fault;
  }
  recorder.on("record-ended-externally", onLost);
  return {
    async stop() {
      if (recorder.isRecording()) {
        recorder.stopRecording();
      }
      const recording = await ended;
      wave.destroy();
      return recording;
    },
    cancel: () => wave.destroy(),
  };
}

/** Key of the text that says why the microphone could not be had: what wavesurfer.js throws tells it to nobody. */
export async function whyNoMicrophone() {
  const devices = await navigator.mediaDevices.enumerateDevices();
  if (!devices.some((device) => device.kind === "audioinput")) {
    return "noMicrophone";
  }
  try {
    const permission = await navigator.permissions.query({ name: "microphone" });
    return permission.state === "denied" ? "denied" : "notRecorded";
  } catch {
    return "notRecorded"; // not every browser can be asked
  }
}

/** The colours of waveforms, as the page's style sheet has them for light or dark. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { waveColor: of("--wave"), progressColor: of("--played"), cursorColor: of("--ink") };
}

function create(place, options) {
  // wavesurfer.js styles itself by a style element. A page that allows none must take it out before it is shown, and
  // hand its text to the shadow root as a sheet.
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
  place.replaceChildren(host);
  return wave;
}
