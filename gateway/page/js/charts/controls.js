// The bar above the charts: axis, scale, smoothing, which metrics, which runs.

import { get } from "../api.js";
import { debounced, h, setText } from "../dom.js";
import { jobName, ordered } from "../words.js";
import { AXES } from "./curves.js";

/** The bar; `settings` is read and written, `onChange()` after each change. */
export class ChartControls {
  constructor(settings, { onChange, onCompare, onResetZoom }) {
    Object.assign(this, { settings, onChange, onCompare });
    this.axes = AXES.map((axis) => h("button", { data: { axis }, on: { click: () => this.set({ axis }) } }, axis));
    this.log = h(
      "button",
      {
        class: "toggle",
        title: "Logarithmic values (l)",
        on: { click: () => this.set({ isLog: !settings.isLog }) },
      },
      "log",
    );
    this.together = h(
      "button",
      {
        class: "toggle",
        title: "All chosen metrics in one chart (o)",
        on: { click: () => this.set({ isTogether: !settings.isTogether }) },
      },
      "one chart",
    );
    this.smoothing = h("input", {
      type: "range",
      min: "0",
      max: "0.98",
      step: "0.02",
      value: String(settings.smoothing),
      "aria-label": "Smoothing",
      on: { input: () => this.set({ smoothing: Number(this.smoothing.value) }) },
    });
    this.zoomed = h(
      "button",
      {
        class: "attention",
        hidden: true,
        title: "Show all (r, or a double click)",
        on: { click: onResetZoom },
      },
      "end zoom",
    );
    this.metrics = h("div", { class: "menu-body", tabindex: "-1" });
    this.metricsTitle = h("summary", null);
    this.runs = h("span", { class: "runs", role: "group", "aria-label": "Runs" });
    this.compare = h("input", {
      type: "text",
      class: "compare",
      list: "jobs-to-compare",
      placeholder: "+ compare job",
      "aria-label": "Compare with a job: its number",
      on: {
        focus: () => this.#suggest(),
        input: debounced(() => this.#suggest(), 250),
        keydown: (event) => event.key === "Enter" && this.#add(),
        change: () => this.#add(),
      },
    });
    this.suggestions = h("datalist", { id: "jobs-to-compare" });
    this.said = h("span", { class: "problem", role: "status" });
    this.root = h(
      "div",
      { class: "chart-bar" },
      h("span", { class: "segments", role: "group", "aria-label": "Horizontal axis" }, this.axes),
      this.log,
      this.together,
      h("label", { class: "smoothing" }, "smooth", this.smoothing),
      h(
        "details",
        { class: "menu", on: { focusout: closeBehind, keydown: closeOnEscape } },
        this.metricsTitle,
        this.metrics,
      ),
      this.runs,
      this.compare,
      this.suggestions,
      this.said,
      this.zoomed,
    );
    this.mark();
  }

  set(change) {
    Object.assign(this.settings, change);
    this.mark();
    this.onChange();
  }

  mark() {
    for (const button of this.axes)
      button.setAttribute("aria-pressed", String(button.dataset.axis === this.settings.axis));
    this.log.setAttribute("aria-pressed", String(this.settings.isLog));
    this.together.setAttribute("aria-pressed", String(this.settings.isTogether));
  }

  say(words) {
    setText(this.said, words);
  }

  /** Offer the metrics; all are shown but the hidden ones. */
  setMetrics(names) {
    const key = JSON.stringify([names, [...this.settings.hidden]]);
    if (key === this.metricsKey) return;
    this.metricsKey = key;
    const boxes = ordered(names).map((name) => {
      const box = h("input", {
        type: "checkbox",
        checked: !this.settings.hidden.has(name),
        on: { change: () => this.#toggle(name, box.checked) },
      });
      return h("label", null, box, h("span", { dir: "auto" }, name));
    });
    this.metrics.replaceChildren(...boxes);
    const shown = names.filter((name) => !this.settings.hidden.has(name)).length;
    setText(
      this.metricsTitle,
      shown === names.length ? `${names.length} metrics` : `${shown} of ${names.length} metrics`,
    );
  }

  /** Show the runs ({key, label, color, isShown, remove?}) as switches, where there is more than one. */
  setRuns(runs, onToggle) {
    this.runs.hidden = runs.length < 2;
    const chips = runs.map((run) => {
      const swatch = h("i", { class: "swatch", "aria-hidden": "true" });
      swatch.style.background = run.color;
      const name = h(
        "button",
        {
          class: "run",
          "aria-pressed": String(run.isShown),
          on: { click: () => onToggle(run.key) },
        },
        swatch,
        h("span", { dir: "auto" }, run.label),
      );
      const remove =
        run.remove &&
        h(
          "button",
          {
            class: "run-remove",
            "aria-label": `Stop comparing with ${run.label}`,
            on: { click: run.remove },
          },
          "×",
        );
      return h("span", { class: "run-chip" }, name, remove);
    });
    this.runs.replaceChildren(...chips);
  }

  #toggle(name, isShown) {
    if (isShown) this.settings.hidden.delete(name);
    else this.settings.hidden.add(name);
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

function closeBehind({ currentTarget, relatedTarget }) {
  if (!currentTarget.contains(relatedTarget)) currentTarget.open = false;
}

function closeOnEscape({ currentTarget, key }) {
  if (key === "Escape") currentTarget.open = false;
}
