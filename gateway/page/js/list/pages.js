// The jobs of the list in the gateway's order, loaded in pages, and reloaded when events may have changed the order.

import { Problem, get, isTemporary } from "../api.js";
import { backoff } from "../backoff.js";
import { throttled } from "../dom.js";
import { applyEvent } from "../job_state.js";

const PAGE = 100;
const REFRESH_MS = 3000;
const MOST_REFRESHED = 500;

export class JobPages {
  /** `query()` returns the parameters of `GET /jobs`; `onChange()` is called after each response. */
  constructor(query, onChange) {
    this.query = query;
    this.onChange = onChange;
    this.jobs = new Map();
    this.order = [];
    this.next = null;
    this.total = null;
    this.problem = null;
    this.tries = 0;
    this.again = () => this.load();
    this.isLoaded = false;
    this.refresh = throttled(() => this.#refresh(), REFRESH_MS);
  }

  /** The ids of the loaded jobs, in order. */
  get ids() {
    return this.order;
  }

  close() {
    this.refresh.cancel();
    clearTimeout(this.retry);
    this.abort?.abort();
    this.isClosed = true;
  }

  /** Load the first page, because the query has changed. */
  async load() {
    this.abort?.abort();
    this.abort = new AbortController();
    this.isLoading = true;
    this.again = () => this.load();
    await this.#ask(null, (page) => {
      this.order = page.items.map((job) => this.put(job));
      this.#forget();
      this.#took(page);
    });
  }

  /** Load the next page, unless a request is under way. */
  async more() {
    if (this.isLoading || this.next === null || this.problem) return;
    this.isLoading = true;
    this.again = () => this.more();
    await this.#ask(this.next, (page) => {
      const known = new Set(this.order);
      const ids = page.items.map((job) => this.put(job));
      this.order.push(...ids.filter((id) => !known.has(id)));
      this.next = page.next;
    });
  }

  /** Repeat the failed request now; the loaded jobs stay. */
  retryNow() {
    clearTimeout(this.retry);
    this.problem = null;
    this.again();
  }

  /** Store a job's document; column values that it lacks are kept from the stored one. */
  put(job) {
    const id = String(job.id);
    const columns = { ...this.jobs.get(id)?.columns, ...job.columns };
    this.jobs.set(id, { ...job, columns });
    this.onPut?.(id);
    return id;
  }

  /** Remove a deleted job. */
  #remove(id) {
    if (this.jobs.delete(id) && this.total !== null && this.order.includes(id)) this.total -= 1;
    this.order = this.order.filter((other) => other !== id);
  }

  /** Apply an event of the live feed; reload the pages if it may have changed the set of jobs or their order. */
  take(event) {
    const id = String(event.job_id);
    if (event.type === "snapshot") this.#takeSnapshot(event.jobs);
    else if (event.type === "job") this.#takeJob(event.job);
    else if (event.type === "training_deleted") this.#remove(id);
    else if (this.jobs.has(id)) {
      applyEvent(this.jobs.get(id), event);
      this.onPut?.(id);
      if (this.#isArranged()) this.refresh();
    }
  }

  #takeJob(job) {
    const before = this.jobs.get(String(job.id));
    if (before) this.put(job);
    const isElsewhere = before?.status !== job.status || before.archived_at !== job.archived_at;
    if (isElsewhere || this.#isArranged()) this.refresh();
  }

  /** Update jobs from the snapshot that begins a connection; reload if events may have been missed before it. */
  #takeSnapshot(jobs) {
    const mayMiss = this.hadSnapshot || jobs.slice(0, 50).some((job) => !this.jobs.has(String(job.id)));
    for (const job of jobs) if (this.jobs.has(String(job.id))) this.put(job);
    this.hadSnapshot = true;
    if (this.problem || (this.isLoaded && mayMiss)) this.refresh();
  }

  /** Return whether the jobs are sorted or filtered, so that any change of a job may move, add or remove it. */
  #isArranged() {
    const { sort, filter } = this.query();
    return Boolean(sort || filter);
  }

  #took(page) {
    this.next = page.next;
    this.total = page.total ?? null;
    this.isLoaded = true;
  }

  async #ask(cursor, take) {
    const { signal } = this.abort;
    try {
      const page = await get("/jobs", { ...this.query(), limit: PAGE, cursor }, signal);
      if (signal.aborted) return null;
      Object.assign(this, { problem: null, tries: 0 });
      take(page);
    } catch (problem) {
      if (!(problem instanceof Problem) || signal.aborted) return null;
      this.problem = problem;
      this.tries += 1;
      clearTimeout(this.retry);
      if (isTemporary(problem))
        this.retry = setTimeout(() => this.retryNow(), backoff(this.tries));
    }
    this.isLoading = false;
    this.onChange();
    return this.problem;
  }

  /** Load the pages from the first one again, because jobs were added, removed or moved. */
  async #refresh() {
    if (this.isClosed || !this.abort) return;
    if (this.isLoading) return void this.refresh();
    this.isLoading = true;
    this.again = () => this.#refresh();
    const wanted = Math.min(Math.max(this.order.length, 1), MOST_REFRESHED);
    const ids = [];
    let first = null;
    let next = null;
    do {
      const failed = await this.#ask(next, (page) => {
        first ??= page;
        ids.push(...page.items.map((job) => this.put(job)));
        next = page.next;
      });
      if (failed || first === null || this.isClosed) return;
      this.isLoading = true;
    } while (next !== null && ids.length < wanted);
    const fresh = new Set(ids);
    const rest = this.order.slice(ids.length).filter((id) => !fresh.has(id));
    this.order = [...fresh, ...(next === null ? [] : rest)];
    this.total = first.total ?? null;
    if (next === null || !rest.length) this.next = next;
    this.isLoading = false;
    this.#forget();
    this.onChange();
  }

  #forget() {
    const shown = new Set(this.order);
    for (const id of this.jobs.keys()) if (!shown.has(id)) this.jobs.delete(id);
  }
}
