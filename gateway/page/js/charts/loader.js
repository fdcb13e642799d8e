// Reads metrics as their charts come into view: a few names per request, a few requests at a time, with backoff.

import { backoff } from "../backoff.js";

const BATCH_NAMES = 8;
const BATCH_CHARACTERS = 3000;
const REQUESTS = 3;

/**
 * Loads metrics in batches: `read(jobId, names, signal)` requests and stores them; `onChange()` is called after each
 * request.
 */
export class MetricLoader {
  constructor(read, onChange) {
    Object.assign(this, { read, onChange });
    this.wanted = [];
    this.running = new Map();
    this.failures = new Map();
  }

  /** Load the metrics `{jobId, name}` in this order; earlier wanted metrics that are not among them are dropped. */
  request(wanted) {
    this.wanted = wanted;
    this.#start();
  }

  /** Cancel all requests and clear all errors. */
  reset() {
    clearTimeout(this.timer);
    this.wanted = [];
    this.failures.clear();
    for (const { abort } of new Set(this.running.values())) abort.abort();
    this.running.clear();
  }

  /** Retry failed metrics now. */
  retryNow() {
    for (const failure of this.failures.values()) failure.retryAt = 0;
    this.#start();
  }

  /** Return the error of the last request for a metric, null if there is none. */
  problem(jobId, name) {
    return this.failures.get(keyOf({ jobId, name }))?.problem ?? null;
  }

  #start() {
    clearTimeout(this.timer);
    while (new Set(this.running.values()).size < REQUESTS) {
      const batch = this.#batch();
      if (!batch.length) break;
      this.#run(batch);
    }
    const times = this.wanted.map((piece) => this.failures.get(keyOf(piece))?.retryAt).filter(Boolean);
    if (times.length && !this.running.size)
      this.timer = setTimeout(() => this.#start(), Math.max(50, Math.min(...times) - Date.now()));
  }

  // A metric that failed is read alone: it may be the one that takes too long.
  #batch() {
    const idle = this.wanted.filter((piece) => !this.running.has(keyOf(piece)));
    const fresh = idle.filter((piece) => !this.failures.has(keyOf(piece)));
    const again = idle.find((piece) => this.failures.get(keyOf(piece))?.retryAt <= Date.now());
    if (!fresh.length) return again ? [again] : [];
    let characters = 0;
    return fresh
      .filter(({ jobId }) => jobId === fresh[0].jobId)
      .slice(0, BATCH_NAMES)
      .filter(({ name }, index) => (characters += name.length) <= BATCH_CHARACTERS || index === 0);
  }

  async #run(batch) {
    const request = { abort: new AbortController() };
    for (const piece of batch) this.running.set(keyOf(piece), request);
    let problem = null;
    try {
      await this.read(
        batch[0].jobId,
        batch.map(({ name }) => name),
        request.abort.signal,
      );
    } catch (error) {
      problem = error;
    }
    if (request.abort.signal.aborted) return;
    for (const piece of batch) {
      const key = keyOf(piece);
      this.running.delete(key);
      if (problem) this.#fail(key, problem);
      else this.failures.delete(key);
    }
    // `request` may have replaced the pieces by equal ones meanwhile.
    const loaded = new Set(problem ? [] : batch.map(keyOf));
    this.wanted = this.wanted.filter((piece) => !loaded.has(keyOf(piece)));
    this.#start();
    this.onChange();
  }

  #fail(key, problem) {
    const tries = (this.failures.get(key)?.tries ?? 0) + 1;
    this.failures.set(key, { tries, problem, retryAt: Date.now() + backoff(tries) * (0.8 + Math.random() / 5) });
  }
}

function keyOf({ jobId, name }) {
  return `${jobId}/${name}`;
}

/** Return the message of a failed request that is sent again. */
export function failureWords(problem) {
  return `${problem.status >= 429 ? "This chart is taking too long to load." : problem.message} Retrying…`;
}

/**
 * Encode names as the gateway's parameter `names`: comma-separated, with a backslash before commas, backslashes, and
 * white space at the ends of a name.
 */
export function namesParameter(names) {
  return names.map((name) => name.replace(/[\\,]|^[ \t\r\n]|[ \t\r\n]$/g, "\\$&")).join(",");
}
