// The list of jobs grouped by the value of a field; the jobs of an unfolded group are loaded in pages.

import { Problem, get, isTemporary } from "../api.js";
import { backoff } from "../backoff.js";
import { h, throttled } from "../dom.js";
import { count, counted } from "../format.js";
import { JobPages } from "./pages.js";

const REFRESH_MS = 3000;
const NONE = "~none"; // in addresses: the group of the jobs without a value

/** Return the key of a group, which the page's URL also uses. */
function keyOf({ value }) {
  return value ?? NONE;
}

/** Return the filter expression for the jobs of a group. */
function conditionOf(by, { value }) {
  return value === null ? `${by} is null` : `${by} = "${value.replace(/["\\]/g, "\\$&")}"`;
}

/**
 * Like `JobPages`, for jobs grouped by the field `by`. `unfolded` is the set of keys of the unfolded groups;
 * `onUnfold()` is called when it changes.
 */
export class GroupedPages {
  constructor(query, onChange, { by, unfolded, onUnfold }) {
    Object.assign(this, { query, onChange, by, unfolded, onUnfold });
    this.groups = new Map();
    this.members = new Map();
    this.tries = 0;
    this.isLoaded = false;
    this.refresh = throttled(() => this.#read(), REFRESH_MS);
  }

  close() {
    this.isClosed = true;
    this.refresh.cancel();
    clearTimeout(this.retry);
    this.abort?.abort();
    for (const pages of this.members.values()) pages.close();
  }

  /**
   * The ids of the rows in order: `group:KEY` for a group, ids of jobs, `more:KEY` if a group has more jobs, and `cut:`
   * if there are more groups than are shown.
   */
  get order() {
    const rows = [...this.groups.keys()].flatMap((key) => {
      const pages = this.members.get(key);
      return [`group:${key}`, ...(pages?.order ?? []), ...(pages?.next ? [`more:${key}`] : [])];
    });
    return this.isCut ? [...rows, "cut:"] : rows;
  }

  get ids() {
    return [...this.members.values()].flatMap((pages) => pages.order);
  }

  get jobs() {
    return new Map([...this.members.values()].flatMap((pages) => [...pages.jobs]));
  }

  get total() {
    return this.isLoaded ? [...this.groups.values()].reduce((sum, { jobs }) => sum + jobs, 0) : null;
  }

  get problem() {
    return this.ownProblem ?? [...this.members.values()].find(({ problem }) => problem)?.problem ?? null;
  }

  async load() {
    for (const pages of this.members.values()) pages.close();
    this.members.clear();
    await this.#read();
  }

  /** Do nothing: more jobs of a group are loaded when its button is pressed. */
  more() {}

  retryNow() {
    this.#read();
    for (const pages of this.members.values()) if (pages.problem) pages.retryNow();
  }

  take(event) {
    for (const pages of this.members.values()) pages.take(event);
    if (["snapshot", "job", "training_deleted"].includes(event.type)) this.refresh();
  }

  async #read() {
    if (this.isClosed) return;
    this.abort?.abort();
    this.abort = new AbortController();
    const { signal } = this.abort;
    clearTimeout(this.retry);
    const { status, search, filter, archived } = this.query();
    try {
      const { items, complete } = await get("/jobs/groups", { by: this.by, status, search, filter, archived }, signal);
      this.groups = new Map(items.map((group) => [keyOf(group), group]));
      Object.assign(this, { isLoaded: true, isCut: !complete, ownProblem: null, tries: 0 });
      for (const key of this.groups.keys()) this.onPut?.(`group:${key}`);
    } catch (problem) {
      if (signal.aborted || !(problem instanceof Problem)) return;
      this.ownProblem = problem;
      this.tries += 1;
      if (isTemporary(problem)) this.retry = setTimeout(() => this.#read(), backoff(this.tries));
    }
    this.#arrange();
    this.onChange();
  }

  /** Load the jobs of newly unfolded groups, and drop those of folded groups. */
  #arrange() {
    for (const [key, pages] of this.members)
      if (!this.groups.has(key) || !this.unfolded.has(key)) {
        pages.close();
        this.members.delete(key);
      }
    for (const [key, group] of this.groups) {
      if (!this.unfolded.has(key) || this.members.has(key)) continue;
      const pages = new JobPages(() => this.#queryOf(group), this.onChange);
      pages.onPut = (id) => this.onPut?.(id);
      this.members.set(key, pages);
      pages.load();
    }
  }

  #queryOf(group) {
    const query = this.query();
    const condition = conditionOf(this.by, group);
    return { ...query, filter: query.filter.trim() ? `(${query.filter}) and ${condition}` : condition };
  }

  /** Unfold a group, or fold it if it is unfolded. */
  #toggle(key) {
    if (!this.unfolded.delete(key)) this.unfolded.add(key);
    this.onPut?.(`group:${key}`);
    this.#arrange();
    this.onUnfold();
    this.onChange();
  }

  /**
   * Return the row of a group, of its button for more jobs, or of the note on more groups; null for the id of a job.
   */
  row(id, columns) {
    const [, kind, key] = /^(group|more|cut):(.*)$/s.exec(id) ?? [];
    if (!kind) return null;
    const cut = () => h("span", { class: "quiet" }, `Only the ${count(this.groups.size)} newest groups are shown.`);
    const cell = { group: () => this.#head(key), more: () => this.#more(key), cut }[kind]();
    return h("tr", { class: `group is-${kind}` }, h("td", { colspan: String(columns + 1) }, cell));
  }

  #head(key) {
    const { value, jobs, running, failed } = this.groups.get(key);
    const isUnfolded = this.unfolded.has(key);
    const parts = this.by === "status" ? [] : [running && `${count(running)} running`, failed && `${count(failed)} failed`];
    const words = [counted(jobs, "job"), ...parts];
    return [
      h(
        "button",
        { class: "plain", "aria-expanded": String(isUnfolded), on: { click: () => this.#toggle(key) } },
        h("i", { "aria-hidden": "true" }, isUnfolded ? "▾" : "▸"),
        h("strong", { dir: "auto" }, value ?? "No value"),
      ),
      h("span", { class: "quiet num" }, words.filter(Boolean).join(" · ")),
    ];
  }

  #more(key) {
    return h("button", { class: "plain", on: { click: () => this.members.get(key)?.more() } }, "Show more");
  }
}
