// The bar above the charts: axis, scale, smoothing, which metrics, which runs and ranks.

import { get } from "../api.js";
import { debounced, h, setText } from "../dom.js";
import { capitalized } from "../format.js";
import { jobName } from "../words.js";
import { AXES } from "./curves.js";
import { MENU_EVENTS, MetricMenu } from "./metric_menu.js";
import { rankChips, runChips } from "./run_chips.js";
import { smoothingOf } from "./settings.js";

const FILTER_MS = 200;

/** The bar above the charts. It reads and changes `settings`, and calls `onChange()` after each change. */
export class ChartControls {
  constructor(settings, { onChange, onCompare, onResetZoom, onCsv, onPng, onCopy }) {
    Object.assign(this, { settings, onChange, onCompare });
    const toggle = (name, words, title) => {
      const click = () => this.set({ [name]: !settings[name], ...(name === "isMean" && { isMeanChosen: true }) });
      return h("button", { class: "toggle", title, data: { setting: name }, on: { click } }, words);
    };
    this.axes = AXES.map((axis) =>
      h("button", { data: { axis }, on: { click: () => this.set({ axis, isAxisChosen: true }) } }, capitalized(axis)),
    );
    this.mean = toggle("isMean", "Mean of ranks", "The mean of all ranks, and their lowest and highest values");
    this.toggles = [
      toggle("isLog", "Log scale", "Logarithmic values (l)"),
      toggle("isTogether", "Overlay", "All selected metrics in one chart (o)"),
      toggle("isOutlierFree", "Ignore outliers", "Scale by the values without the lowest and highest 2%"),
    ];
    const smooth = (field) => () => this.set({ smoothing: smoothingOf(field.value) });
    const range = { min: "0", max: "0.99", step: "0.01" };
    this.slider = h("input", {
      type: "range",
      "aria-label": "Smoothing",
      ...range,
      on: { input: () => smooth(this.slider)() },
    });
    this.number = h("input", {
      type: "number",
      "aria-label": "Smoothing, a number from 0 to 0.99",
      ...range,
      on: { change: () => smooth(this.number)() },
    });
    this.zoomed = h(
      "button",
      { class: "attention", hidden: true, title: "Show all (r, or a double click)", on: { click: onResetZoom } },
      "Reset zoom",
    );
    this.filter = h("input", {
      type: "search",
      class: "metric-filter",
      placeholder: "Filter metrics (regex)",
      "aria-label": "Filter metrics by a regular expression",
      value: settings.filter,
      spellcheck: "false",
      on: { input: debounced(() => this.set({ filter: this.filter.value }), FILTER_MS) },
    });
    this.menu = new MetricMenu({
      onToggle: (name, isShown) => this.#show([name], isShown),
      onAll: (isShown) => this.#show(this.fitting, isShown),
    });
    this.runs = h("span", { class: "runs", role: "group", "aria-label": "Runs" });
    this.ranks = h("span", { class: "runs ranks", role: "group", "aria-label": "Ranks" });
    this.compare = h("input", {
      type: "text",
      class: "compare",
      list: "jobs-to-compare",
      placeholder: "+ Compare job",
      "aria-label": "Compare with a job: its number",
      on: {
        focus: () => this.#suggest(),
        input: debounced(() => this.#suggest(), 250),
        keydown: (event) => event.key === "Enter" && this.#add(),
        change: () => this.#add(),
      },
    });
    this.suggestions = h("datalist", { id: "jobs-to-compare" });
    this.status = h("span", { class: "chart-status", role: "status" });
    this.root = h(
      "div",
      { class: "chart-bar" },
      h("span", { class: "segments", role: "group", "aria-label": "Horizontal axis" }, this.axes),
      this.toggles,
      share(onCopy, onCsv, onPng),
      this.zoomed,
      h("label", { class: "smoothing" }, "Smoothing", this.slider, this.number),
      this.filter,
      this.menu.root,
      this.compare,
      this.suggestions,
      this.status,
      this.runs,
      this.mean,
      this.ranks,
    );
    this.mark();
  }

  set(change) {
    Object.assign(this.settings, change);
    this.mark();
    this.onChange();
  }

  mark() {
    const { settings } = this;
    for (const button of this.axes)
      button.setAttribute("aria-pressed", String(button.dataset.axis === settings.axis));
    for (const button of [...this.toggles, this.mean])
      button.setAttribute("aria-pressed", String(settings[button.dataset.setting]));
    for (const field of [this.slider, this.number])
      if (document.activeElement !== field) field.value = String(settings.smoothing);
  }

  /** Show a short message, as an error or as information; "" removes it. */
  say(words, isProblem = true) {
    setText(this.status, words);
    this.status.classList.toggle("problem", isProblem);
  }

  /**
   * Show the metrics that match the filter in the menu; `total` is the number of all metrics, `problem` the error of an
   * invalid filter.
   */
  setMetrics(fitting, total, problem) {
    this.fitting = fitting;
    this.filter.setAttribute("aria-invalid", String(problem !== null));
    this.filter.title = problem ?? "";
    if (problem) this.say(problem);
    else if (this.filterProblem) this.say("");
    this.filterProblem = problem;
    this.menu.update(fitting, this.settings.hidden, total);
  }

  /** Show the toggle buttons of runs and ranks (see run_chips.js). */
  setRuns(runs, onToggle, ranks, rankOptions) {
    const key = JSON.stringify([
      runs,
      ranks.map((rank) => [rank, rankOptions.styleOf(rank)]),
      [...rankOptions.hidden],
    ]);
    if (key === this.runsKey) return;
    this.runsKey = key;
    this.runs.replaceChildren(...runChips(runs, onToggle));
    this.ranks.replaceChildren(...rankChips(ranks, rankOptions));
    this.runs.hidden = runs.length < 2;
    this.ranks.hidden = this.mean.hidden = ranks.length === 0;
  }

  #show(names, isShown) {
    for (const name of names) {
      if (isShown) this.settings.hidden.delete(name);
      else this.settings.hidden.add(name);
    }
    this.onChange();
  }

  #add() {
    const id = /^#?(\d+)/.exec(this.compare.value.trim())?.[1];
    if (!id) return;
    this.compare.value = "";
    this.onCompare(id);
  }

  async #suggest() {
    const typed = this.compare.value.trim();
    const page = await get("/jobs", { limit: 20, name: /^\d*$/.test(typed) ? "" : typed }).catch(() => ({
      items: [],
    }));
    this.suggestions.replaceChildren(
      ...page.items.map((job) => h("option", { value: String(job.id) }, `${job.id} · ${jobName(job)}`)),
    );
  }
}

function share(onCopy, onCsv, onPng) {
  return h(
    "details",
    { class: "menu share", on: MENU_EVENTS },
    h("summary", null, "Share"),
    h(
      "div",
      { class: "menu-body popover", tabindex: "-1" },
      h("button", { class: "plain", on: { click: onCopy } }, "Copy link"),
      h("button", { class: "plain", on: { click: onCsv } }, "Download all as CSV"),
      h("button", { class: "plain", on: { click: onPng } }, "Download all as PNG"),
    ),
  );
}
