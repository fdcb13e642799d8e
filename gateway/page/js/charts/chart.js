// One chart: a card with its name, a legend, and a plot while it is in view.

import uPlot from "../../vendor/uplot/uPlot.esm.js";
import { h, setText } from "../dom.js";
import { clock, count, counted, dateTime, isGiven, value } from "../format.js";
import { elapsed } from "./axes.js";
import { legendEntries } from "./legend.js";
import { indexAt, isBeyond, plotData, plotKey, plotOptions } from "./plot.js";

const CLICK_PX = 4;
const MOST_DESCRIBED = 12;

/**
 * The card of one chart. It calls `onZoom({min, max} | null)` when the user zooms, `onPick(ms)` when a point is
 * clicked, and `onAction(name, title)` for the buttons pin, full, csv and png.
 */
export class Chart {
  constructor(title, { onZoom, onPick, onAction }) {
    Object.assign(this, { title, onZoom, onPick, onAction });
    this.lines = [];
    this.legend = h("div", { class: "legend", role: "group", "aria-label": `Legend of ${title}` });
    this.note = h("span", { class: "note quiet" });
    this.spoken = h("span", { class: "unseen", role: "status" });
    this.host = h("div", {
      class: "plot",
      role: "group",
      tabindex: "0",
      "aria-roledescription": "chart",
      "aria-label": title,
      title: "Click: the log at this moment. Drag: zoom.",
      on: { keydown: (event) => this.#key(event) },
    });
    this.at = h("span", { class: "at quiet num" });
    this.head = h("header", null, h("h3", { dir: "auto", title }, title), this.note, this.at, this.#actions());
    this.root = h("figure", { class: "card", tabindex: "-1" }, this.head, this.legend, this.host, this.spoken);
    this.resizing = new ResizeObserver(() => this.#resize());
    this.resizing.observe(this.host);
  }

  close() {
    this.resizing.disconnect();
    this.release();
  }

  /** Destroy the plot and its canvas, because the chart is out of view. */
  release() {
    this.plot?.destroy();
    this.plot = null;
    this.key = null;
  }

  mark({ isPinned, isFull }) {
    this.root.classList.toggle("is-full", isFull);
    this.pin.setAttribute("aria-pressed", String(isPinned));
    setText(this.pin, isPinned ? "★" : "☆");
    this.full.setAttribute("aria-pressed", String(isFull));
  }

  /** Draw `lines` (see lines.js); `options` are {axis, isLog, isOutlierFree, zoom, note, themeRevision}. */
  draw(lines, options) {
    this.lines = lines;
    this.options = options;
    setText(this.note, options.note);
    if (!lines.length) return this.#empty();
    const key = plotKey(lines, options);
    if (!this.plot || key !== this.key) this.#make(key);
    else this.#setData(plotData(lines));
    this.legend.replaceChildren(...legendEntries(lines));
    this.legend.tabIndex = lines.length > 1 ? 0 : -1; // a long one scrolls
    this.#values();
    this.#describe();
  }

  #empty() {
    this.release();
    this.legend.replaceChildren();
    setText(this.at, "");
    this.host.setAttribute("aria-label", [this.title, this.options.note].filter(Boolean).join(": "));
  }

  #setData(data) {
    const { zoom } = this.options;
    this.plot.setData(data, zoom === null);
    if (!zoom) return;
    this.zoom(zoom); // alone, new data is not drawn while the scale stays
    queueMicrotask(() => this.#placeCursor());
  }

  // New data has changed the index of the point under the cursor.
  #placeCursor() {
    if (!this.plot) return;
    const { left, top } = this.plot.cursor;
    if (left >= 0) this.plot.setCursor({ left, top });
  }

  /** Show the range `{min, max}` of x, or all of it if `range` is null. */
  zoom(range) {
    if (!this.plot) return;
    this.isZooming = true;
    if (range) this.plot.setScale("x", range);
    else this.plot.setData(this.plot.data, true);
    this.isZooming = false;
  }

  #make(key) {
    this.plot?.destroy();
    this.key = key;
    this.isZooming = true;
    const hooks = {
      setCursor: [() => this.#values()],
      setScale: [(plot, scale) => scale === "x" && this.#zoomed(plot)],
    };
    const options = { ...plotOptions(this.lines, this.options), ...this.#size(), hooks };
    this.plot = new uPlot(options, plotData(this.lines), this.host);
    if (this.options.zoom) this.plot.setScale("x", this.options.zoom);
    this.isZooming = false;
    this.#listenForClicks(this.plot.over);
  }

  #zoomed(plot) {
    if (this.isZooming || !plot.data[0].length) return;
    const { min, max } = plot.scales.x;
    const [first, last] = [plot.data[0][0], plot.data[0].at(-1)];
    const isAll = min <= first && max >= last;
    if (isAll && !this.options.zoom) return;
    queueMicrotask(() => this.onZoom(isAll ? null : { min, max }));
  }

  #size() {
    return { width: Math.max(120, this.host.clientWidth), height: Math.max(90, this.host.clientHeight) };
  }

  #resize() {
    if (!this.plot) return;
    this.isZooming = true;
    this.plot.setSize(this.#size());
    this.isZooming = false;
  }

  #actions() {
    const button = (name, glyph, words) =>
      h(
        "button",
        {
          class: "icon plain",
          title: words,
          "aria-label": `${words}: ${this.title}`,
          on: { click: () => this.onAction(name, this.title) },
        },
        glyph,
      );
    this.pin = button("pin", "☆", "Pin");
    this.full = button("full", "⤢", "Full screen");
    return h(
      "span",
      { class: "actions" },
      this.pin,
      button("csv", "CSV", "Download as CSV"),
      button("png", "PNG", "Download as PNG"),
      this.full,
    );
  }

  // The accessible name, for screen readers.
  #describe() {
    const points = this.lines.reduce((sum, line) => sum + line.x.length, 0);
    const lasts = this.lines.slice(0, MOST_DESCRIBED).map((line) => {
      const last = line.y.findLast((number) => number !== null);
      return last === undefined ? "" : `, ${[line.label, "last"].filter(Boolean).join(" ")} ${value(last)}`;
    });
    const words = `${this.title} by ${this.options.axis}: ${counted(points, "point")}${lasts.join("")}`;
    this.host.setAttribute("aria-label", words);
  }

  // The values under the cursor, else the newest.
  #values() {
    if (!this.plot) return;
    const { idx } = this.plot.cursor;
    const x = isGiven(idx) ? this.plot.data[0][idx] : null;
    setText(this.at, isGiven(x) ? this.#shownX(x) : "");
    for (const line of this.lines) if (line.shown) setText(line.shown, valueAt(line, x ?? null));
  }

  #shownX(x) {
    if (this.options.axis === "relative") return `${elapsed(x)} after the start`;
    if (this.options.axis !== "time") return `${this.options.axis} ${count(x)}`;
    const isToday = new Date(x * 1000).toDateString() === new Date().toDateString();
    return isToday ? clock(x * 1000) : dateTime(x * 1000);
  }

  // Keys move the cursor from point to point; Enter shows the log of that moment.
  #key(event) {
    if (!this.plot || event.target !== this.host) return;
    const xs = this.plot.data[0];
    const now = this.plot.cursor.idx;
    const to = { ArrowLeft: (now ?? xs.length) - 1, ArrowRight: (now ?? -1) + 1, Home: 0, End: xs.length - 1 }[
      event.key
    ];
    if (event.key === "Enter" && isGiven(now)) this.#pick(xs[now]);
    if (to === undefined || xs.length === 0) return;
    event.preventDefault();
    const x = xs[Math.min(xs.length - 1, Math.max(0, to))];
    this.plot.setCursor({ left: this.plot.valToPos(x, "x"), top: 1 });
    const values = this.lines.slice(0, MOST_DESCRIBED).map((line) => `${line.label} ${valueAt(line, x)}`.trim());
    setText(this.spoken, `${this.#shownX(x)}: ${values.join(", ")}`);
  }

  #pick(x) {
    const line = this.lines.find((candidate) => candidate.x.length && candidate.isMain) ?? this.lines[0];
    if (line) this.onPick(line.ts[Math.max(0, indexAt(line.x, x))]);
  }

  #listenForClicks(over) {
    let from = null;
    over.addEventListener("mousedown", (event) => (from = event.clientX));
    over.addEventListener("click", (event) => {
      if (from === null || Math.abs(event.clientX - from) > CLICK_PX) return;
      this.#pick(this.plot.posToVal(event.offsetX, "x"));
    });
  }
}

/** Return a line's value at `x` as text (the newest if `x` is null), with lowest and highest value if it is a mean. */
function valueAt(line, x) {
  const index = x === null ? line.y.length - 1 : isBeyond(line.x, x) ? -1 : indexAt(line.x, x);
  if (index < 0) return "–";
  if (line.y[index] === null) return "NaN or Inf";
  const range = line.low ? ` (${value(line.low[index])} to ${value(line.high[index])})` : "";
  return value(line.y[index]) + range;
}
