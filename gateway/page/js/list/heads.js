// The table head of the list: a checkbox that selects all jobs, and buttons that sort by a column.

import { h } from "../dom.js";
import { columnOf } from "./columns.js";

const ARROWS = { ascending: "↑", descending: "↓", none: "" };

/**
 * The head row. `onSort(sort)` is called with the new sort order ("" for the default), `onTickAll(isTicked)` by the
 * checkbox.
 */
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

  /** Show the titles of these columns, and the current sort order. */
  update(columns, sort) {
    this.root.replaceChildren(this.tick, ...columns.map((key) => this.#head(key, sort)));
  }

  /** Update the checkbox: `ticked` of the `all` loaded jobs are selected. */
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

  /** Sort by a column: the first click uses its default order, the second the opposite, the third none. */
  #sortBy(sort, sorted) {
    const opposite = sort.startsWith("-") ? sort.slice(1) : `-${sort}`;
    const focused = [...this.root.querySelectorAll("button")].indexOf(document.activeElement);
    this.onSort({ [sort]: opposite, [opposite]: "" }[sorted] ?? sort);
    this.root.querySelectorAll("button")[focused]?.focus({ preventScroll: true });
  }
}
