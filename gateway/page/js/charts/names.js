// The names of a job's metrics, read in pages.

import { get } from "../api.js";
import { backoff } from "../backoff.js";

const PAGE = 10_000;

/**
 * Reads the names of all metrics of a job; calls `onNames(names)` for each page, and `onEnd()` after each attempt to
 * read all. While the gateway has not read all rows (`complete` is false), it reads them again, with backoff as long as
 * there are no new names.
 */
export class NameReader {
  constructor(jobId, { onNames, onEnd }) {
    Object.assign(this, { path: `/jobs/${jobId}/metrics/names`, onNames, onEnd });
    this.tries = 0;
    this.names = new Set();
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
  }

  /** Read all names, and retry after a failure; `problem` is the last error. */
  async read() {
    clearTimeout(this.timer);
    try {
      const before = this.names.size;
      let page = { next: "" };
      while (page.next !== null && !this.isClosed) {
        page = await get(this.path, { after: page.next, limit: PAGE });
        for (const name of page.items) this.names.add(name);
        if (!this.isClosed) this.onNames(page.items);
      }
      Object.assign(this, { problem: null, tries: this.names.size > before ? 1 : this.tries + 1 });
      if (page.complete) this.tries = 0;
      else if (!this.isClosed) this.timer = setTimeout(() => this.read(), backoff(this.tries));
    } catch (problem) {
      this.problem = problem;
      this.tries += 1;
      if (!this.isClosed) this.timer = setTimeout(() => this.read(), backoff(this.tries));
    }
    if (!this.isClosed) this.onEnd();
  }
}
