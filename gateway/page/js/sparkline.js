// Sparklines: the values of a metric as a small line without axes.

import { svg } from "./dom.js";
import { value } from "./format.js";

const WIDTH = 96;
const HEIGHT = 22;
const MARGIN = 2;

/** Return the SVG element of a sparkline `{name, values}`, null if it has fewer than two finite values. */
export function sparkline(spark) {
  const numbers = (spark?.values ?? []).map((given) => (given === null ? NaN : Number(given)));
  const finite = numbers.filter(Number.isFinite);
  if (finite.length < 2) return null;
  const low = Math.min(...finite);
  const spread = Math.max(...finite) - low || 1;
  const x = (index) => MARGIN + (index * (WIDTH - 2 * MARGIN)) / (numbers.length - 1);
  const y = (number) => HEIGHT - MARGIN - ((number - low) / spread) * (HEIGHT - 2 * MARGIN);
  const last = numbers.findLastIndex(Number.isFinite);
  return svg(
    "svg",
    {
      class: "spark",
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      role: "img",
      "aria-label": described(spark.name, finite),
    },
    svg("path", { d: path(numbers, x, y) }),
    svg("circle", { cx: x(last), cy: y(numbers[last]), r: 1.8 }),
  );
}

function described(name, finite) {
  return `${name}: from ${value(finite[0])} to ${value(finite.at(-1))}`;
}

function path(numbers, x, y) {
  let isDrawing = false;
  return numbers
    .map((number, index) => {
      const command = Number.isFinite(number)
        ? `${isDrawing ? "L" : "M"}${x(index).toFixed(1)} ${y(number).toFixed(1)}`
        : "";
      isDrawing = Number.isFinite(number);
      return command;
    })
    .join("");
}
