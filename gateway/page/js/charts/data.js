// The data of the charts: names and points of a job and the compared jobs, requested when needed and updated live.

import { get } from "../api.js";
import { fromText, isGiven } from "../format.js";
import { Ancestors } from "./ancestors.js";
import { ComparedJobs } from "./compared.js";
import { ZoomDetail } from "./detail.js";
import { MetricLoader, namesParameter } from "./loader.js";
import { NameReader } from "./names.js";
import { MetricStore } from "./store.js";

const POINTS = 1500;
const MOST_KEPT = 400; // metrics whose points are kept; those in view always are

/**
 * The metrics of job `jobId` and of the jobs `compared`. It calls `onChange()` when charts should be drawn again,
 * `onCompared(ids)` when the set of compared jobs changes, and `say(words)` with an error message.
 */
export class ChartData {
  constructor(jobId, { compared, axis, onChange, onCompared, say }) {
    Object.assign(this, { jobId, onChange, onCompared, job: null, isLoaded: false });
    this.store = new MetricStore();
    this.loader = new MetricLoader((id, names, signal) => this.#read(id, names, signal), onChange);
    this.detail = new ZoomDetail(this.store, { axis, starts: (id) => this.#starts(id), onChange });
    this.readers = new Map([[jobId, this.#reader(jobId)]]);
    this.ancestors = new Ancestors((id) => this.begin(id, false));
    this.compared = new ComparedJobs(compared, {
      onBegin: (id, isResumed) => {
        this.begin(id, isResumed);
        this.ancestors.follow(this.compared.job(id));
      },
      onPoints: (id, points) => this.add(id, points),
      onChange: () => this.#comparedChanged(),
      say,
    });
  }

  close() {
    for (const part of [this.ancestors, this.compared, this.detail, ...this.readers.values()]) part.close();
    this.loader.reset();
  }

  /** The ids of this job and of the compared jobs. */
  get jobIds() {
    return [this.jobId, ...this.compared.ids];
  }

  /** The ids of the drawn jobs, and of the jobs from which they were forked. */
  get sourceIds() {
    return [...new Set([...this.jobIds, ...this.ancestors.ids])];
  }

  /** The names of the metrics of all these jobs. */
  get names() {
    return [...new Set(this.jobIds.flatMap((id) => [...this.store.names(id)]))];
  }

  /** The error of the last request for this job's metric names, null if it succeeded. */
  get problem() {
    return this.readers.get(this.jobId).problem ?? null;
  }

  /** Return the document of a job, null until it has been received. */
  documentOf(id) {
    return id === this.jobId ? this.job : (this.compared.job(id) ?? this.ancestors.job(id));
  }

  /** Handle the start of a job's feed. If it did not resume, points may be missing: request names and points again. */
  begin(id, isResumed) {
    if (!this.readers.has(id)) this.readers.set(id, this.#reader(id));
    if (!isResumed) {
      this.store.outdate(id);
      this.detail.refresh();
      this.readers.get(id).read();
    }
    this.loader.retryNow();
    this.onChange();
  }

  /** Add points of a job from the live feed. */
  add(id, points) {
    this.store.add(id, points);
    this.onChange();
  }

  /** Request the metrics `names`, in this order, of all jobs that have them. */
  request(names) {
    const needed = new Set(names);
    this.store.evict(MOST_KEPT, (name) => needed.has(name));
    const pieces = [...needed].flatMap((name) => this.sourceIds.map((jobId) => ({ jobId, name })));
    this.loader.request(pieces.filter(({ jobId, name }) => this.isMissing(jobId, name)));
    this.detail.request(pieces);
  }

  /** Return whether a job has a metric whose points have not been loaded. */
  isMissing(jobId, name) {
    return this.store.names(jobId).has(name) && !this.store.isLoaded(jobId, name);
  }

  /** Return the error of a failed request for any of these metrics, null if there is none. */
  problemOf(names) {
    return this.jobIds.flatMap((id) => names.map((name) => this.loader.problem(id, name))).find(Boolean) ?? null;
  }

  /** Return the start of an attempt in nanoseconds, the origin of the relative time axis. */
  startOf({ jobId, attempt }) {
    const document = this.documentOf(jobId);
    const known = document?.attempts?.find((each) => each.attempt === attempt)?.started_at;
    return (fromText(known ?? document?.started_at) ?? 0) * 1e6;
  }

  #starts(jobId) {
    const attempts = new Set([...this.store.all(jobId)].map(({ attempt }) => attempt));
    return [...attempts].map((attempt) => this.startOf({ jobId, attempt }));
  }

  #reader(id) {
    return new NameReader(id, {
      onNames: (names) => {
        this.store.addNames(id, names);
        this.onChange();
      },
      onEnd: () => {
        this.isLoaded = true;
        this.onChange();
      },
    });
  }

  async #read(id, names, signal) {
    for (const name of names) this.store.expect(id, name);
    const compared = this.ancestors.job(id) ? null : this.compared.job(id);
    const attempt = isGiven(compared?.resume_step) ? null : compared?.attempt; // its line has earlier attempts
    const query = { names: namesParameter(names), points: POINTS, attempt };
    const page = await get(`/jobs/${id}/metrics`, query, signal);
    if (!this.sourceIds.includes(id)) return;
    for (const name of names) {
      const series = page.series.filter((each) => each.name === name);
      this.store.replace(id, name, series, { lastSeq: page.last_seq, isThinned: page.downsampled });
    }
  }

  #comparedChanged() {
    for (const [id, reader] of this.readers) {
      if (this.sourceIds.includes(id)) continue;
      reader.close();
      this.readers.delete(id);
      this.store.forget(id);
    }
    this.onCompared(this.compared.ids);
    this.onChange();
  }
}
