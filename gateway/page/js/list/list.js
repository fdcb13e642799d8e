// The list of jobs, live: filters, order and columns are in the address, and only the rows in view are elements.

import { AddressState } from "../address_state.js";
import { get } from "../api.js";
import { closeDialogs } from "../dialog.js";
import { debounced, h, oncePerFrame, setText } from "../dom.js";
import { count } from "../format.js";
import { bindKeys } from "../keys.js";
import { Feed } from "../socket.js";
import { STATUSES, hasEnded } from "../words.js";
import { Actions } from "./actions.js";
import { USUAL, chooseColumns, fieldsOf, split } from "./columns.js";
import { FilterBox } from "./filter_box.js";
import { ListHeads } from "./heads.js";
import { ListMessage } from "./message.js";
import { JobPages } from "./pages.js";
import { jobRow } from "./row.js";
import { ListRows } from "./rows.js";

const TICK_MS = 5000;
const PREFETCHED_ROWS = 60;
const PARAMETERS = ["status", "search", "filter", "sort", "columns", "archived"]; // of the address

/** Open the list; returns how to close it. */
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
    this.pages = new JobPages(
      () => this.#query(),
      () => this.draw(),
    );
    this.pages.onPut = (id) => this.rows.outdate(id);
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
    clearInterval(this.timer);
    this.unbind();
    closeDialogs();
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
      onClear: () => this.#tickOnly([]),
    });
    this.heads = new ListHeads({
      onSort: (sort) => this.#choose({ sort }, true),
      onTickAll: (isTicked) => this.#tickOnly(isTicked ? this.pages.order : []),
    });
    this.rows = new ListRows({
      makeRow: (id) => this.#row(id),
      onRelease: () => this.draw(),
      signal: this.closing.signal,
    });
    this.table = h("table", { class: "jobs", hidden: true }, h("thead", null, this.heads.root), this.rows.root);
    this.message = new ListMessage({ onRetry: () => this.pages.retryNow(), onClear: () => this.#clear() });
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
        this.message.root,
      ),
    );
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

  #showChoice() {
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
    const none = { jobs: [], params: [], tags: [], metrics: [] };
    chooseColumns(this.names ?? none, this.columns, (chosen) => {
      const isUsual = chosen.join() === USUAL.join();
      this.#choose({ columns: isUsual ? "" : chosen.join(",") }, true);
    });
  }

  async #load() {
    this.ticked.clear();
    await this.pages.load();
    if (this.pages.isLoaded && !this.pages.problem) window.scrollTo({ top: 0 });
  }

  #take(event) {
    this.pages.take(event);
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
    this.table.hidden = order.length === 0;
    setText(this.total, total === null ? "" : ` ${count(total)}`);
    this.#drawTicked();
    this.#say();
    if (this.rows.draw(order) < PREFETCHED_ROWS) this.pages.more();
  }

  #row(id) {
    return jobRow(this.pages.jobs.get(id), this.columns, {
      isTicked: this.ticked.has(id),
      onTick: (isTicked) => this.#tick(id, isTicked),
    });
  }

  #drawTicked() {
    for (const id of this.ticked) if (!this.pages.jobs.has(id)) this.ticked.delete(id);
    this.actions.update([...this.ticked].map((id) => this.pages.jobs.get(id)));
    this.heads.count(this.ticked.size, this.pages.order.length);
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
