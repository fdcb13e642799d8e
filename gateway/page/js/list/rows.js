// The table body of the list: only rows in view are elements; an empty row above and below has the height of the rest.

import { arrange, h } from "../dom.js";

const SPARE_ROWS = 12; // drawn above and below the window
const USUAL_ROW_PX = 46;

/**
 * The table body. `makeRow(id)` returns the row of a job; `onRelease()` is called after a click, when rows may be
 * replaced again.
 */
export class ListRows {
  constructor({ makeRow, onRelease, signal }) {
    this.makeRow = makeRow;
    this.rows = new Map();
    this.stale = new Set();
    this.isPressed = false; // a row that is replaced while it is pressed would get no click
    this.root = h("tbody", { on: { pointerdown: () => (this.isPressed = true) } });
    const release = () => {
      this.isPressed = false;
      onRelease();
    };
    // After the click, which comes with it.
    for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, () => setTimeout(release), { signal });
  }

  /** Mark the row of a job (without an id: all rows) to be recreated at the next `draw`. */
  outdate(id) {
    for (const each of id === undefined ? this.rows.keys() : [id]) this.stale.add(each);
  }

  /** Draw the rows of `order` that are in view; return the number of rows below them. */
  draw(order) {
    const height = this.root.querySelector("tr.job")?.offsetHeight || USUAL_ROW_PX;
    const { top } = this.root.getBoundingClientRect();
    const from = Math.max(0, Math.min(order.length, Math.floor(-top / height) - SPARE_ROWS));
    const until = Math.min(order.length, Math.ceil((window.innerHeight - top) / height) + SPARE_ROWS);
    const shown = order.slice(from, until);
    const after = order.length - until;
    const wanted = [
      this.#spacer("before", from * height),
      ...shown.map((id) => this.#row(id)),
      this.#spacer("after", after * height),
    ];
    const kept = new Set(shown);
    for (const id of this.rows.keys()) if (!kept.has(id)) this.rows.delete(id);
    arrange(this.root, wanted);
    return after;
  }

  /** Move the focus by `by` jobs: 1 for the next one, -1 for the one before. */
  step(by) {
    const links = [...this.root.querySelectorAll("a.job-link")];
    const at = links.indexOf(document.activeElement);
    links[Math.max(0, Math.min(links.length - 1, at + by))]?.focus();
  }

  #spacer(name, height) {
    this[name] ??= h("tr", { class: "spacer", "aria-hidden": "true" });
    this[name].style.height = `${Math.max(0, height)}px`;
    this[name].hidden = height <= 0;
    return this[name];
  }

  #row(id) {
    const before = this.rows.get(id);
    if (!this.stale.delete(id) && before) return before;
    const row = this.makeRow(id);
    this.rows.set(id, row);
    if (before?.isConnected) {
      const focused = before.contains(document.activeElement) ? document.activeElement.localName : null;
      before.replaceWith(row);
      if (focused) row.querySelector(focused)?.focus({ preventScroll: true });
    }
    return row;
  }
}
