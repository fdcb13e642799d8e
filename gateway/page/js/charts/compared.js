// The jobs that this one is compared with, each followed by a feed of its own, so that their charts are live, too.

import { MOST_COMPARED } from "../comparison.js";
import { Feed } from "../socket.js";

/** `onBegin(id, isResumed)` when a job's feed begins, `onPoints(id, points)`, `onChange()`, `say(words)` with a problem. */
export class ComparedJobs {
  constructor(ids, { onBegin, onPoints, onChange, say }) {
    Object.assign(this, { onBegin, onPoints, onChange, say });
    this.jobs = new Map();
    this.feeds = new Map();
    this.states = new Map();
    for (const id of ids) this.#follow(id);
  }

  get ids() {
    return [...this.feeds.keys()];
  }

  /** The document of a job, null while it is not known. */
  job(id) {
    return this.jobs.get(id) ?? null;
  }

  /** Tell whether the feed of a job is lost and will be back. */
  isLost(id) {
    return this.states.get(id) === "waiting";
  }

  /** Add a job, unless there are too many. */
  add(id) {
    if (this.feeds.has(id)) return;
    if (this.feeds.size >= MOST_COMPARED - 1) return this.say(`At most ${MOST_COMPARED} jobs can be compared.`);
    this.say("");
    this.#follow(id);
    this.onChange();
  }

  remove(id) {
    this.feeds.get(id)?.close();
    this.feeds.delete(id);
    this.jobs.delete(id);
    this.onChange();
  }

  close() {
    for (const feed of this.feeds.values()) feed.close();
  }

  #follow(id) {
    const feed = new Feed(`/jobs/${id}/ws`, {
      onEvent: (event) => this.#take(id, event),
      onState: ({ name }) => this.#connected(id, name),
    });
    this.feeds.set(id, feed);
    feed.open();
  }

  #take(id, event) {
    if (event.type === "snapshot" || event.type === "resumed") {
      this.jobs.set(id, event.job);
      this.onBegin(id, event.type === "resumed");
    } else if (event.type === "training_progress" && event.points) {
      const job = this.jobs.get(id);
      if (job) job.attempt = Math.max(job.attempt, event.attempt ?? job.attempt);
      this.onPoints(id, event.points);
    }
  }

  #connected(id, state) {
    const words = {
      unknown: `No job ${id} yet.`,
      deleted: `Job ${id} was deleted.`,
      refused: `This token may not read job ${id}.`,
    };
    const wasLost = this.isLost(id);
    this.states.set(id, state);
    if (this.isLost(id) !== wasLost) this.onChange();
    if (!words[state]) return;
    this.say(words[state]);
    this.remove(id);
  }
}
