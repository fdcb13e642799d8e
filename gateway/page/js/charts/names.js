// The names of a job's metrics, read in pages.

import { get } from "../api.js";
import { backoff } from "./loader.js";

const PAGE = 10_000;
const AGAIN_MS = 1000;

/** Read all names of a job; `onNames(names)` for each page. Older rows are read by later requests until all are known. */
export class NameReader {
  constructor(jobId, { onNames, onEnd }) {
    Object.assign(this, { path: `/jobs/${jobId}/metrics/names`, onNames, onEnd });
    this.tries = 0;
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
  }

  /** Read them, and again after a failure; `problem` is the last one. */
  async read() {
    clearTimeout(this.timer);
    try {
      let page = { next: "" };
      while (page.next !== null && !this.isClosed) {
        page = await get(this.path, { after: page.next, limit: PAGE });
        if (!this.isClosed) this.onNames(page.items);
      }
      Object.assign(this, { problem: null, tries: 0, isComplete: page.complete });
      if (!page.complete && !this.isClosed) this.timer = setTimeout(() => this.read(), AGAIN_MS);
    } catch (problem) {
      this.problem = problem;
      this.tries += 1;
      if (!this.isClosed) this.timer = setTimeout(() => this.read(), backoff(this.tries));
    }
    if (!this.isClosed) this.onEnd();
  }
}
