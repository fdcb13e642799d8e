// The menu of metrics: which are shown, of those that fit the filter.

import { h, setText } from "../dom.js";
import { count, counted } from "../format.js";

const MOST_LISTED = 300;

/** The menu of metrics; calls `onToggle(name, isShown)` for one metric, `onAll(isShown)` for all listed ones. */
export class MetricMenu {
  constructor({ onToggle, onAll }) {
    Object.assign(this, { onToggle, onAll });
    this.title = h("summary", null);
    this.body = h("div", { class: "menu-body popover", tabindex: "-1" });
    this.root = h("details", { class: "menu metrics-menu", on: MENU_EVENTS }, this.title, this.body);
  }

  /**
   * List `fitting`, the sorted names that match the filter; all except `hidden` are checked. `total` is the number of
   * all metrics.
   */
  update(fitting, hidden, total) {
    const shown = fitting.reduce((sum, name) => sum + (hidden.has(name) ? 0 : 1), 0);
    setText(
      this.title,
      shown === total ? counted(total, "metric") : `${count(shown)} of ${counted(total, "metric")}`,
    );
    const listed = fitting.slice(0, MOST_LISTED);
    const key = JSON.stringify([listed, fitting.length]);
    if (key !== this.key) this.#build(listed, fitting.length - listed.length);
    this.key = key;
    listed.forEach((name, index) => (this.boxes[index].checked = !hidden.has(name)));
  }

  #build(listed, rest) {
    this.boxes = listed.map((name) =>
      h("input", { type: "checkbox", on: { change: (event) => this.onToggle(name, event.target.checked) } }),
    );
    const labels = listed.map((name, index) =>
      h("label", null, this.boxes[index], h("span", { dir: "auto" }, name)),
    );
    this.body.replaceChildren(
      h(
        "div",
        { class: "menu-row" },
        h("button", { on: { click: () => this.onAll(true) } }, "Show all"),
        h("button", { on: { click: () => this.onAll(false) } }, "Hide all"),
      ),
      ...labels,
      rest > 0 ? h("p", { class: "quiet small" }, `${count(rest)} more: use the filter`) : "",
    );
  }
}

/**
 * Event listeners that close a menu when it loses the focus, or when Escape is pressed, and that align its body to the
 * right where the edge of the panes would cut it.
 */
export const MENU_EVENTS = {
  toggle({ currentTarget: menu }) {
    menu.classList.remove("is-right");
    const { right } = menu.querySelector(".menu-body").getBoundingClientRect();
    menu.classList.toggle("is-right", menu.open && right > menu.closest(".side").getBoundingClientRect().right);
  },
  focusout(event) {
    if (!event.currentTarget.contains(event.relatedTarget)) event.currentTarget.open = false;
  },
  keydown(event) {
    if (event.key !== "Escape" || !event.currentTarget.open) return;
    event.currentTarget.open = false;
    event.currentTarget.querySelector("summary").focus();
    event.stopPropagation();
  },
};
