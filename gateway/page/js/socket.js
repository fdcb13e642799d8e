// A WebSocket that reconnects by itself and resumes from its position: no event is missed or received twice.

import { address, denied, get, parse } from "./api.js";
import { backoff } from "./backoff.js";

const FIRST_WAIT_MS = 300;
const LONGEST_WAIT_MS = 8000;
const SILENCE_MS = 22_000; // two heartbeats of the gateway are overdue
const CODES = { badPosition: 4400, noToken: 4401, notAllowed: 4403, unknown: 4404, deleted: 4410 };

/**
 * Receives the events of one WebSocket path and calls `onEvent(event)`. It calls `onState({name, retryAt, wasLost,
 * problem})` for each connection state: connecting, live, stale (connected, but a `problem` of the servers keeps new
 * events away), waiting, unknown (no such job yet), refused or deleted.
 */
export class Feed {
  constructor(path, { onEvent, onState }) {
    this.path = path;
    this.onEvent = onEvent;
    this.onState = onState;
    this.position = null;
    this.problem = null;
    this.tries = 0;
    this.isClosed = false;
    this.wasLost = false;
    this.wake = () => this.#retryNow();
    window.addEventListener("online", this.wake);
    document.addEventListener("visibilitychange", this.wake);
  }

  open() {
    clearTimeout(this.timer);
    this.problem = null;
    this.onState({ name: "connecting", wasLost: this.wasLost });
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const query = { after: this.position, heartbeat: true };
    const socket = new WebSocket(`${scheme}//${location.host}${address(this.path, query)}`);
    this.socket = socket;
    socket.onmessage = (message) => this.socket === socket && this.#receive(message.data);
    socket.onclose = (closed) => this.socket === socket && this.#lost(closed.code);
    this.#expectSoon();
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
    clearTimeout(this.silence);
    window.removeEventListener("online", this.wake);
    document.removeEventListener("visibilitychange", this.wake);
    this.#drop();
  }

  #drop() {
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  /** Reconnect if nothing is received for long, not even a heartbeat: the gateway may be frozen, or unreachable. */
  #expectSoon() {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => {
      this.#drop();
      this.#lost(null);
    }, SILENCE_MS);
  }

  #receive(data) {
    this.#expectSoon();
    const frame = parse(data);
    const event = frame.event ?? frame;
    if (event.type === "resync") return;
    if (event.type === "heartbeat") return this.#checked(event.problem);
    if (event.type === "snapshot" || event.type === "resumed") this.#arrived();
    this.onEvent(event);
    // After the event: if the page fails on it, the next connection sends it again.
    if (frame.position) this.position = frame.position;
  }

  #arrived() {
    this.tries = 0;
    if (!this.problem) this.onState({ name: "live", wasLost: this.wasLost });
    this.wasLost = false;
  }

  /** Show a problem of the servers; when it has ended, connect anew, so that all views load what they miss. */
  #checked(problem) {
    if (problem === this.problem) return;
    const hadProblem = this.problem !== null;
    this.problem = problem;
    if (problem) return this.onState({ name: "stale", problem });
    if (!hadProblem) return;
    this.#drop();
    clearTimeout(this.silence);
    this.wasLost = true;
    this.timer = setTimeout(() => this.open(), FIRST_WAIT_MS * Math.random()); // not all pages at once
  }

  #lost(code) {
    clearTimeout(this.silence);
    if (this.isClosed) return;
    this.socket = null;
    if (code === CODES.noToken) return denied();
    if (code === CODES.deleted) return this.onState({ name: "deleted" });
    if (code === CODES.notAllowed) return this.onState({ name: "refused" });
    if (code === CODES.badPosition) this.position = null;
    if (code === CODES.unknown) this.onState({ name: "unknown" });
    else this.wasLost = true;
    this.#retryLater(code);
    // Browsers report a refused handshake as a network error: the session shows whether a token is missing.
    if (code === 1006)
      get("/session").then(
        (session) => session.auth === "on" && !session.role && denied(),
        () => {},
      );
  }

  #retryLater(code) {
    this.tries += 1;
    const longest = backoff(this.tries, FIRST_WAIT_MS, LONGEST_WAIT_MS);
    const wait = code === CODES.unknown ? 2000 : longest * (0.5 + Math.random() / 2);
    if (code !== CODES.unknown) this.onState({ name: "waiting", retryAt: Date.now() + wait });
    this.timer = setTimeout(() => this.open(), wait);
  }

  #retryNow() {
    if (!this.isClosed && !this.socket && document.visibilityState === "visible") this.open();
  }
}
