// The charts on the page: one for each title, drawn only while it is in view, all zoomed alike.

import { h } from "../dom.js";
import { Chart } from "./chart.js";

/** The grid; `onSeen()` when other charts have come into view, `onZoom(range|null)`, `onPick(ms)`. */
export class ChartGrid {
  constructor({ onSeen, onZoom, onPick }) {
    Object.assign(this, { onSeen, onZoom, onPick });
    this.charts = new Map();
    this.visible = new Set();
    this.zoom = null;
    this.root = h("div", { class: "grid" });
    this.seen = new IntersectionObserver((entries) => this.#sawn(entries), { rootMargin: "200px" });
  }

  close() {
    this.seen.disconnect();
    for (const chart of this.charts.values()) chart.close();
  }

  /** Have one chart for each of `titles`, in their order. */
  arrange(titles) {
    for (const title of [...this.charts.keys()]) if (!titles.includes(title)) this.#remove(title);
    titles.forEach((title, index) => {
      const { root } = this.charts.get(title) ?? this.#make(title);
      if (this.root.children[index] !== root) this.root.insertBefore(root, this.root.children[index] ?? null);
    });
  }

  isVisible(title) {
    return this.visible.has(title);
  }

  draw(title, lines, options) {
    this.charts.get(title).draw(lines, { ...options, zoom: this.zoom });
  }

  /** Show a range of x in all charts, null for all of it. */
  setZoom(zoom) {
    this.zoom = zoom;
    for (const chart of this.charts.values()) chart.zoom(zoom);
    this.onZoom(zoom);
  }

  #make(title) {
    const chart = new Chart(title, { onZoom: (zoom) => this.setZoom(zoom), onPick: this.onPick });
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

  #sawn(entries) {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) this.visible.add(target.dataset.title);
      else this.visible.delete(target.dataset.title);
    }
    this.onSeen();
  }
}
