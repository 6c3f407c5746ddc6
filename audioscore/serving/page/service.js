// Requests to the service: its model, and the score of a recording.

const RETRY_SECONDS = 5; // if a response has no Retry-After

/** Why a request failed: the key of a text, and the values to fill in. */
export class RequestError extends Error {
  constructor(key, values = {}) {
    super(key);
    this.key = key;
    this.values = values;
  }
}

/** The model, its scale, bands and limits. Throws RequestError. */
export async function fetchModel() {
  const response = await request("model");
  if (!response.ok) {
    throw requestError(response, null);
  }
  return response.json();
}

/** The result of one recording: {score, interval, seconds, notes, error, timeline}. Throws RequestError or AbortError. */
export async function scoreRecording(audio, { token, limits, signal }) {
  if (limits && audio.size > limits.megabytes * 2 ** 20) {
    throw new RequestError("status413", { megabytes: limits.megabytes });
  }
  const body = new FormData();
  body.append("file", audio, "recording"); // the name of the file stays in the browser
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await request("score?timeline=true", { method: "POST", body, headers, signal });
  if (!response.ok) {
    throw requestError(response, limits);
  }
  const { results } = await response.json();
  return results[0];
}

async function request(path, options = {}) {
  try {
    return await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    throw error.name === "AbortError" ? error : new RequestError("unreachable");
  }
}

function requestError(response, limits) {
  const seconds = Number(response.headers.get("Retry-After")) || RETRY_SECONDS;
  const hasText = [400, 401, 408, 413, 429, 503].includes(response.status);
  const values = { status: response.status, seconds, megabytes: limits?.megabytes };
  return new RequestError(hasText ? `status${response.status}` : "statusOther", values);
}
