// One chart: uPlot with our axes, colours and a legend of text nodes.

import uPlot from "../../vendor/uplot/uPlot.esm.js";
import { h, setText } from "../dom.js";
import { clock, counted, dateTime, value } from "../format.js";
import { axes } from "./axes.js";
import { chartColors, faint } from "./colors.js";

const CLICK_PX = 4;
const GAPS_KEPT = 1; // uPlot.join: a null stays a gap, a missing x is drawn through
const SYNC = "trainwire";

/** A card with a chart; `onZoom(range|null)`, `onPick(ms)` when a point is clicked. */
export class Chart {
  constructor(title, { onZoom, onPick }) {
    Object.assign(this, { title, onZoom, onPick });
    this.key = "";
    this.lines = [];
    this.legend = h("div", { class: "legend" });
    this.note = h("span", { class: "note quiet" });
    this.host = h("div", { class: "plot", role: "img" });
    this.at = h("span", { class: "at quiet num" });
    this.head = h("header", null, h("h3", { dir: "auto", title }, title), this.note, this.at);
    this.root = h("figure", { class: "card", tabindex: "-1" }, this.head, this.legend, this.host);
    this.resizing = new ResizeObserver(() => this.#resize());
    this.resizing.observe(this.host);
  }

  close() {
    this.resizing.disconnect();
    this.plot?.destroy();
  }

  /** Draw `lines` ({label, color, x, y, strong, ts, dash}) under `options` ({axis, isLog, zoom, note}). */
  draw(lines, options) {
    this.lines = lines;
    this.options = options;
    setText(this.note, options.note);
    const data = joined(lines);
    const key = JSON.stringify([
      options.axis,
      options.isLog,
      options.themeRevision,
      lines.map((line) => [line.label, line.color, Boolean(line.strong)]),
    ]);
    if (!this.plot || key !== this.key) this.#make(key, data);
    else this.#setData(data);
    this.#labels();
    this.#values();
    this.#describe();
  }

  #setData(data) {
    const { zoom } = this.options;
    this.plot.setData(data, zoom === null);
    if (!zoom) return;
    this.zoom(zoom); // alone, new data is not drawn while the scale stays
    queueMicrotask(() => this.#placeCursor());
  }

  // What is under the cursor has another index now.
  #placeCursor() {
    const { left, top } = this.plot.cursor;
    if (left >= 0) this.plot.setCursor({ left, top });
  }

  /** Show a range of x, or all of it. */
  zoom(range) {
    if (!this.plot) return;
    this.isZooming = true;
    if (range) this.plot.setScale("x", range);
    else this.plot.setData(this.plot.data, true);
    this.isZooming = false;
  }

  #make(key, data) {
    this.plot?.destroy();
    this.key = key;
    this.isZooming = true;
    this.plot = new uPlot(this.#plotOptions(), data, this.host);
    if (this.options.zoom) this.plot.setScale("x", this.options.zoom);
    this.isZooming = false;
    this.#listenForClicks(this.plot.over);
  }

  #plotOptions() {
    const colors = chartColors();
    const isTime = this.options.axis === "time";
    return {
      ...this.#size(),
      padding: [8, 10, 0, 0],
      legend: { show: false },
      scales: { x: { time: isTime }, y: { distr: this.options.isLog ? 3 : 1 } },
      axes: axes(isTime, colors),
      series: [{}, ...this.lines.flatMap((line) => seriesOf(line))],
      cursor: {
        sync: { key: `${SYNC}.${this.options.axis}`, setSeries: false },
        points: { size: 6 },
        drag: { x: true, y: false },
        y: false,
      },
      hooks: {
        setCursor: [() => this.#values()],
        setScale: [(plot, scale) => scale === "x" && this.#zoomed(plot)],
      },
    };
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

  #labels() {
    const entries = this.lines.map((line) => {
      const swatch = h("i", { class: "swatch", "aria-hidden": "true" });
      swatch.style.background = line.color;
      line.shown = h("b", { class: "num" });
      return h(
        "span",
        { class: "legend-entry", title: line.label },
        swatch,
        line.label && h("span", { dir: "auto" }, line.label),
        line.shown,
      );
    });
    this.legend.replaceChildren(...entries);
  }

  // For those who do not see the lines.
  #describe() {
    const points = this.lines.reduce((sum, line) => sum + line.x.length, 0);
    const last = this.lines[0]?.y.findLast((number) => number !== null);
    const words = `${this.title} by ${this.options.axis}: ${counted(points, "point")}${last === undefined ? "" : `, last ${value(last)}`}`;
    this.host.setAttribute("aria-label", words);
  }

  // The values under the cursor, else the newest.
  #values() {
    if (!this.plot) return;
    const { idx } = this.plot.cursor;
    const x = idx === null || idx === undefined ? null : this.plot.data[0][idx];
    setText(this.at, x === null ? "" : this.#shownX(x));
    for (const line of this.lines) {
      const index = x === null ? line.y.length - 1 : isBeyond(line.x, x) ? -1 : indexAt(line.x, x);
      const found = index < 0 ? null : line.y[index];
      if (line.shown) setText(line.shown, index < 0 ? "–" : found === null ? "no number" : value(found));
    }
  }

  #shownX(x) {
    if (this.options.axis === "time")
      return new Date(x * 1000).toDateString() === new Date().toDateString()
        ? clock(x * 1000)
        : dateTime(x * 1000);
    return `${this.options.axis} ${x.toLocaleString("en-US")}`;
  }

  #listenForClicks(over) {
    let from = null;
    over.addEventListener("mousedown", (event) => (from = event.clientX));
    over.addEventListener("click", (event) => {
      if (from === null || Math.abs(event.clientX - from) > CLICK_PX) return;
      const x = this.plot.posToVal(event.offsetX, "x");
      const line = this.lines.find((candidate) => candidate.x.length && candidate.isMain) ?? this.lines[0];
      const index = line ? Math.max(0, indexAt(line.x, x)) : -1;
      if (index >= 0) this.onPick(line.ts[index]);
    });
  }
}

function joined(lines) {
  const tables = lines.flatMap((line) =>
    line.strong
      ? [
          [line.x, line.y],
          [line.x, line.strong],
        ]
      : [[line.x, line.y]],
  );
  if (!tables.length) return [[]];
  return uPlot.join(
    tables,
    tables.map(() => [0, GAPS_KEPT]),
  );
}

function seriesOf({ color, dash, strong }) {
  const common = { dash, spanGaps: false, points: { size: 4 } };
  if (!strong) return [{ ...common, stroke: color, width: 1.5 }];
  return [
    { ...common, stroke: faint(color, 0.28), width: 1 },
    { ...common, stroke: color, width: 1.8 },
  ];
}

/** The last index whose x is at or before `x`, by bisection. */
function indexAt(xs, x) {
  let low = 0;
  let high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Tell whether `x` lies more than one interval after the last of `xs`: nothing was said there. */
function isBeyond(xs, x) {
  return xs.length > 1 && x > 2 * xs.at(-1) - xs.at(-2);
}
