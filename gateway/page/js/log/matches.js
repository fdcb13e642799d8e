// The log lines that match a filter: the newest are loaded first, older ones on scrolling; a bounded number is kept.

import { backoff } from "../backoff.js";

const PAGE = 500;
const MOST = 20_000;
const LATER_MS = 700;
const LONGEST_PAUSE_MS = 10_000;

/**
 * The matching lines with numbers between `oldest` and `newest`; lines outside of this range have not been searched, or
 * were dropped again. `onChange(shift)` is called with the number of lines that were added in front.
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

  /** Return whether older lines have not been searched. */
  get hasOlder() {
    return this.oldest > 1;
  }

  /** Return whether newer lines have not been searched. */
  get hasNewer() {
    return this.newest < this.total;
  }

  /** Return the index of the first matching line whose number is at least `seq`; -1 if there is none. */
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

  /** Set the number of lines of the job; new lines are searched soon. */
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

  // `scanned`: the gateway searches a bounded number of lines per request, and returns their range.
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
