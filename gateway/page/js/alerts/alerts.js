// The log of alerts: what was sent, what waits and why. It is read again every few seconds; filters are in the URL.

import { AddressState } from "../address_state.js";
import { get } from "../api.js";
import { backoff } from "../backoff.js";
import { h } from "../dom.js";
import { capitalized } from "../format.js";
import { noMatch, problemWords } from "../list/message.js";
import { alertRow, outageWords } from "./row.js";

const STATES = ["waiting", "sending", "sent", "failed", "uncertain", "suppressed"];
const HEADS = ["State", "Alert", "Rule", "To", "Time"];
const REFRESH_MS = 5000;
const PAGE = 50;
const MOST_REFRESHED = 200; // the most in one answer

/** Open the log of alerts; return a function that closes it. */
export function openAlerts(view, query) {
  const log = new AlertLog(view, query);
  log.open();
  return () => log.close();
}

class AlertLog {
  constructor({ content, crumbs }, query) {
    Object.assign(this, { content, crumbs, items: [], next: null, failures: 0 });
    this.address = new AddressState("#/alerts", query);
    this.isClosed = false;
  }

  open() {
    document.title = "Alerts · trainwire";
    this.crumbs.replaceChildren(h("a", { href: "#/" }, "Jobs"), h("span", { "aria-hidden": "true" }, "/"), h("span", { "aria-current": "page" }, "Alerts"));
    this.chips = ["", ...STATES].map((state) =>
      h("button", { class: "filter", data: { state }, on: { click: () => this.#choose({ state }) } }, capitalized(state || "all")),
    );
    this.ofJob = h("button", { class: "filter", "aria-pressed": "true", title: "Show the alerts of all jobs", on: { click: () => this.#choose({ job: "" }) } });
    this.outages = h("div", { class: "outages", role: "status" });
    this.rows = h("tbody");
    this.table = h("table", { class: "alerts", hidden: true }, h("thead", null, h("tr", null, HEADS.map((title) => h("th", { scope: "col" }, title)))), this.rows);
    this.older = h("button", { hidden: true, on: { click: () => this.#load(this.next) } }, "Show older alerts");
    this.message = h("div", { class: "list-said", role: "status" }, "Loading…");
    const filters = h("div", { class: "filters", role: "group", "aria-label": "Filter by state" }, this.chips, this.ofJob);
    const bar = h("div", { class: "list-bar" }, h("h1", null, "Alerts"), filters);
    this.content.replaceChildren(h("section", { class: "list" }, bar, this.outages, this.table, this.message, this.older));
    this.#showChoice();
    this.#load();
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
    this.loading?.abort();
    this.address.close();
  }

  #choose(change) {
    for (const [name, text] of Object.entries(change)) this.address.set(name, text);
    this.items = [];
    this.#showChoice();
    this.#load();
  }

  #showChoice() {
    const [state, job] = [this.address.get("state") ?? "", this.address.get("job")];
    for (const chip of this.chips) chip.setAttribute("aria-pressed", String(chip.dataset.state === state));
    this.ofJob.hidden = !job;
    this.ofJob.textContent = `Job ${job} ✕`;
  }

  /** Read the newest alerts again, or with `before` the page of older ones below them. */
  async #load(before = null) {
    clearTimeout(this.timer);
    this.loading?.abort();
    const { signal } = (this.loading = new AbortController());
    const chosen = { state: this.address.get("state"), job: this.address.get("job") };
    const limit = before ? PAGE : Math.max(PAGE, Math.min(MOST_REFRESHED, this.items.length));
    try {
      const page = await get("/alerts", { ...chosen, before, limit }, signal);
      if (this.isClosed) return;
      const last = page.items.at(-1)?.id ?? 0;
      const kept = before ? [] : this.items.filter(({ id }) => id < last);
      if (before || !kept.length) this.next = page.next;
      this.items = before ? [...this.items, ...page.items] : [...page.items, ...kept];
      [this.problem, this.failures] = [null, 0];
      this.#draw(page.outages);
    } catch (problem) {
      if (this.isClosed || problem.name === "AbortError") return;
      [this.problem, this.failures] = [problem, this.failures + 1];
      this.#say();
    }
    this.timer = setTimeout(() => this.#refresh(), Math.max(REFRESH_MS, backoff(this.failures + 1)));
  }

  #refresh() {
    if (document.visibilityState === "visible") this.#load();
    else this.timer = setTimeout(() => this.#refresh(), REFRESH_MS);
  }

  #draw(outages) {
    const key = JSON.stringify([this.items, outages]);
    if (key !== this.key) {
      this.outages.replaceChildren(...outages.map(outageWords));
      this.rows.replaceChildren(...this.items.map(alertRow));
      this.table.hidden = !this.items.length;
    }
    this.key = key;
    this.older.hidden = this.next === null;
    this.#say();
  }

  #say() {
    const isNarrowed = Boolean(this.address.get("state") || this.address.get("job"));
    const clear = () => this.#choose({ state: "", job: "" });
    const words = this.problem
      ? problemWords(this.problem, () => this.#load())
      : this.items.length
        ? []
        : [isNarrowed ? noMatch(clear, "alerts") : noAlerts()];
    this.message.replaceChildren(...words);
  }
}

function noAlerts() {
  return h(
    "div",
    { class: "empty" },
    h("h2", null, "No alerts yet"),
    h("p", null, "Alerts appear here when a rule applies, for example when a run fails. The file in ALERT_RULES has the rules."),
  );
}
