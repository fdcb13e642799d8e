// Toggle buttons for runs and ranks, if there are several.

import { h } from "../dom.js";
import { lineSample } from "./legend.js";
import { rankName } from "./runs.js";

/** Return the toggle buttons of runs ({key, label, color, isShown, remove?}); a click calls `onToggle(key)`. */
export function runChips(runs, onToggle) {
  if (runs.length < 2) return [];
  return runs.map((run) => {
    const name = switchOf(run.label, run.isShown, lineSample(run), () => onToggle(run.key));
    const remove =
      run.remove &&
      h(
        "button",
        { class: "run-remove", "aria-label": `Stop comparing with “${run.label}”`, on: { click: run.remove } },
        "×",
      );
    return h("span", { class: "run-chip" }, name, remove);
  });
}

/**
 * Return the toggle buttons of ranks; `styleOf(rank)` returns the colour and dash of its lines, null if they depend on
 * the run.
 */
export function rankChips(ranks, { hidden, styleOf, onToggle }) {
  return ranks.map((rank) => {
    const style = styleOf(rank);
    const isShown = !hidden.has(String(rank));
    return h(
      "span",
      { class: "run-chip" },
      switchOf(rankName(rank), isShown, style && lineSample(style), () => onToggle(rank)),
    );
  });
}

function switchOf(label, isShown, sample, click) {
  return h(
    "button",
    { class: "run", "aria-pressed": String(isShown), on: { click } },
    sample,
    h("span", { dir: "auto" }, label),
  );
}
