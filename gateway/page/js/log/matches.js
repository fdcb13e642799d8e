// The lines that fit a filter, newest first fetched, older ones as one scrolls; a bounded number is kept.

import { backoff } from "../backoff.js";

const PAGE = 500;
const MOST = 20_000;
const LATER_MS = 700;
const LONGEST_PAUSE_MS = 10_000;

/**
 * Lines that fit, of which all between `oldest` and `newest` (numbers of lines) are known, but for those that
 * were dropped again; `onChange(shift)` says how many came in front.
 */
export class LogMatches {
  constructor(fetchLines, total, onChange, start = total + 1) {
    this.fetchLines = fetchLines;
    this.onChange = onChange;
    this.items = [];
    this.total = total;
    this.oldest = start; // the search begins here: at the newest line, or where one was before
    this.newest = start - 1;
    this.isLoading = false;
    this.problem = null;
    this.tries = 0;
    this.timer = null;
    this.abort = new AbortController();
  }

  get count() {
    return this.items.length;
  }

  /** Tell whether older lines may fit, too. */
  get hasOlder() {
    return this.oldest > 1;
  }

  /** Tell whether newer lines may fit, too. */
  get hasNewer() {
    return this.newest < this.total;
  }

  /** The index of the first line at or after one, -1 without any. */
  indexOf(seq) {
    return this.items.findIndex((line) => line.seq >= seq);
  }

  lineAt(index) {
    return this.items[index];
  }

  need(first, last) {
    if (first < 100 && this.hasOlder) this.#load(true);
    else if (last > this.items.length - 100 && this.hasNewer) this.#load(false);
  }

  /** Say how many lines the job has: new ones may fit. */
  setTotal(total) {
    this.total = Math.max(this.total, total);
    if (this.hasNewer) this.#later(LATER_MS);
  }

  close() {
    clearTimeout(this.timer);
    this.abort.abort();
  }

  async #load(isOlder) {
    if (this.isLoading || this.timer !== null) return;
    this.isLoading = true;
    try {
      const position = isOlder ? { before: this.oldest } : { after: this.newest };
      const found = await this.fetchLines({ ...position, limit: PAGE }, this.abort.signal);
      Object.assign(this, { problem: null, isLoading: false, tries: 0 });
      this.onChange(isOlder ? this.#prepend(found) : this.#append(found));
    } catch (error) {
      this.isLoading = false;
      if (error.name === "AbortError") return;
      this.problem = error;
      this.tries += 1;
      this.#later(backoff(this.tries, 1000, LONGEST_PAUSE_MS));
      this.onChange(0);
    }
  }

  #later(ms) {
    this.timer ??= setTimeout(() => {
      this.timer = null;
      this.onChange(0);
    }, ms);
  }

  // `scanned`: the gateway looks at a bounded number of lines for one answer, and says at which.
  #prepend({ items, scanned }) {
    if (scanned) this.oldest = scanned.first_seq;
    else this.oldest = items.length < PAGE ? 1 : items[0].seq;
    this.items = [...items, ...this.items];
    if (this.items.length > MOST) {
      this.items.length = MOST;
      this.newest = this.items.at(-1).seq;
    }
    return items.length;
  }

  #append({ items, scanned, total }) {
    if (scanned) this.newest = scanned.last_seq;
    else this.newest = items.length < PAGE ? Math.max(this.newest, total) : items.at(-1).seq;
    this.total = Math.max(this.total, total);
    this.items.push(...items);
    const excess = Math.max(0, this.items.length - MOST);
    if (excess === 0) return 0;
    this.items.splice(0, excess);
    this.oldest = this.items[0].seq;
    return -excess;
  }
}
