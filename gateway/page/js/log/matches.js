// The lines that fit a filter, newest first fetched, older ones as one scrolls; a bounded number is kept.

const PAGE = 500;
const MOST = 20_000;
const LATER_MS = 700;

/** Lines that fit; `onChange(prepended)` says how many came in front. */
export class LogMatches {
  constructor(fetchLines, onChange) {
    this.fetchLines = fetchLines;
    this.onChange = onChange;
    this.items = [];
    this.hasOlder = true;
    this.hasNewer = false;
    this.seen = 0;
    this.total = 0;
    this.isLoading = false;
    this.isFirst = true;
    this.problem = null;
    this.timer = null;
    this.abort = new AbortController();
  }

  get count() {
    return this.items.length;
  }

  lineAt(index) {
    return this.items[index];
  }

  /** The index of the first line at or after a number. */
  indexOf(seq) {
    const found = this.items.findIndex((line) => line.seq >= seq);
    return found < 0 ? this.items.length - 1 : found;
  }

  need(first, last) {
    if (this.isFirst || (first < 100 && this.hasOlder)) this.#load("older");
    else if (last > this.items.length - 100 && (this.hasNewer || this.seen < this.total)) this.#load("newer");
  }

  /** Say how many lines the job has: new ones may fit. */
  setTotal(total) {
    this.total = Math.max(this.total, total);
    if (!this.isFirst && !this.hasNewer && this.seen < this.total) this.#later();
  }

  close() {
    clearTimeout(this.timer);
    this.abort.abort();
  }

  async #load(direction) {
    if (this.isLoading || performance.now() < (this.notBefore ?? 0)) return;
    this.isLoading = true;
    try {
      const isOlder = direction === "older";
      const position = isOlder
        ? { before: this.items[0]?.seq }
        : { after: this.items.length && this.hasNewer ? this.items.at(-1).seq : this.seen };
      const found = await this.fetchLines({ ...position, limit: PAGE }, this.abort.signal);
      this.problem = null;
      if (isOlder) this.#prepend(found);
      else this.#append(found);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.problem = error;
      this.notBefore = performance.now() + 1500;
      setTimeout(() => this.onChange(0), 1600);
      this.onChange(0);
    } finally {
      this.isLoading = false;
    }
    if (!this.problem && !this.hasNewer && this.seen < this.total && !this.abort.signal.aborted) this.#later();
  }

  #later() {
    this.timer ??= setTimeout(() => {
      this.timer = null;
      if (!this.abort.signal.aborted) this.#load("newer");
    }, LATER_MS);
  }

  #prepend({ items, total }) {
    if (this.isFirst) this.seen = Math.max(items.at(-1)?.seq ?? 0, total ?? 0);
    this.isFirst = false;
    this.hasOlder = items.length === PAGE;
    this.items = [...items, ...this.items];
    if (this.items.length > MOST) {
      this.items.length = MOST;
      this.hasNewer = true;
    }
    this.onChange(items.length);
  }

  #append({ items, total }) {
    this.hasNewer = items.length === PAGE;
    this.seen = Math.max(
      this.seen,
      this.hasNewer ? items.at(-1).seq : Math.max(total ?? 0, items.at(-1)?.seq ?? 0),
    );
    this.items.push(...items);
    const excess = Math.max(0, this.items.length - MOST);
    this.items.splice(0, excess);
    if (excess) this.hasOlder = true;
    this.onChange(-excess);
  }
}
