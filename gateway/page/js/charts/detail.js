// Finer points of the range that is zoomed into; around it the points stay as they were.

import { get } from "../api.js";
import { debounced } from "../dom.js";
import { place, SEQ } from "./curves.js";
import { keyOf } from "./store.js";

const POINTS = 3000;
const PAUSE_MS = 250;
const RETRY_MS = 3000;
const MARGIN = 0.05; // of the range, asked for on both sides: what rounding moves over an end is not lost
const UNITS = { step: 1, epoch: 1, time: 1e9 }; // of the gateway in one of the chart's

/** Reads what is zoomed into; `jobIds()` and `axis()` say of what, `onChange()` that there is more to draw. */
export class ZoomDetail {
  constructor(store, { jobIds, axis, onChange }) {
    Object.assign(this, { store, jobIds, axis, onChange });
    this.found = new Map();
    this.range = null;
    this.read = debounced(() => this.#read(), PAUSE_MS);
  }

  close() {
    this.#stop();
    this.found.clear();
  }

  /** Show a range `{min, max}` of the axis finer, null for nothing. */
  show(range) {
    if (range?.min === this.range?.min && range?.max === this.range?.max) return;
    this.range = range;
    this.#stop();
    if (range) this.read();
    else this.found.clear();
  }

  /** Read it again: other points than before are around it. */
  refresh() {
    if (this.range) this.read();
  }

  /** The points of a series, fine where it is zoomed into; live ones that came after the reading are there too. */
  of(entry) {
    const found = this.found.get(entry.jobId);
    const fine = found?.series.get(keyOf(entry));
    if (!fine) return entry.points;
    const { axis, min, max, lastSeq } = found;
    const isInside = (point) => {
      const x = place(point, axis);
      return x !== null && x >= min && x <= max;
    };
    const coarse = entry.points.filter((point) => point[SEQ] > lastSeq || !isInside(point));
    return [...coarse, ...fine.filter(isInside)].sort((a, b) => a[SEQ] - b[SEQ]);
  }

  #stop() {
    this.read.cancel();
    clearTimeout(this.retry);
    this.abort?.abort();
  }

  async #read() {
    this.#stop();
    this.abort = new AbortController();
    const { signal } = this.abort;
    const thinned = this.jobIds().filter((id) => this.store.isThinned(id));
    const read = await Promise.allSettled(thinned.map((id) => this.#readJob(id, signal)));
    if (signal.aborted) return;
    const failed = read.some(({ status, reason }) => status === "rejected" && reason.status === 0);
    if (failed) this.retry = setTimeout(() => this.#read(), RETRY_MS);
    if (thinned.length) this.onChange();
  }

  async #readJob(id, signal) {
    const [range, axis] = [this.range, this.axis()];
    const [margin, unit] = [(range.max - range.min) * MARGIN, UNITS[axis]];
    const query = { points: POINTS, x: axis, from: (range.min - margin) * unit, to: (range.max + margin) * unit };
    const page = await get(`/jobs/${id}/metrics`, query, signal);
    if (signal.aborted) return;
    const series = new Map(page.series.map((each) => [keyOf({ ...each, jobId: id }), each.points]));
    this.found.set(id, { ...range, axis, series, lastSeq: page.last_seq });
  }
}
