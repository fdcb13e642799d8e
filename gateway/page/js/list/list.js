// The list of jobs, updated by live events. Filters, order and columns are in the URL; only rows in view are elements.

import { AddressState } from "../address_state.js";
import { get } from "../api.js";
import { closeDialogs } from "../dialog.js";
import { debounced, h, oncePerFrame, setText } from "../dom.js";
import { capitalized, count } from "../format.js";
import { bindKeys } from "../keys.js";
import { Feed } from "../socket.js";
import { STATUSES, hasEnded } from "../words.js";
import { Actions } from "./actions.js";
import { USUAL, chooseColumns, columnOf, fieldsOf, groupings, split } from "./columns.js";
import { FilterBox } from "./filter_box.js";
import { GroupedPages } from "./groups.js";
import { ListHeads } from "./heads.js";
import { ListMessage } from "./message.js";
import { JobPages } from "./pages.js";
import { Plots, VIEWS } from "./plots/panel.js";
import { jobRow } from "./row.js";
import { ListRows } from "./rows.js";

const TICK_MS = 5000;
const PREFETCHED_ROWS = 60;
const REQUESTED = ["status", "search", "filter", "sort", "archived"]; // parameters of GET /jobs
const PLOTTED = ["view", "x", "y", "color", "log", "axes"];
const NO_NAMES = { jobs: [], params: [], tags: [], metrics: [] };
const PARAMETERS = [...REQUESTED, "columns", "by", ...PLOTTED]; // of the address

/** Open the list of jobs; return a function that closes it. */
export function openList(view, query) {
  const list = new JobList(view, query);
  list.open();
  return () => list.close();
}

class JobList {
  constructor({ content, connection, mayEdit }, query) {
    Object.assign(this, { content, connection, mayEdit });
    this.address = new AddressState("#/", query);
    this.choice = Object.fromEntries(PARAMETERS.map((name) => [name, query.get(name) ?? ""]));
    this.choice.search ||= query.get("name") ?? ""; // in older addresses
    this.unfolded = new Set(query.getAll("unfold"));
    this.#makePages();
    this.plots = new Plots({
      query: () => this.#query(),
      choice: () => this.choice,
      names: () => this.names,
      onChoose: (change) => this.#plot(change),
    });
    this.ticked = new Set();
    this.names = null;
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
    for (const moved of ["scroll", "resize"]) window.addEventListener(moved, this.draw, { signal, passive: true });
    this.timer = setInterval(() => this.#refreshAll(), TICK_MS);
    this.unbind = bindKeys({
      "/": ["Search jobs", () => this.search.focus()],
      e: ["Filter jobs", () => this.filter.input.focus()],
      j: ["Next job", () => this.rows.step(1)],
      k: ["Previous job", () => this.rows.step(-1)],
    });
    this.#load();
    this.#loadNames();
  }

  close() {
    this.address.close();
    this.feed.close();
    this.closing.abort();
    this.load.cancel();
    this.pages.close();
    this.plots.close();
    clearInterval(this.timer);
    this.unbind();
    closeDialogs();
  }

  /** Create the source of the rows: `JobPages`, or `GroupedPages` if the jobs are grouped by a field. */
  #makePages() {
    this.pages?.close();
    const { by } = this.choice;
    const onUnfold = () => this.address.set("unfold", [...this.unfolded]);
    const [query, onChange] = [() => this.#query(), () => this.draw()];
    this.pages = by
      ? new GroupedPages(query, onChange, { by, unfolded: this.unfolded, onUnfold })
      : new JobPages(query, onChange);
    this.pages.onPut = (id) => this.rows.outdate(id);
  }

  get columns() {
    const chosen = split(this.choice.columns);
    return chosen.length ? chosen : USUAL;
  }

  #query() {
    const requested = Object.fromEntries(REQUESTED.map((name) => [name, this.choice[name]]));
    return { ...requested, columns: fieldsOf(this.columns).join(",") };
  }

  async #loadNames() {
    this.names = await get("/jobs/fields").catch(() => NO_NAMES);
    this.#showGroupings();
    this.plots.load();
  }

  /** Update the options of the menu "Group by". */
  #showGroupings() {
    const { by } = this.choice;
    const known = groupings(this.names ?? NO_NAMES);
    const fields = !by || known.includes(by) ? known : [by, ...known];
    const option = (field) => h("option", { value: field, selected: field === by }, `By ${columnOf(field).title.toLowerCase()}`);
    this.by.replaceChildren(h("option", { value: "" }, "No groups"), ...fields.map(option));
  }

  #group(by) {
    this.unfolded.clear();
    this.address.set("unfold", []);
    this.choice.by = by;
    this.#makePages();
    this.#choose({ by }, true);
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
      h("button", { class: "filter", data: { status }, on: { click: () => this.#choose({ status }, true) } }, capitalized(status || "all")),
    );
    this.archived = h(
      "button",
      {
        class: "filter",
        title: "Show archived jobs too",
        on: { click: () => this.#choose({ archived: this.choice.archived ? "" : "true" }, true) },
      },
      "Archived",
    );
    this.filter = new FilterBox(this.choice.filter, {
      names: () => this.names,
      onChange: (text) => this.#choose({ filter: text }),
      onEnter: (text) => this.#choose({ filter: text }, true),
    });
    this.actions = new Actions({
      mayEdit: this.mayEdit,
      onDone: () => this.#changed(),
      onClear: () => this.#tickOnly([]),
      onPlot: (ids) => this.#plotOnly(ids),
    });
    this.heads = new ListHeads({
      onSort: (sort) => this.#choose({ sort }, true),
      onTickAll: (isTicked) => this.#tickOnly(isTicked ? this.pages.ids : []),
    });
    this.rows = new ListRows({
      makeRow: (id) => this.#row(id),
      onRelease: () => this.draw(),
      signal: this.closing.signal,
    });
    this.table = h("table", { class: "jobs", hidden: true }, h("thead", null, this.heads.root), this.rows.root);
    this.message = new ListMessage({ onRetry: () => this.pages.retryNow(), onClear: () => this.#clear() });
    this.total = h("span", { class: "quiet num total" });
    this.columnsButton = h("button", { on: { click: () => this.#openColumns() } }, "Columns");
    this.by = h("select", { "aria-label": "Group by", on: { change: () => this.#group(this.by.value) } });
    this.view = h(
      "select",
      { "aria-label": "View", on: { change: () => this.#plot({ view: this.view.value }) } },
      Object.entries({ "": "Table", ...VIEWS }).map(([view, title]) => h("option", { value: view }, title)),
    );
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
        h("div", { class: "list-bar list-filter" }, this.filter.root, this.by, this.view, this.columnsButton),
        this.actions.root,
        this.plots.root,
        h("div", { class: "jobs-frame" }, this.table),
        this.message.root,
      ),
    );
    this.#showGroupings();
    this.#showChoice();
  }

  #choose(change, atOnce = false) {
    Object.assign(this.choice, change);
    for (const [name, text] of Object.entries({ ...this.choice, name: "" })) this.address.set(name, text);
    this.#showChoice();
    this.load.cancel();
    if (!atOnce) return this.load();
    this.address.write();
    this.#load();
  }

  /** Apply a change of the view (table or plot) and of the parameters of plots. */
  #plot(change) {
    Object.assign(this.choice, change);
    for (const name of PLOTTED) this.address.set(name, this.choice[name]);
    this.#showChoice();
    this.plots.load();
    this.draw();
  }

  #plotOnly(ids) {
    const isPlot = this.choice.view in VIEWS;
    const change = { status: "", search: "", filter: `id in (${ids.join(", ")})`, view: isPlot ? this.choice.view : "scatter" };
    [this.search.value, this.filter.input.value] = ["", change.filter];
    this.#choose(change, true);
  }

  #showChoice() {
    this.view.value = this.choice.view in VIEWS ? this.choice.view : "";
    this.columnsButton.hidden = this.by.hidden = this.plots.isShown;
    for (const chip of this.chips)
      chip.setAttribute("aria-pressed", String(chip.dataset.status === this.choice.status));
    this.archived.setAttribute("aria-pressed", String(Boolean(this.choice.archived)));
    this.heads.update(this.columns, this.choice.sort);
    const fields = fieldsOf(this.columns).length;
    this.table.style.setProperty("--columns-width", `${140 * (this.columns.length - fields) + 130 * fields}px`);
    if (this.shownColumns === this.choice.columns) return;
    this.shownColumns = this.choice.columns;
    this.#redrawAll();
  }

  #openColumns() {
    chooseColumns(this.names ?? NO_NAMES, this.columns, (chosen) => {
      const isUsual = chosen.join() === USUAL.join();
      this.#choose({ columns: isUsual ? "" : chosen.join(",") }, true);
    });
  }

  async #load() {
    this.ticked.clear();
    this.plots.load();
    await this.pages.load();
    if (this.pages.isLoaded && !this.pages.problem) window.scrollTo({ top: 0 });
  }

  #take(event) {
    this.pages.take(event);
    if (this.plots.isShown) this.plots.refresh();
    this.draw();
  }

  #changed() {
    this.#tickOnly([]);
    this.pages.refresh();
    this.#loadNames();
  }

  #tickOnly(ids) {
    this.ticked = new Set(ids);
    this.#redrawAll();
  }

  #tick(id, isTicked) {
    if (isTicked) this.ticked.add(id);
    else this.ticked.delete(id);
    this.rows.outdate(id);
    this.draw();
  }

  #redrawAll() {
    this.rows.outdate();
    this.draw();
  }

  #draw() {
    if (this.rows.isPressed || this.closing.signal.aborted) return;
    const { order, total } = this.pages;
    this.table.hidden = order.length === 0 || this.plots.isShown;
    setText(this.total, total === null ? "" : ` ${count(total)}`);
    this.#drawTicked();
    this.#say();
    if (!this.table.hidden && this.rows.draw(order) < PREFETCHED_ROWS) this.pages.more();
  }

  #row(id) {
    const row = this.pages.row?.(id, this.columns.length);
    if (row) return row;
    return jobRow(this.pages.jobs.get(id), this.columns, {
      isTicked: this.ticked.has(id),
      onTick: (isTicked) => this.#tick(id, isTicked),
    });
  }

  #drawTicked() {
    for (const id of this.ticked) if (!this.pages.jobs.has(id)) this.ticked.delete(id);
    this.actions.update([...this.ticked].map((id) => this.pages.jobs.get(id)));
    this.heads.count(this.ticked.size, this.pages.ids.length);
  }

  #say() {
    const { problem, isLoaded, order } = this.pages;
    const isOfFilter = problem?.status === 422 && problem.message.startsWith("filter");
    this.filter.refuse(isOfFilter ? problem.message : null);
    this.message.update({
      problem: isOfFilter ? null : problem,
      isLoaded,
      isEmpty: order.length === 0 && !isOfFilter,
      isNarrowed: ["status", "search", "filter"].some((name) => this.choice[name].trim()),
    });
  }

  #clear() {
    this.search.value = this.filter.input.value = "";
    this.#choose({ status: "", search: "", filter: "" }, true);
  }

  #refreshAll() {
    for (const [id, job] of this.pages.jobs) if (!hasEnded(job)) this.rows.outdate(id);
    this.draw();
  }
}
