// The heads of the list's columns: a box that ticks all jobs, and the order of the jobs.

import { h } from "../dom.js";
import { columnOf } from "./columns.js";

const ARROWS = { ascending: "↑", descending: "↓", none: "" };

/** The row of heads; `onSort(sort)` with the text of an order, "" for the usual one, `onTickAll(isTicked)`. */
export class ListHeads {
  constructor({ onSort, onTickAll }) {
    this.onSort = onSort;
    this.tickBox = h("input", {
      type: "checkbox",
      "aria-label": "Select all loaded jobs",
      on: { change: () => onTickAll(this.tickBox.checked) },
    });
    this.tick = h("th", { scope: "col", class: "h-tick" }, this.tickBox);
    this.root = h("tr");
  }

  /** Show the heads of these columns, and by which the jobs are sorted. */
  update(columns, sort) {
    this.root.replaceChildren(this.tick, ...columns.map((key) => this.#head(key, sort)));
  }

  /** Show how many of the loaded jobs are ticked. */
  count(ticked, all) {
    this.tickBox.checked = ticked > 0 && ticked === all;
    this.tickBox.indeterminate = ticked > 0 && ticked < all;
  }

  #head(key, sorted) {
    const { title, sort, isField } = columnOf(key);
    const field = sort?.replace(/^-/, "");
    const order = sorted === field ? "ascending" : sorted === `-${field}` ? "descending" : "none";
    const button = () =>
      h(
        "button",
        { class: "sort", title: `Sort by ${field}`, on: { click: () => this.#sortBy(sort, sorted) } },
        h("span", { dir: "auto" }, title),
        h("i", { "aria-hidden": "true" }, ARROWS[order]),
      );
    return h(
      "th",
      { scope: "col", class: `h-${isField ? "field" : key}`, "aria-sort": sort ? order : null },
      sort ? button() : title,
    );
  }

  /** The first click sorts by the usual order of the column, the second by the opposite, the third not at all. */
  #sortBy(sort, sorted) {
    const opposite = sort.startsWith("-") ? sort.slice(1) : `-${sort}`;
    const focused = [...this.root.querySelectorAll("button")].indexOf(document.activeElement);
    this.onSort({ [sort]: opposite, [opposite]: "" }[sorted] ?? sort);
    this.root.querySelectorAll("button")[focused]?.focus({ preventScroll: true });
  }
}
