// The legend of a chart: each line with its colour, dash, name and value.

import { h } from "../dom.js";

const DASH_STYLES = { 7: "dashed", 2: "dotted", 9: "double" };

/** The entries of lines; each line gets `shown`, the element of its value. One line alone needs no colour. */
export function legendEntries(lines) {
  return lines.map((line) => {
    line.shown = h("b", { class: "num" });
    return h(
      "span",
      { class: "legend-entry", title: line.label },
      lines.length > 1 && lineSample(line),
      line.label && h("span", { dir: "auto" }, line.label),
      line.shown,
    );
  });
}

/** A short piece of a line in its colour and dash. */
export function lineSample({ color, dash }) {
  const sample = h("i", { class: "line-sample", "aria-hidden": "true" });
  sample.style.borderTopColor = color;
  if (dash) sample.style.borderTopStyle = DASH_STYLES[dash[0]];
  return sample;
}
