// The loaded points of metrics, of this job and of the compared jobs.

import { SEQ } from "./curves.js";

const MOST_POINTS = 6000;

/**
 * Points by job, metric, attempt and rank; a point is [step, ts, value, epoch, seq], as in `GET /jobs/{id}/metrics`.
 */
export class MetricStore {
  constructor() {
    this.jobs = new Map();
  }

  /** Return the set of known metric names of a job. */
  names(jobId) {
    return this.#job(jobId).names;
  }

  /** Add metric names of a job; their points need not be loaded. */
  addNames(jobId, names) {
    for (const name of names) this.names(jobId).add(name);
  }

  /** Start to store live points of a metric, because a request for its older points begins. */
  expect(jobId, name) {
    const { metrics } = this.#job(jobId);
    if (!metrics.has(name))
      metrics.set(name, { isLoaded: false, isThinned: false, lastSeq: 0, series: new Map() });
    return metrics.get(name);
  }

  /**
   * Replace the points of a metric with series of the gateway, which cover the rows up to `lastSeq`; newer live points
   * are kept.
   */
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

  /**
   * Add live points of a job, except those that are stored already. Of a metric that is not loaded, only the name is
   * added.
   */
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

  /** Return whether the points of a metric are loaded and need not be requested again. */
  isLoaded(jobId, name) {
    return this.#job(jobId).metrics.get(name)?.isLoaded ?? false;
  }

  /** Return whether the points of a metric are downsampled, so that the gateway has more of them. */
  isThinned(jobId, name) {
    return this.#job(jobId).metrics.get(name)?.isThinned ?? false;
  }

  /** Mark all metrics of a job as not loaded, because points may have been missed. */
  outdate(jobId) {
    for (const metric of this.#job(jobId).metrics.values()) metric.isLoaded = false;
  }

  /** Remove the metrics for which `isNeeded(name)` is false, from each job with more than `most` metrics. */
  evict(most, isNeeded) {
    for (const { metrics } of this.jobs.values())
      if (metrics.size > most) for (const name of [...metrics.keys()]) if (!isNeeded(name)) metrics.delete(name);
  }

  /** Remove all data of a job. */
  forget(jobId) {
    this.jobs.delete(jobId);
  }

  /** Return the series of one metric of a job, sorted by attempt and rank. */
  of(jobId, name) {
    const found = [...(this.#job(jobId).metrics.get(name)?.series.values() ?? [])];
    return found.sort((a, b) => a.attempt - b.attempt || (a.rank ?? -1) - (b.rank ?? -1));
  }

  /** Yield all series of a job. */
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

/** Return the key of a series among those of one metric of one job. */
export function seriesKey(attempt, rank) {
  return `${attempt}/${rank ?? ""}`;
}
