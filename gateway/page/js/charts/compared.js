// The jobs with which a job is compared; each has its own feed, so that its curves are live too.

import { MOST_COMPARED } from "../comparison.js";
import { Feed } from "../socket.js";

/**
 * The feeds of the compared jobs. It calls `onBegin(id, isResumed)` when the feed of a job begins, `onPoints(id,
 * points)` for new points, `onChange()` when the set of jobs or their state changes, and `say(words)` with an error
 * message.
 */
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

  /** Return the document of a job, null until it has been received. */
  job(id) {
    return this.jobs.get(id) ?? null;
  }

  /** Return whether the connection of a job's feed is lost and will be retried. */
  isLost(id) {
    return this.states.get(id) === "waiting";
  }

  /** Add a job to the comparison, unless the maximum is reached. */
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
