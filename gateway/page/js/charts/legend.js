// The legend of a chart: each line with its colour, dash, name and value.

import { h, svg } from "../dom.js";

const WIDTH = 20;

/**
 * Return the legend entries of lines, and set `shown` of each line to the element of its value. A single line gets no
 * colour sample.
 */
export function legendEntries(lines) {
  return lines.map((line) => {
    line.shown = h("b", { class: "num" });
    return h(
      "span",
      {
        class: ["legend-entry", line.isDim && "is-dim", line.low && "is-range"].filter(Boolean).join(" "),
        title: line.label,
      },
      lines.length > 1 && lineSample(line),
      line.label && h("span", { dir: "auto" }, line.label),
      line.shown,
    );
  });
}

/** Return a sample of a line with its colour and dash, for a legend. */
export function lineSample({ color, dash }) {
  const line = {
    x1: 0,
    x2: WIDTH,
    y1: 2,
    y2: 2,
    stroke: color,
    "stroke-width": 2.5,
    "stroke-dasharray": dash?.join(" "),
  };
  return svg("svg", { class: "line-sample", viewBox: `0 0 ${WIDTH} 4`, "aria-hidden": "true" }, svg("line", line));
}
