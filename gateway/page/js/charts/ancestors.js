// The jobs that a job was forked from, whose lines its charts begin with.

import { get } from "../api.js";
import { isGiven } from "../format.js";

const MOST = 40;

/** Reads the documents of the parents of jobs; `onFound(id)` for each. */
export class Ancestors {
  constructor(onFound) {
    Object.assign(this, { onFound, jobs: new Map(), asked: new Set() });
  }

  get ids() {
    return [...this.jobs.keys()];
  }

  /** The document of a parent, null while it is not known, and for one that was deleted. */
  job(id) {
    return this.jobs.get(id) ?? null;
  }

  /** Read the parent of a job, and its parents. */
  async follow(job) {
    let parent = job?.parent_id;
    while (isGiven(parent) && this.asked.size < MOST && !this.asked.has(String(parent))) {
      const id = String(parent);
      this.asked.add(id);
      try {
        this.jobs.set(id, await get(`/jobs/${id}`));
      } catch {
        return; // deleted, or not stored yet: the line begins with the fork
      }
      if (this.isClosed) return;
      this.onFound(id);
      parent = this.jobs.get(id).parent_id;
    }
  }

  close() {
    this.isClosed = true;
  }
}
