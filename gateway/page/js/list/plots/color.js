// The colours of jobs in a plot, by the value of a field.

import { h } from "../../dom.js";
import { isGiven } from "../../format.js";

const PALETTE = 8;
const MOST_ENTRIES = 12;
const ENDS = ["var(--line-0)", "var(--line-1)"]; // of the lowest and of the highest value

/** Return the CSS colour of a value on an axis; without an axis the accent colour, without a value a grey. */
export function colorOf(axis, given) {
  if (!axis) return ENDS[0];
  const place = axis.place(given);
  if (!isGiven(place)) return "var(--quiet)";
  if (!axis.isText) return `color-mix(in oklab, ${ENDS[1]} ${(100 * place).toFixed(1)}%, ${ENDS[0]})`;
  if (axis.field === "status") return `var(--status-${given}, var(--quiet))`;
  const index = axis.ticks.findIndex(({ at }) => at === place);
  return `var(--line-${index % PALETTE})`;
}

/**
 * Return the legend of the colours of jobs: the texts of the axis, or its lowest and highest value, and the colour of
 * jobs without a value.
 */
export function colorLegend(axis, jobs) {
  if (!axis) return [];
  const hasOthers = jobs.some((job) => !isGiven(axis.place(job.columns[axis.field])));
  const others = hasOthers && entry(axis, null, "no value");
  return [h("span", null, axis.title), ...entries(axis), others].filter(Boolean);
}

function entries(axis) {
  if (!axis.ticks.length) return [];
  if (!axis.isText) return [h("span", null, axis.low), h("i", { class: "ramp", "aria-hidden": "true" }), h("span", null, axis.high)];
  const listed = axis.ticks.slice(0, MOST_ENTRIES).map(({ label }) => entry(axis, label, label));
  return [...listed, axis.ticks.length > MOST_ENTRIES && h("span", null, "…")];
}

function entry(axis, given, label) {
  const swatch = h("i", { class: "dot", "aria-hidden": "true" });
  swatch.style.color = colorOf(axis, given);
  return h("span", { dir: "auto" }, swatch, ` ${label}`);
}
