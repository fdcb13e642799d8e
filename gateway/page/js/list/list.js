// The list of jobs, live.

import { Problem, get } from "../api.js";
import { debounced, h, oncePerFrame, setText } from "../dom.js";
import { applyEvent } from "../job_state.js";
import { bindKeys } from "../keys.js";
import { Feed } from "../socket.js";
import { byId, hasEnded } from "../words.js";
import { jobRow } from "./row.js";

const STATUSES = ["running", "stalled", "lost", "failed", "ended", "completed", "pending"];
const PAGE = 200; // as many as the live snapshot has: the next page begins where it ends
const TICK_MS = 5000;
const COLUMNS = ["status", "id", "name", "progress", "last metrics", "", "time", "began"];

/** Open the list; returns how to close it. */
export function openList(view, query) {
  const list = new JobList(view, query);
  list.open();
  return () => list.close();
}

class JobList {
  constructor({ content, connection }, query) {
    this.content = content;
    this.connection = connection;
    this.filter = { status: query.get("status") ?? "", name: query.get("name") ?? "" };
    this.jobs = new Map();
    this.rows = new Map();
    this.stale = new Set();
    this.next = null;
    this.isLoaded = false;
    this.isPressed = false;
    this.closing = new AbortController();
    this.draw = oncePerFrame(() => this.#draw());
    this.search = debounced(() => this.#load(), 200);
  }

  open() {
    document.title = "jobs · trainwire";
    this.#build();
    const [onEvent, onState] = [(event) => this.#take(event), (state) => this.connection.show(state)];
    this.feed = new Feed("/jobs/ws", { onEvent, onState });
    this.connection.onRetry = () => this.feed.wake();
    this.feed.open();
    const onEnd = () => setTimeout(() => this.#release()); // after the click, which comes with it
    for (const end of ["pointerup", "pointercancel"])
      window.addEventListener(end, onEnd, { signal: this.closing.signal });
    this.timer = setInterval(() => this.#refreshAll(), TICK_MS);
    this.unbind = bindKeys({
      "/": ["search", () => this.name.focus()],
      j: ["the next job", () => this.#step(1)],
      k: ["the job before", () => this.#step(-1)],
    });
    this.#load();
  }

  close() {
    this.feed.close();
    this.closing.abort();
    this.search.cancel();
    this.abort?.abort();
    clearInterval(this.timer);
    this.unbind();
  }

  #build() {
    this.name = h("input", {
      type: "search",
      id: "find-job",
      placeholder: "name",
      "aria-label": "Filter by name",
      value: this.filter.name,
      spellcheck: "false",
      on: { input: () => this.#changeFilter({ name: this.name.value }) },
    });
    this.chips = ["", ...STATUSES].map((status) =>
      h(
        "button",
        { class: "filter", data: { status }, on: { click: () => this.#changeFilter({ status }) } },
        status || "all",
      ),
    );
    this.body = h("tbody", { on: { pointerdown: () => (this.isPressed = true) } });
    this.table = h(
      "table",
      { class: "jobs" },
      h(
        "thead",
        null,
        h(
          "tr",
          null,
          COLUMNS.map((name) => h("th", { scope: "col", class: `h-${name.split(" ").at(-1) || "spark"}` }, name)),
        ),
      ),
      this.body,
    );
    this.said = h("div", { class: "list-said", role: "status" });
    this.more = h(
      "button",
      { class: "more", hidden: true, on: { click: () => this.#load(this.next) } },
      "Older jobs",
    );
    const bar = h(
      "div",
      { class: "list-bar" },
      h("h1", null, "Jobs"),
      h("div", { class: "filters", role: "group", "aria-label": "Filter by status" }, this.chips),
      this.name,
    );
    this.content.replaceChildren(h("section", { class: "list" }, bar, this.table, this.said, this.more));
    this.#markFilter();
    setText(this.said, "Loading …");
    this.table.hidden = true;
  }

  #changeFilter(change) {
    Object.assign(this.filter, change);
    const given = Object.entries(this.filter).filter(([, value]) => value);
    history.replaceState(null, "", given.length ? `#/?${new URLSearchParams(given)}` : "#/");
    this.#markFilter();
    this.draw();
    this.search();
  }

  #markFilter() {
    for (const chip of this.chips)
      chip.setAttribute("aria-pressed", String(chip.dataset.status === this.filter.status));
  }

  async #load(cursor = null) {
    this.abort?.abort();
    this.abort = new AbortController();
    try {
      const page = await get("/jobs", { ...this.filter, limit: PAGE, cursor }, this.abort.signal);
      for (const job of page.items) this.#put(job);
      this.next = page.next;
      this.isLoaded = true;
      this.problem = null;
    } catch (problem) {
      if (!(problem instanceof Problem)) return;
      this.problem = problem;
    }
    this.draw();
  }

  #take(event) {
    if (event.type === "snapshot") this.#takeSnapshot(event.jobs);
    else if (event.type === "job") this.#put(event.job);
    else if (event.type === "training_deleted") this.#remove(String(event.job_id));
    else if (this.jobs.has(String(event.job_id))) {
      applyEvent(this.jobs.get(String(event.job_id)), event);
      this.stale.add(String(event.job_id));
    }
    this.draw();
  }

  #takeSnapshot(jobs) {
    this.#removeDeleted(jobs);
    for (const job of jobs) this.#put(job);
    const hadProblem = this.problem;
    this.isLoaded = true;
    this.problem = null;
    if (hadProblem) this.#load();
  }

  // A snapshot has the newest jobs: what is as new, and not in it, was deleted while nobody listened.
  #removeDeleted(jobs) {
    const there = new Set(jobs.map((job) => String(job.id)));
    const oldest = jobs.length < PAGE ? -Infinity : Math.min(...jobs.map((job) => Date.parse(job.created_at)));
    for (const [id, job] of this.jobs)
      if (!there.has(id) && Date.parse(job.created_at) > oldest) this.#remove(id);
  }

  #remove(id) {
    this.jobs.delete(id);
    this.rows.delete(id);
  }

  #put(job) {
    this.jobs.set(String(job.id), job);
    this.stale.add(String(job.id));
  }

  #shown() {
    const name = this.filter.name.trim().toLowerCase();
    const fits = (job) =>
      (!this.filter.status || job.status === this.filter.status) && (job.name ?? "").toLowerCase().includes(name);
    const byAge = (a, b) => Date.parse(b.created_at) - Date.parse(a.created_at) || byId(b.id, a.id);
    return [...this.jobs.values()].filter(fits).sort(byAge);
  }

  #release() {
    this.isPressed = false;
    this.draw();
  }

  #draw() {
    if (this.isPressed) return; // a row that is replaced between the press and the release would get no click
    const jobs = this.#shown();
    this.table.hidden = jobs.length === 0;
    this.more.hidden = this.next === null || this.next === undefined || Boolean(this.problem);
    this.#say(jobs);
    const wanted = jobs.map((job) => this.#row(job));
    wanted.forEach((row, index) => {
      if (this.body.children[index] !== row) this.body.insertBefore(row, this.body.children[index] ?? null);
    });
    while (this.body.children.length > wanted.length) this.body.lastElementChild.remove();
  }

  #row(job) {
    const id = String(job.id);
    const before = this.rows.get(id);
    if (before && !this.stale.delete(id)) return before;
    const row = jobRow(job);
    this.stale.delete(id);
    this.rows.set(id, row);
    if (before?.isConnected) {
      const hadFocus = before.contains(document.activeElement);
      before.replaceWith(row);
      if (hadFocus) row.querySelector("a").focus({ preventScroll: true });
    }
    return row;
  }

  #say(jobs) {
    if (this.problem) this.said.replaceChildren(...problemWords(this.problem, () => this.#load()));
    else if (!this.isLoaded) setText(this.said, "Loading …");
    else if (jobs.length) this.said.replaceChildren();
    else if (this.jobs.size) setText(this.said, "No job is like this.");
    else this.said.replaceChildren(emptyWords());
  }

  #refreshAll() {
    for (const job of this.jobs.values())
      if (!hasEnded(job)) this.stale.add(String(job.id));
    this.draw();
  }

  #step(by) {
    const links = [...this.body.querySelectorAll("a.job-link")];
    const at = links.indexOf(document.activeElement);
    links[Math.max(0, Math.min(links.length - 1, at + by))]?.focus();
  }
}

function problemWords(problem, retry) {
  return [h("p", { class: "problem" }, problem.message), h("button", { on: { click: retry } }, "Try again")];
}

function emptyWords() {
  return h(
    "div",
    { class: "empty" },
    h("h2", null, "No training has said anything yet"),
    h("p", null, "Run any command under trainwire, and it appears here by itself:"),
    h("pre", null, h("code", null, "trainwire run -- python train.py")),
  );
}
