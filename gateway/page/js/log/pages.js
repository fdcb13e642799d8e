// All log lines of a job by number, loaded in pages, of which a bounded number is kept.

import { backoff } from "../backoff.js";

const PAGE_LINES = 500;
const MOST_PAGES = 60;
const MOST_CHARACTERS = 24_000_000;
const LONGEST_PAUSE_MS = 10_000;

/**
 * The lines 1 to `total`, loaded when needed; `onChange()` is called when lines have been added or a request failed.
 */
export class LogPages {
  constructor(fetchLines, onChange) {
    this.fetchLines = fetchLines;
    this.onChange = onChange;
    this.pages = new Map();
    this.loading = new Map();
    this.tries = 0;
    this.retryAt = 0;
    this.total = 0;
    this.near = 0;
    this.problem = null;
  }

  get count() {
    return this.total;
  }

  /** Return the line at an index (number - 1), undefined if it is not loaded. */
  lineAt(index) {
    return this.pages.get(Math.floor(index / PAGE_LINES))?.lines[index % PAGE_LINES];
  }

  indexOf(seq) {
    return Math.min(this.total, Math.max(1, seq)) - 1;
  }

  /** Add lines that were received otherwise: live ones, or those of a snapshot. */
  add(lines) {
    for (const line of lines) {
      const number = Math.floor((line.seq - 1) / PAGE_LINES);
      const page = this.#page(number);
      const at = (line.seq - 1) % PAGE_LINES;
      if (!page.lines[at]) {
        page.held += 1;
        page.characters += line.text.length;
      }
      page.lines[at] = line;
      this.total = Math.max(this.total, line.seq);
    }
    this.#evict();
    this.onChange();
  }

  /** Set the number of lines that the gateway reports. */
  setTotal(total) {
    if (total <= this.total) return;
    this.total = total;
    this.onChange();
  }

  /** Load the missing lines from index `first` to `last`. */
  need(first, last) {
    this.near = Math.floor((first + last) / 2 / PAGE_LINES);
    const from = Math.floor(Math.max(0, first) / PAGE_LINES);
    const to = Math.floor(Math.min(this.total - 1, last) / PAGE_LINES);
    for (const [number, abort] of this.loading) {
      if (number < from - 1 || number > to + 1) abort.abort();
    }
    for (let number = from; number <= to; number += 1) if (!this.#isWhole(number)) this.#fetch(number);
  }

  close() {
    for (const abort of this.loading.values()) abort.abort();
    clearTimeout(this.retry);
  }

  #page(number) {
    if (!this.pages.has(number)) this.pages.set(number, { lines: new Array(PAGE_LINES), held: 0, characters: 0 });
    return this.pages.get(number);
  }

  #isWhole(number) {
    const expected = Math.min(PAGE_LINES, this.total - number * PAGE_LINES);
    const page = this.pages.get(number);
    // Rows that retention has deleted never arrive: a page is whole once its lines were requested.
    return (
      page !== undefined &&
      (page.held >= expected || page.askedTo >= Math.min(this.total, (number + 1) * PAGE_LINES))
    );
  }

  async #fetch(number) {
    if (this.loading.has(number) || performance.now() < this.retryAt) return;
    const abort = new AbortController();
    this.loading.set(number, abort);
    try {
      const first = number * PAGE_LINES;
      const end = first + PAGE_LINES;
      let after = first;
      // `scanned`: an answer has a bounded size, and the lines after these are a request of their own.
      while (after < end) {
        const found = await this.fetchLines({ after, limit: end - after }, abort.signal);
        after = found.scanned?.last_seq ?? end;
        const known = Math.min(end, Math.max(found.total ?? 0, found.last_seq ?? 0));
        this.#page(number).askedTo = Math.min(after, known);
        Object.assign(this, { problem: null, tries: 0, retryAt: 0 });
        this.add(found.items.filter((line) => line.seq <= end));
        if (after >= known) break;
      }
    } catch (error) {
      if (error.name !== "AbortError") this.#failed(error);
    } finally {
      this.loading.delete(number);
    }
  }

  #failed(error) {
    this.problem = error;
    if (performance.now() < this.retryAt) return; // of another page at the same time
    this.tries += 1;
    const pause = backoff(this.tries, 1000, LONGEST_PAUSE_MS);
    this.retryAt = performance.now() + pause;
    clearTimeout(this.retry);
    this.retry = setTimeout(() => this.onChange(), pause);
    this.onChange();
  }

  #evict() {
    let characters = 0;
    for (const page of this.pages.values()) characters += page.characters;
    const farthest = [...this.pages.keys()].sort((a, b) => Math.abs(b - this.near) - Math.abs(a - this.near));
    const tail = Math.floor((this.total - 1) / PAGE_LINES);
    for (const number of farthest) {
      if (this.pages.size <= MOST_PAGES && characters <= MOST_CHARACTERS) return;
      if (number === tail || number === this.near) continue;
      characters -= this.pages.get(number).characters;
      this.pages.delete(number);
    }
  }
}
