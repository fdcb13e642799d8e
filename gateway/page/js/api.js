// HTTP requests to the gateway; every failure is a `Problem` with a readable message (RFC 9457).

import { isGiven } from "./format.js";

/** The error of a failed request; `status` is its HTTP status, 0 if there was no response. */
export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail || title);
    this.status = status;
    this.title = title;
  }
}

/** Return whether a request that failed with `problem` is sent again: without an answer, or a store is unavailable. */
export function isTemporary({ status }) {
  return [0, 429, 503].includes(status);
}

/** Return the message of a problem, with "Retrying…" if its request is sent again. */
export function retriedWords(problem) {
  return isTemporary(problem) ? `${problem.message} Retrying…` : problem.message;
}

// This module is page/js/api.js of the gateway, or page/~<hash>/js/api.js; a proxy may add a path prefix.
const BASE = new URL(import.meta.url).pathname.replace(/page\/(~[0-9a-f]+\/)?js\/api\.js$/, "");

const UNREACHABLE = "Can't reach the trainwire server.";

const listeners = new Set();

/** Call `listener` whenever the gateway requires a token. */
export function onDenied(listener) {
  listeners.add(listener);
}

/** Notify the listeners of `onDenied` that the gateway requires a token. */
export function denied() {
  for (const listener of listeners) listener();
}

// Ids beyond 2^53 stay exact as strings. Inside a JSON string the quotes would be escaped, so text is never touched.
const LONG_IDS = /"(id|job_id|parent_id|parent)":\s*(\d{16,})/g;
const LISTS_OF_IDS = /"forks":\s*\[[\d,\s]+\]/g;

/** Parse JSON of the gateway; ids of jobs beyond 2^53 become strings. */
export function parse(text) {
  const quoted = (list) => list.replace(/\d{16,}/g, '"$&"');
  return JSON.parse(text.replace(LONG_IDS, '"$1":"$2"').replace(LISTS_OF_IDS, quoted));
}

/** Return the URL of a path of the gateway; parameters that are null, undefined or empty are left out. */
export function address(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => isGiven(value) && value !== "");
  const search = given.length ? `?${new URLSearchParams(given)}` : "";
  return `${BASE}${path.slice(1)}${search}`;
}

/** Send a GET request and return the JSON document of the response. */
export async function get(path, query, signal) {
  return request(path, { signal }, query);
}

/** Send a JSON document and return the JSON document of the response. */
export async function send(method, path, document) {
  const headers = { "Content-Type": "application/json", Accept: "application/json" };
  return request(path, { method, headers, body: JSON.stringify(document) });
}

// A request waits at most this long for Postgres in the gateway: 10 s for a connection, and 20 s for a statement.
const TIMEOUT_MS = 30_000;

/** Send a request and return the JSON document of the response, null if it has no body. Throws a `Problem`. */
export async function request(path, options = {}, query = {}) {
  const signals = [AbortSignal.timeout(TIMEOUT_MS), options.signal].filter(Boolean);
  let response;
  let text;
  try {
    response = await fetch(address(path, query), {
      headers: { Accept: "application/json" },
      ...options,
      signal: AbortSignal.any(signals),
    });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const isSilent = error.name === "TimeoutError";
    throw new Problem(0, "No answer", isSilent ? `No answer within ${TIMEOUT_MS / 1000} s.` : UNREACHABLE);
  }
  if (response.ok) return text ? parse(text) : null;
  if (response.status === 401 && path !== "/session") denied();
  throw problemOf(response, text);
}

function problemOf(response, text) {
  try {
    const document = JSON.parse(text);
    const detail = typeof document.detail === "string" ? document.detail : text;
    return new Problem(response.status, document.title ?? response.statusText, detail);
  } catch {
    return new Problem(
      response.status,
      response.statusText,
      `The server answered ${response.status} ${response.statusText}`,
    );
  }
}
