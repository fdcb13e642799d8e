// Plots of the listed jobs: a scatter plot of two fields, or parallel coordinates of several.

import { Problem, get, isTemporary, retriedWords } from "../../api.js";
import { backoff } from "../../backoff.js";
import { h, oncePerFrame, setText, throttled } from "../../dom.js";
import { count, counted } from "../../format.js";
import { jobName } from "../../words.js";
import { chooseColumns, columnOf, fieldsToPlot, split } from "../columns.js";
import { colorLegend } from "./color.js";
import { parallel } from "./parallel.js";
import { moved, nearest } from "./pointer.js";
import { scatter, scatterFields } from "./scatter.js";

export const VIEWS = { scatter: "Scatter plot", parallel: "Parallel coordinates" };
const PAGE = 200;
const MOST = 1000; // jobs in a plot
const REFRESH_MS = 10_000;
const USUAL_AXES = 4;

/**
 * The panel of plots. `query()` returns the parameters of the list, `choice()` those of plots in the URL: `view`, `x`,
 * `y`, `color`, `log`, `axes`; `names()` returns the known fields. `onChoose(change)` is called after a choice.
 */
export class Plots {
  constructor({ query, choice, names, onChoose }) {
    Object.assign(this, { query, choice, names, onChoose });
    this.jobs = [];
    this.at = -1;
    this.draw = oncePerFrame(() => this.#draw());
    this.refresh = throttled(() => this.load(), REFRESH_MS);
    this.controls = h("div", { class: "plot-controls" });
    this.tip = h("div", { class: "plot-tip popover", hidden: true });
    this.spoken = h("span", { class: "unseen", role: "status" });
    this.legend = h("p", { class: "plot-legend quiet small" });
    this.note = h("p", { class: "quiet small", role: "status" });
    this.host = h("div", {
      class: "plot-host",
      role: "group",
      tabindex: "0",
      on: {
        keydown: (event) => this.#key(event),
        pointermove: (event) => this.#point(event),
        pointerleave: () => this.#mark(-1),
        blur: () => this.#mark(-1),
        click: (event) => this.#open(this.#under(event)),
      },
    });
    this.root = h("section", { class: "plots", hidden: true }, this.controls, h("div", { class: "plot-frame" }, this.host, this.tip), this.legend, this.note, this.spoken);
    this.resizing = new ResizeObserver(this.draw);
    this.resizing.observe(this.host);
  }

  close() {
    this.abort?.abort();
    clearTimeout(this.retry);
    this.refresh.cancel();
    this.resizing.disconnect();
  }

  get isShown() {
    return this.choice().view in VIEWS;
  }

  /** The fields to draw: the chosen ones, or defaults. */
  get #chosen() {
    const { x, y, color, log, axes } = this.choice();
    const known = fieldsToPlot(this.names());
    const metric = known.find((field) => /^metrics\.(.*[/_])?loss$/.test(field)) ?? known.find((field) => field.startsWith("metrics."));
    const params = known.filter((field) => field.startsWith("params."));
    const usual = [...params.slice(0, USUAL_AXES), metric ?? "duration"];
    return {
      x: x || params[0] || "started",
      y: y || metric || "duration",
      color,
      log,
      axes: axes ? split(axes) : usual.length > 1 ? usual : ["started", ...usual],
    };
  }

  /** Request the jobs with the values of the chosen fields, and draw the plot. */
  async load() {
    this.root.hidden = !this.isShown;
    this.abort?.abort();
    clearTimeout(this.retry);
    if (!this.isShown || !this.names()) return; // the names are coming
    this.abort = new AbortController();
    const { signal } = this.abort;
    const chosen = this.#chosen;
    this.#drawControls(chosen);
    const fields = this.choice().view === "scatter" ? scatterFields(chosen) : chosen.axes;
    try {
      const found = await readJobs(this.query(), fields, signal);
      Object.assign(this, found, { drawn: chosen, tries: 0, problem: null });
    } catch (problem) {
      if (signal.aborted || !(problem instanceof Problem)) return;
      this.problem = problem;
      this.tries = (this.tries ?? 0) + 1;
      if (isTemporary(problem)) this.retry = setTimeout(() => this.load(), backoff(this.tries));
    }
    this.draw();
  }

  #drawControls({ x, y, color, log, axes }) {
    if (this.choice().view === "parallel") {
      const choose = () =>
        chooseColumns(this.names(), axes, (chosen) => this.onChoose({ axes: chosen.join(",") }), {
          title: "Axes",
          usual: axes,
          keys: fieldsToPlot(this.names()),
        });
      this.controls.replaceChildren(h("button", { on: { click: choose } }, "Axes…"));
      return;
    }
    const toggle = (name, button) => {
      const others = log.split(",").filter((word) => word && word !== name && word !== `${name}-linear`);
      const isLog = button.getAttribute("aria-pressed") === "true";
      this.onChoose({ log: [...others, isLog ? `${name}-linear` : name].join(",") });
    };
    const select = (title, parameter, chosen, none) =>
      h(
        "label",
        null,
        h("span", { class: "quiet" }, title),
        this.#select(title, chosen, none, (field) => this.onChoose({ [parameter]: field })),
      );
    const button = (name) =>
      h("button", { data: { log: name }, on: { click: (event) => toggle(name, event.target) } }, `Log ${name.toUpperCase()}`);
    const focused = [...this.controls.querySelectorAll("select, button")].indexOf(document.activeElement);
    this.controls.replaceChildren(select("X", "x", x), button("x"), select("Y", "y", y), button("y"), select("Color", "color", color, "One color"));
    this.controls.querySelectorAll("select, button")[focused]?.focus();
  }

  #select(title, chosen, none, onChange) {
    const known = fieldsToPlot(this.names());
    const fields = known.includes(chosen) || !chosen ? known : [chosen, ...known];
    const option = (field) => h("option", { value: field, selected: field === chosen }, columnOf(field).title);
    return h(
      "select",
      { "aria-label": title, on: { change: (event) => onChange(event.target.value) } },
      none && h("option", { value: "", selected: !chosen }, none),
      fields.map(option),
    );
  }

  #draw() {
    if (!this.isShown) return;
    const { view } = this.choice();
    const size = { width: this.host.clientWidth, height: this.host.clientHeight };
    setText(this.note, this.problem ? retriedWords(this.problem) : "");
    if (!this.drawn || size.width === 0) return;
    const { root, marks, axes, tint } = (view === "scatter" ? scatter : parallel)(this.jobs, this.drawn, size);
    Object.assign(this, { marks, axes });
    this.host.replaceChildren(root);
    this.legend.replaceChildren(...colorLegend(tint, marks.map(({ job }) => job)));
    for (const [index, button] of this.controls.querySelectorAll("button[data-log]").entries()) {
      button.setAttribute("aria-pressed", String(Boolean(axes[index].isLog)));
      button.disabled = !axes[index].mayBeLog;
    }
    this.host.setAttribute("aria-roledescription", VIEWS[view].toLowerCase());
    const words = axes.map(({ title }) => title).join(", ");
    this.host.setAttribute("aria-label", `${VIEWS[view]} of ${words}: ${counted(marks.length, "job")}. Arrow keys move from job to job, Enter opens one.`);
    if (!this.problem) setText(this.note, this.#noteOf(marks.length));
    this.#mark(-1);
  }

  #noteOf(drawn) {
    const notes = [
      this.total > this.jobs.length && `The first ${count(this.jobs.length)} of ${counted(this.total, "job")}.`,
      drawn < this.jobs.length && `${counted(this.jobs.length - drawn, "job")} not drawn, for lack of a value.`,
      this.jobs.length === 0 && "No matching jobs.",
    ];
    return notes.filter(Boolean).join(" ");
  }

  #under(event) {
    const box = this.host.getBoundingClientRect();
    return nearest(this.marks ?? [], event.clientX - box.left, event.clientY - box.top);
  }

  #point(event) {
    this.#mark(this.#under(event));
  }

  /** Highlight the job with this index and show its name and values; -1 highlights none. */
  #mark(index) {
    this.marked?.element.classList.remove("is-marked");
    this.at = index;
    this.marked = this.marks?.[index];
    this.host.classList.toggle("has-marked", Boolean(this.marked));
    this.tip.hidden = !this.marked;
    if (!this.marked) return;
    const { job, points, element } = this.marked;
    element.classList.add("is-marked");
    element.parentNode.append(element); // over the others
    const values = this.axes.map(({ field, shown }) => h("div", null, `${columnOf(field).title} `, h("b", { class: "num" }, shown(job.columns[field]))));
    this.tip.replaceChildren(h("strong", { dir: "auto" }, jobName(job)), h("span", { class: "quiet num" }, ` ${job.id}`), ...values);
    const [x, y] = points.at(points.length >> 1);
    const isRight = x > this.host.clientWidth / 2;
    this.tip.style.left = isRight ? "auto" : `${x + 14}px`;
    this.tip.style.right = isRight ? `${this.host.clientWidth - x + 14}px` : "auto";
    this.tip.style.top = `${Math.max(0, Math.min(y - 10, this.host.clientHeight - this.tip.offsetHeight))}px`;
  }

  #key(event) {
    if (event.key === "Enter") return this.#open(this.at);
    const to = moved(event.key, this.at, this.marks?.length ?? 0);
    if (to === null) return;
    event.preventDefault();
    this.#mark(to);
    const { job } = this.marked;
    const values = this.axes.map(({ field, shown }) => `${columnOf(field).title} ${shown(job.columns[field])}`);
    setText(this.spoken, `${jobName(job)}: ${values.join(", ")}`);
  }

  #open(index) {
    const mark = this.marks?.[index];
    if (mark) location.hash = `#/jobs/${mark.job.id}`;
  }
}

/** Request jobs with the values of fields: `{jobs, total}`, with about `MOST` jobs at most. */
async function readJobs(query, fields, signal) {
  const jobs = [];
  let page = { next: null };
  let total = null;
  do {
    const asked = { ...query, columns: [...new Set(fields)].join(","), limit: PAGE, cursor: page.next };
    page = await get("/jobs", asked, signal);
    total ??= page.total;
    jobs.push(...page.items);
  } while (page.next !== null && jobs.length < MOST);
  return { jobs, total };
}
