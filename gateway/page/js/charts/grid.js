// The grid of charts, in sections; a chart is drawn only while it is in view, and all have the same zoom.

import { arrange, h, setText } from "../dom.js";
import { count } from "../format.js";
import { Chart } from "./chart.js";

const CARDS = 60; // at first, and each time the end comes into view: of 100,000 metrics only those are elements

/**
 * The grid of charts. It calls `onSeen()` when other charts have come into view, and `onFold(title)` when a section is
 * folded or unfolded; `forCharts` are the callbacks of `Chart`.
 */
export class ChartGrid {
  constructor({ onSeen, onFold, ...forCharts }) {
    Object.assign(this, { onSeen, onFold, forCharts });
    this.charts = new Map();
    this.heads = new Map();
    this.visible = new Set();
    this.most = CARDS;
    this.zoom = null;
    this.cells = h("div", { class: "grid" });
    this.more = h("div", { class: "more-charts quiet", "aria-hidden": "true" });
    this.root = h("div", null, this.cells, this.more);
    this.seen = new IntersectionObserver((entries) => this.#visibilityChanged(entries), { scrollMargin: "200px" });
    this.end = new IntersectionObserver((entries) => entries.at(-1).isIntersecting && this.#grow(), {
      scrollMargin: "600px",
    });
  }

  close() {
    this.seen.disconnect();
    this.end.disconnect();
    for (const chart of this.charts.values()) chart.close();
  }

  /**
   * Create and order the charts of `sections` (`[{title, names, isFolded}]`), as many as the user has scrolled to.
   * `full` is the title of the chart in full screen, or null.
   */
  arrange(sections, full) {
    this.sections = sections;
    this.full = full;
    const cells = sections.flatMap((section) => [
      this.#head(section),
      ...(section.isFolded ? [] : section.names.map((name) => ({ name }))),
    ]);
    const shown = cells.slice(0, this.most);
    if (full && !shown.some(({ name }) => name === full)) shown.push({ name: full });
    const names = new Set(shown.map(({ name }) => name));
    for (const title of [...this.charts.keys()]) if (!names.has(title)) this.#remove(title);
    const elements = shown.map((cell) => cell.root ?? (this.charts.get(cell.name) ?? this.#make(cell.name)).root);
    arrange(this.cells, elements);
    this.hasMore = cells.length > this.most;
    setText(this.more, this.hasMore ? `${count(cells.length - this.most)} more …` : "");
    if (!this.hasMore) return;
    this.end.unobserve(this.more); // an observer reports changes only, and the end may be in view already
    this.end.observe(this.more);
  }

  /** Titles of the charts in view, in the order of the page; in full screen only that chart. */
  get inView() {
    if (this.full && this.charts.has(this.full)) return [this.full];
    return [...this.cells.children].map(({ dataset }) => dataset.title).filter((title) => this.visible.has(title));
  }

  draw(title, lines, options, marks) {
    const chart = this.charts.get(title);
    chart.mark(marks);
    chart.draw(lines, { ...options, zoom: this.zoom });
  }

  /** Show the range `{min, max}` of x in all charts, or all of it for null. */
  setZoom(zoom) {
    this.zoom = zoom;
    for (const chart of this.charts.values()) chart.zoom(zoom);
    this.forCharts.onZoom(zoom);
  }

  #head(section) {
    const { title, names, isFolded } = section;
    if (!this.heads.has(title)) {
      const button = h("button", { class: "section-fold", on: { click: () => this.onFold(title) } });
      const root = h("h2", { class: title ? "section-head" : "section-head unseen" }, title ? button : "Metrics");
      this.heads.set(title, { root, button });
    }
    const head = this.heads.get(title);
    head.button.setAttribute("aria-expanded", String(!isFolded));
    if (title)
      head.button.replaceChildren(
        h("span", { dir: "auto" }, title),
        h("span", { class: "quiet num" }, count(names.length)),
      );
    return head;
  }

  #grow() {
    if (!this.hasMore) return;
    this.most += CARDS;
    this.arrange(this.sections, this.full);
  }

  #make(title) {
    const chart = new Chart(title, { ...this.forCharts, onZoom: (zoom) => this.setZoom(zoom) });
    chart.root.dataset.title = title;
    this.charts.set(title, chart);
    this.seen.observe(chart.root);
    return chart;
  }

  #remove(title) {
    const chart = this.charts.get(title);
    this.seen.unobserve(chart.root);
    chart.close();
    chart.root.remove();
    this.charts.delete(title);
    this.visible.delete(title);
  }

  #visibilityChanged(entries) {
    for (const { target, isIntersecting } of entries) {
      const { title } = target.dataset;
      if (isIntersecting) this.visible.add(title);
      else {
        this.visible.delete(title);
        if (title !== this.full) this.charts.get(title)?.release();
      }
    }
    this.onSeen();
  }
}
