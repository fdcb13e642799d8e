// The list of jobs, live: filters, order and columns are in the address, and only the rows in view are elements.

import { get } from "../api.js";
import { debounced, h, oncePerFrame, setText } from "../dom.js";
import { count } from "../format.js";
import { applyEvent } from "../job_state.js";
import { bindKeys } from "../keys.js";
import { Feed } from "../socket.js";
import { hasEnded } from "../words.js";
import { Actions } from "./actions.js";
import { USUAL, chooseColumns, columnOf, fieldsOf, split } from "./columns.js";
import { FilterBox } from "./filter_box.js";
import { JobPages } from "./pages.js";
import { jobRow } from "./row.js";

const STATUSES = ["running", "stalled", "lost", "failed", "ended", "completed", "pending"];
const TICK_MS = 5000;
const SPARE_ROWS = 12; // drawn above and below the window
const USUAL_ROW_PX = 46;
const EMPTY = { status: "", search: "", filter: "", sort: "", columns: "", archived: "" };

/** Open the list; returns how to close it. */
export function openList(view, query) {
  const list = new JobList(view, query);
  list.open();
  return () => list.close();
}

class JobList {
  constructor({ content, connection, mayEdit }, query) {
    Object.assign(this, { content, connection, mayEdit });
    this.choice = Object.fromEntries(Object.keys(EMPTY).map((name) => [name, query.get(name) ?? ""]));
    this.choice.search ||= query.get("name") ?? "";
    this.pages = new JobPages(
      () => this.#query(),
      () => this.draw(),
    );
    this.pages.onPut = (id) => this.stale.add(id);
    this.rows = new Map();
    this.stale = new Set();
    this.ticked = new Set();
    this.names = null;
    this.isPressed = false;
    this.closing = new AbortController();
    this.draw = oncePerFrame(() => this.#draw());
    this.load = debounced(() => this.#load(), 250);
  }

  open() {
    document.title = "Jobs · trainwire";
    this.#build();
    const [onEvent, onState] = [(event) => this.#take(event), (state) => this.connection.show(state)];
    this.feed = new Feed("/jobs/ws", { onEvent, onState });
    this.connection.onRetry = () => this.feed.wake();
    this.feed.open();
    const { signal } = this.closing;
    const onEnd = () => setTimeout(() => this.#release()); // after the click, which comes with it
    for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, onEnd, { signal });
    for (const moved of ["scroll", "resize"]) window.addEventListener(moved, this.draw, { signal, passive: true });
    this.timer = setInterval(() => this.#refreshAll(), TICK_MS);
    this.unbind = bindKeys({
      "/": ["Search jobs", () => this.search.focus()],
      e: ["Filter jobs", () => this.filter.input.focus()],
      j: ["Next job", () => this.#step(1)],
      k: ["Previous job", () => this.#step(-1)],
    });
    this.#load();
    this.#loadNames();
  }

  close() {
    this.feed.close();
    this.closing.abort();
    this.load.cancel();
    this.pages.close();
    clearInterval(this.timer);
    this.unbind();
    for (const dialog of document.querySelectorAll("dialog.columns, dialog.edit")) dialog.remove();
  }

  get columns() {
    const chosen = split(this.choice.columns);
    return chosen.length ? chosen : USUAL;
  }

  #query() {
    const { columns: _, ...others } = this.choice;
    return { ...others, columns: fieldsOf(this.columns).join(",") };
  }

  async #loadNames() {
    this.names = await get("/jobs/fields").catch(() => null);
  }

  #build() {
    this.search = h("input", {
      type: "search",
      id: "find-job",
      placeholder: "Search jobs",
      "aria-label": "Search jobs by ID, name or tag",
      value: this.choice.search,
      spellcheck: "false",
      on: { input: () => this.#choose({ search: this.search.value }) },
    });
    this.chips = ["", ...STATUSES].map((status) =>
      h("button", { class: "filter", data: { status }, on: { click: () => this.#choose({ status }, true) } }, status || "all"),
    );
    this.archived = h(
      "button",
      {
        class: "filter",
        title: "Show archived jobs too",
        on: { click: () => this.#choose({ archived: this.choice.archived ? "" : "true" }, true) },
      },
      "archived",
    );
    this.filter = new FilterBox(this.choice.filter, {
      names: () => this.names,
      onChange: (text) => this.#choose({ filter: text }),
      onEnter: (text) => this.#choose({ filter: text }, true),
    });
    this.actions = new Actions({
      mayEdit: this.mayEdit,
      onDone: () => this.#changed(),
      onClear: () => this.#tickNone(),
    });
    this.heads = h("tr");
    this.body = h("tbody", { on: { pointerdown: () => (this.isPressed = true) } });
    this.table = h("table", { class: "jobs", hidden: true }, h("thead", null, this.heads), this.body);
    this.said = h("div", { class: "list-said", role: "status" }, "Loading…");
    this.total = h("span", { class: "quiet num total" });
    const columns = h("button", { on: { click: () => this.#openColumns() } }, "Columns");
    this.content.replaceChildren(
      h(
        "section",
        { class: "list" },
        h(
          "div",
          { class: "list-bar" },
          h("h1", null, "Jobs", this.total),
          h("div", { class: "filters", role: "group", "aria-label": "Filter by status" }, this.chips, this.archived),
          this.search,
        ),
        h("div", { class: "list-bar list-filter" }, this.filter.root, columns),
        this.actions.root,
        h("div", { class: "jobs-frame" }, this.table),
        this.said,
      ),
    );
    this.#showChoice();
  }

  #choose(change, atOnce = false) {
    Object.assign(this.choice, change);
    const given = Object.entries(this.choice).filter(([, text]) => text);
    history.replaceState(null, "", given.length ? `#/?${new URLSearchParams(given)}` : "#/");
    this.#showChoice();
    this.load.cancel();
    if (atOnce) this.#load();
    else this.load();
  }

  #showChoice() {
    for (const chip of this.chips)
      chip.setAttribute("aria-pressed", String(chip.dataset.status === this.choice.status));
    this.archived.setAttribute("aria-pressed", String(Boolean(this.choice.archived)));
    this.heads.replaceChildren(this.#tickAll(), ...this.columns.map((key) => this.#head(key)));
    const [named, fields] = [this.columns.filter((key) => !columnOf(key).isField), fieldsOf(this.columns)];
    this.table.style.minWidth = window.innerWidth > 720 ? `${140 * named.length + 130 * fields.length}px` : "";
    this.rows.clear();
    this.body.replaceChildren();
  }

  #head(key) {
    const { title, sort, isField } = columnOf(key);
    const field = sort?.replace(/^-/, "");
    const order = this.choice.sort === field ? "ascending" : this.choice.sort === `-${field}` ? "descending" : "none";
    const th = h("th", { scope: "col", class: `h-${isField ? "field" : key}`, "aria-sort": sort ? order : null });
    if (!sort) th.append(title);
    else
      th.append(
        h(
          "button",
          { class: "sort", title: `Sort by ${field}`, on: { click: () => this.#sortBy(sort) } },
          h("span", { dir: "auto" }, title),
          h("i", { "aria-hidden": "true" }, { ascending: "↑", descending: "↓", none: "" }[order]),
        ),
      );
    return th;
  }

  /** The first click sorts by the usual order of the column, the second by the opposite, the third not at all. */
  #sortBy(sort) {
    const opposite = sort.startsWith("-") ? sort.slice(1) : `-${sort}`;
    const next = { [sort]: opposite, [opposite]: "" }[this.choice.sort] ?? sort;
    const focused = [...this.heads.querySelectorAll("button")].indexOf(document.activeElement);
    this.#choose({ sort: next }, true);
    this.heads.querySelectorAll("button")[focused]?.focus({ preventScroll: true });
  }

  #openColumns() {
    const none = { jobs: [], params: [], tags: [], metrics: [] };
    chooseColumns(this.names ?? none, this.columns, (chosen) => {
      const isUsual = chosen.join() === USUAL.join();
      this.#choose({ columns: isUsual ? "" : chosen.join(",") }, true);
    });
  }

  async #load() {
    this.ticked.clear();
    await this.pages.load();
    if (this.pages.isLoaded && !this.pages.problem) window.scrollTo({ top: Math.min(window.scrollY, 0) });
  }

  #take(event) {
    const id = String(event.job_id);
    if (event.type === "snapshot") this.#takeSnapshot(event.jobs);
    else if (event.type === "job") this.#takeJob(event.job);
    else if (event.type === "training_deleted") this.pages.remove(id);
    else if (this.pages.jobs.has(id)) {
      applyEvent(this.pages.jobs.get(id), event);
      this.stale.add(id);
      if (this.choice.sort || this.choice.filter) this.pages.refresh();
    }
    this.draw();
  }

  #takeJob(job) {
    const before = this.pages.jobs.get(String(job.id));
    if (before) this.pages.put(job);
    if (!before || before.status !== job.status || before.archived_at !== job.archived_at || this.choice.filter || this.choice.sort)
      this.pages.refresh();
  }

  /** The newest jobs, when a connection begins: some may have come or gone in the meantime. */
  #takeSnapshot(jobs) {
    for (const job of jobs) if (this.pages.jobs.has(String(job.id))) this.pages.put(job);
    if (this.pages.isLoaded || this.pages.problem) this.pages.refresh();
  }

  #changed() {
    this.#tickNone();
    this.pages.refresh();
    this.#loadNames();
  }

  #tickAll() {
    this.tickBox = h("input", {
      type: "checkbox",
      "aria-label": "Select all loaded jobs",
      on: {
        change: (event) => {
          this.ticked = new Set(event.target.checked ? this.pages.order : []);
          this.#redrawAll();
        },
      },
    });
    return h("th", { scope: "col", class: "h-tick" }, this.tickBox);
  }

  #tickNone() {
    this.ticked.clear();
    this.#redrawAll();
  }

  #tick(id, isTicked) {
    if (isTicked) this.ticked.add(id);
    else this.ticked.delete(id);
    this.stale.add(id);
    this.draw();
  }

  #redrawAll() {
    for (const id of this.rows.keys()) this.stale.add(id);
    this.draw();
  }

  #release() {
    this.isPressed = false;
    this.draw();
  }

  #draw() {
    if (this.isPressed || this.closing.signal.aborted) return; // a row replaced while it is pressed would get no click
    const { order, total } = this.pages;
    this.table.hidden = order.length === 0;
    setText(this.total, total === null ? "" : ` ${count(total)}`);
    this.#drawTicked();
    this.#say();
    this.#drawRows(order);
  }

  /** Draw the rows in view, between two empty rows that are as high as all others. */
  #drawRows(order) {
    const height = this.body.querySelector("tr.job")?.offsetHeight || USUAL_ROW_PX;
    const top = this.body.getBoundingClientRect().top;
    const last = Math.max(0, order.length);
    const from = Math.max(0, Math.min(last, Math.floor(-top / height) - SPARE_ROWS));
    const until = Math.min(last, Math.ceil((window.innerHeight - top) / height) + SPARE_ROWS);
    const shown = order.slice(from, until);
    const wanted = [this.#spacer("before", from * height), ...shown.map((id) => this.#row(id)), this.#spacer("after", (last - until) * height)];
    const kept = new Set(shown);
    for (const id of this.rows.keys()) if (!kept.has(id)) this.rows.delete(id);
    wanted.forEach((row, index) => {
      if (this.body.children[index] !== row) this.body.insertBefore(row, this.body.children[index] ?? null);
    });
    while (this.body.children.length > wanted.length) this.body.lastElementChild.remove();
    if (until > last - 2 * SPARE_ROWS) this.pages.more();
  }

  #spacer(name, height) {
    this[name] ??= h("tr", { class: "spacer", "aria-hidden": "true" });
    this[name].style.height = `${Math.max(0, height)}px`;
    this[name].hidden = height <= 0;
    return this[name];
  }

  #row(id) {
    const before = this.rows.get(id);
    if (before && !this.stale.delete(id)) return before;
    this.stale.delete(id);
    const row = jobRow(this.pages.jobs.get(id), this.columns, {
      isTicked: this.ticked.has(id),
      onTick: (isTicked) => this.#tick(id, isTicked),
    });
    this.rows.set(id, row);
    if (before?.isConnected) {
      const focused = before.contains(document.activeElement) ? document.activeElement.localName : null;
      before.replaceWith(row);
      if (focused) row.querySelector(focused)?.focus({ preventScroll: true });
    }
    return row;
  }

  #drawTicked() {
    for (const id of this.ticked) if (!this.pages.jobs.has(id)) this.ticked.delete(id);
    this.actions.update([...this.ticked].map((id) => this.pages.jobs.get(id)));
    this.tickBox.checked = this.ticked.size > 0 && this.ticked.size === this.pages.order.length;
    this.tickBox.indeterminate = this.ticked.size > 0 && !this.tickBox.checked;
  }

  #say() {
    const { problem, isLoaded, order } = this.pages;
    const isOfFilter = problem?.status === 422 && problem.message.startsWith("filter");
    this.filter.refuse(isOfFilter ? problem.message : null);
    const key = JSON.stringify([problem?.message, isLoaded, order.length > 0, isOfFilter]);
    if (key === this.saidKey) return;
    this.saidKey = key;
    if (problem && !isOfFilter) this.said.replaceChildren(...problemWords(problem, () => this.#load()));
    else if (order.length || isOfFilter) this.said.replaceChildren();
    else if (!isLoaded) setText(this.said, "Loading…");
    else this.said.replaceChildren(this.#isNarrowed() ? this.#noMatch() : emptyWords());
  }

  #isNarrowed() {
    return ["status", "search", "filter"].some((name) => this.choice[name].trim());
  }

  #noMatch() {
    const clear = () => {
      this.search.value = this.filter.input.value = "";
      this.#choose({ status: "", search: "", filter: "" }, true);
    };
    return h("p", { class: "no-match" }, "No matching jobs. ", h("button", { on: { click: clear } }, "Clear filters"));
  }

  #refreshAll() {
    for (const [id, job] of this.pages.jobs) if (!hasEnded(job)) this.stale.add(id);
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
    h("h2", null, "No runs yet"),
    h("p", null, "Start a run and it will appear here automatically:"),
    h("pre", null, h("code", null, "trainwire run -- python train.py")),
  );
}
