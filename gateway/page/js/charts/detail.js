// Loads more points of the zoomed range; the points outside of it stay downsampled.

import { get } from "../api.js";
import { debounced } from "../dom.js";
import { place, SEQ } from "./curves.js";
import { MetricLoader, namesParameter } from "./loader.js";
import { seriesKey } from "./store.js";

const POINTS = 3000;
const PAUSE_MS = 250;
const MARGIN = 0.05; // of the range, requested at both ends in addition, because limits are rounded

/**
 * Loads the points of the zoomed range for the charts in view; `axis()` returns their axis, `starts(jobId)` the starts
 * of a job's attempts in ns.
 */
export class ZoomDetail {
  constructor(store, { axis, starts, onChange }) {
    Object.assign(this, { store, axis, starts });
    this.found = new Map();
    this.range = null;
    this.loader = new MetricLoader((jobId, names, signal) => this.#read(jobId, names, signal), onChange);
    this.begin = debounced(() => {
      this.isResting = true;
      onChange();
    }, PAUSE_MS);
  }

  close() {
    this.begin.cancel();
    this.loader.reset();
  }

  /** Set the zoomed range `{min, max}` of the axis, or null for none. */
  show(range) {
    if (range?.min === this.range?.min && range?.max === this.range?.max) return;
    this.range = range;
    this.isResting = false;
    this.loader.reset();
    if (range) this.begin();
    else this.found.clear();
  }

  /** Mark the loaded points as outdated, so that the next `request` loads them again. */
  refresh() {
    for (const found of this.found.values()) found.range = null;
  }

  /** Load more points of the metrics `{jobId, name}` that the gateway has downsampled. */
  request(pieces) {
    if (!this.range || !this.isResting) return;
    const isMissing = ({ jobId, name }) =>
      this.store.isThinned(jobId, name) && this.found.get(`${jobId}/${name}`)?.range !== this.range;
    this.loader.request(pieces.filter(isMissing));
  }

  /**
   * Return the points of a series: all loaded ones within the zoomed range, downsampled ones outside of it, and newer
   * live points.
   */
  of(entry, start) {
    const found = this.found.get(`${entry.jobId}/${entry.name}`);
    const fine = found?.series.get(seriesKey(entry.attempt, entry.rank));
    if (!fine || found.axis !== this.axis()) return entry.points;
    const isInside = (point) => {
      const x = place(point, found.axis, start);
      return x !== null && x >= found.min && x <= found.max;
    };
    const coarse = entry.points.filter((point) => point[SEQ] > found.lastSeq || !isInside(point));
    return [...coarse, ...fine.filter(isInside)].sort((a, b) => a[SEQ] - b[SEQ]);
  }

  async #read(jobId, names, signal) {
    const [range, axis] = [this.range, this.axis()];
    const margin = (range.max - range.min) * MARGIN;
    const query = { names: namesParameter(names), points: POINTS, ...this.#limits(jobId, axis, range, margin) };
    const page = await get(`/jobs/${jobId}/metrics`, query, signal);
    if (signal.aborted) return;
    for (const name of names) {
      const own = page.series.filter((each) => each.name === name);
      const series = new Map(own.map(({ attempt, rank, points }) => [seriesKey(attempt, rank), points]));
      this.found.set(`${jobId}/${name}`, { ...range, range, axis, series, lastSeq: page.last_seq });
    }
  }

  #limits(jobId, axis, { min, max }, margin) {
    if (axis === "step" || axis === "epoch") return { x: axis, from: min - margin, to: max + margin };
    const starts = axis === "relative" ? this.starts(jobId) : [0];
    const [first, last] = [Math.min(...starts), Math.max(...starts)];
    return { x: "time", from: first + (min - margin) * 1e9, to: last + (max + margin) * 1e9 };
  }
}
