// The points of the metrics that have been read, of this job and of those it is compared with.

import { SEQ } from "./curves.js";

const MOST_POINTS = 6000;

/** Points by job, metric, attempt and rank; a point is [step, ts, value, epoch, seq], as GET /jobs/{id}/metrics has them. */
export class MetricStore {
  constructor() {
    this.jobs = new Map();
  }

  /** All names of the metrics of a job that are known. */
  names(jobId) {
    return this.#job(jobId).names;
  }

  /** Add names, which may have no points here. */
  addNames(jobId, names) {
    for (const name of names) this.names(jobId).add(name);
  }

  /** Keep live points of a metric from now on: its older points are being read. */
  expect(jobId, name) {
    const { metrics } = this.#job(jobId);
    if (!metrics.has(name))
      metrics.set(name, { isLoaded: false, isThinned: false, lastSeq: 0, series: new Map() });
    return metrics.get(name);
  }

  /** Take a metric's series as the gateway has them up to row `lastSeq`; live points that came later stay. */
  replace(jobId, name, series, { lastSeq, isThinned }) {
    const metric = this.expect(jobId, name);
    const before = metric.series;
    metric.series = new Map();
    for (const { attempt, rank, points } of series) entryOf(metric, jobId, name, attempt, rank).points = points;
    for (const { attempt, rank, points } of before.values()) {
      const later = points.filter((point) => point[SEQ] > lastSeq);
      if (later.length) entryOf(metric, jobId, name, attempt, rank).points.push(...later);
    }
    Object.assign(metric, { isLoaded: true, isThinned, lastSeq: Math.max(metric.lastSeq, lastSeq) });
  }

  /** Take live points of a job; those that are here already are left out. Of a metric that was not read, keep the name. */
  add(jobId, points) {
    const { names, metrics } = this.#job(jobId);
    for (const { seq, attempt, rank, ts, step, epoch, values } of points)
      for (const [name, value] of Object.entries(values)) {
        names.add(name);
        const metric = metrics.get(name);
        if (!metric || seq <= metric.lastSeq) continue;
        metric.lastSeq = seq;
        const { points: kept } = entryOf(metric, jobId, name, attempt, rank ?? null);
        kept.push([step ?? null, ts, value, epoch ?? null, seq]);
        // So long that the gateway should thin it out again.
        if (kept.length > MOST_POINTS) metric.isLoaded = false;
      }
  }

  /** Tell whether the points of a metric need not be read. */
  isLoaded(jobId, name) {
    return this.#job(jobId).metrics.get(name)?.isLoaded ?? false;
  }

  /** Tell whether the gateway has points of a metric that are not here. */
  isThinned(jobId, name) {
    return this.#job(jobId).metrics.get(name)?.isThinned ?? false;
  }

  /** Read all metrics of a job anew when they are needed: points were missed. */
  outdate(jobId) {
    for (const metric of this.#job(jobId).metrics.values()) metric.isLoaded = false;
  }

  /** Drop the points of metrics that `isNeeded(name)` does not keep, if there are more than `most` of them. */
  evict(most, isNeeded) {
    for (const { metrics } of this.jobs.values())
      if (metrics.size > most) for (const name of [...metrics.keys()]) if (!isNeeded(name)) metrics.delete(name);
  }

  /** Drop all of a job. */
  forget(jobId) {
    this.jobs.delete(jobId);
  }

  /** The series of a metric of a job, by attempt and rank. */
  of(jobId, name) {
    const found = [...(this.#job(jobId).metrics.get(name)?.series.values() ?? [])];
    return found.sort((a, b) => a.attempt - b.attempt || (a.rank ?? -1) - (b.rank ?? -1));
  }

  /** All series of a job. */
  *all(jobId) {
    for (const metric of this.#job(jobId).metrics.values()) yield* metric.series.values();
  }

  #job(jobId) {
    if (!this.jobs.has(jobId)) this.jobs.set(jobId, { names: new Set(), metrics: new Map() });
    return this.jobs.get(jobId);
  }
}

function entryOf(metric, jobId, name, attempt, rank) {
  const key = seriesKey(attempt, rank);
  if (!metric.series.has(key)) metric.series.set(key, { jobId, name, attempt, rank, points: [] });
  return metric.series.get(key);
}

/** The key of a series among those of one metric of one job. */
export function seriesKey(attempt, rank) {
  return `${attempt}/${rank ?? ""}`;
}
