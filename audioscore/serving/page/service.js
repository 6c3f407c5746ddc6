// The service behind the page: which model it has, and what it answers about a recording.

const RETRY_SECONDS = 5; // where a busy service does not say when to come back

/** Why there is no answer: the key of a text, and what to fill in. */
export class Refused extends Error {
  constructor(key, values = {}) {
    super(key);
    this.key = key;
    this.values = values;
  }
}

/** The model, its scale, bands and limits. Throws Refused. */
export async function askModel() {
  const answer = await reach("model");
  if (!answer.ok) {
    throw refused(answer, null);
  }
  return answer.json();
}

/** One recording's result: {score, interval, seconds, error, timeline}. Throws Refused, or AbortError. */
export async function scoreRecording(recording, { token, limits, signal }) {
  if (limits && recording.size > limits.megabytes * 2 ** 20) {
    throw new Refused("status413", { megabytes: limits.megabytes });
  }
  const body = new FormData();
  body.append("file", recording, "recording"); // its own name says nothing about how it is sung
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await reach("score?timeline=true", { method: "POST", body, headers, signal });
  if (!answer.ok) {
    throw refused(answer, limits);
  }
  const { results } = await answer.json();
  return results[0];
}

async function reach(path, options = {}) {
  try {
    return await fetch(path, { cache: "no-store", ...options });
  } catch (fault) {
    throw fault.name === "AbortError" ? fault : new Refused("unreachable");
  }
}

function refused(answer, limits) {
  const seconds = Number(answer.headers.get("Retry-After")) || RETRY_SECONDS;
  const known = [400, 401, 408, 413, 429, 503].includes(answer.status);
  const values = { status: answer.status, seconds, megabytes: limits?.megabytes };
  return new Refused(known ? `status${answer.status}` : "statusOther", values);
}
