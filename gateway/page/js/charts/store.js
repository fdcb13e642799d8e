// The metric points of a job and of those it is compared with.

const MOST_POINTS = 6000;

/** Points by series; a point is [step, ts, value, epoch, seq], as GET /jobs/{id}/metrics has them. */
export class MetricStore {
  constructor() {
    this.series = new Map();
    this.thinned = new Set();
    this.lastSeq = 0;
    this.revision = 0;
  }

  /** Take what the gateway has of a job in the place of what was here of it; `isThinned`: not every point. */
  replace(jobId, series, { lastSeq = null, isThinned = true } = {}) {
    this.forget(jobId);
    if (isThinned) this.thinned.add(jobId);
    for (const { name, attempt, rank, points } of series)
      this.#entry({ jobId, name, attempt, rank }).points = points;
    if (lastSeq !== null) this.lastSeq = Math.max(this.lastSeq, lastSeq);
    this.revision += 1;
  }

  /** Drop all series of a job. */
  forget(jobId) {
    for (const [key, entry] of this.series) if (entry.jobId === jobId) this.series.delete(key);
    this.thinned.delete(jobId);
    this.revision += 1;
  }

  /** Take live points of the job; those that are here already are left out. */
  add(jobId, points) {
    for (const { seq, attempt, rank, ts, step, epoch, values } of points) {
      if (seq <= this.lastSeq) continue;
      this.lastSeq = seq;
      for (const [name, value] of Object.entries(values)) {
        this.#entry({ jobId, name, attempt, rank }).points.push([step ?? null, ts, value, epoch ?? null, seq]);
      }
    }
    this.revision += 1;
  }

  /** Tell whether the gateway has points of a job that are not here. */
  isThinned(jobId) {
    return this.thinned.has(jobId);
  }

  /** Tell whether a series has become so long that the gateway should thin it out again. */
  get isCrowded() {
    return [...this.series.values()].some((entry) => entry.points.length > MOST_POINTS);
  }

  /** All names of metrics. */
  get names() {
    return new Set([...this.series.values()].map((entry) => entry.name));
  }

  /** The series of a metric in one run, by rank. */
  of(name, { jobId, attempt }) {
    const found = [...this.series.values()].filter(
      (entry) => entry.name === name && entry.jobId === jobId && entry.attempt === attempt,
    );
    return found.sort((a, b) => (a.rank ?? -1) - (b.rank ?? -1));
  }

  #entry({ jobId, name, attempt, rank = null }) {
    const key = keyOf({ jobId, name, attempt, rank });
    if (!this.series.has(key)) this.series.set(key, { jobId, name, attempt, rank, points: [] });
    return this.series.get(key);
  }
}

/** What tells a series from all others. */
export function keyOf({ jobId, name, attempt, rank = null }) {
  return JSON.stringify([jobId, name, attempt, rank]);
}
