// Tabs that follow the tab pattern of WAI-ARIA.

import { h } from "../dom.js";

/** Tabs with panels, `[{id, title, panel}]`; `onOpen(id)` is called when one is opened. */
export class Tabs {
  constructor(entries, onOpen) {
    this.entries = entries;
    this.onOpen = onOpen;
    this.buttons = entries.map(({ id, title }) =>
      h(
        "button",
        {
          role: "tab",
          id: `tab-${id}`,
          "aria-controls": `panel-${id}`,
          data: { id },
          on: { click: () => this.open(id) },
        },
        title,
      ),
    );
    for (const { id, panel } of entries) {
      panel.id = `panel-${id}`;
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", `tab-${id}`);
    }
    this.bar = h(
      "div",
      { class: "tabs", role: "tablist", on: { keydown: (event) => this.#key(event) } },
      this.buttons,
    );
    this.panels = h(
      "div",
      { class: "panels" },
      entries.map(({ panel }) => panel),
    );
  }

  open(id) {
    this.current = id;
    this.entries.forEach(({ id: other, panel }, index) => {
      const isOpen = other === id;
      panel.classList.toggle("is-open", isOpen);
      this.buttons[index].setAttribute("aria-selected", String(isOpen));
      this.buttons[index].tabIndex = isOpen ? 0 : -1;
    });
    this.onOpen(id);
  }

  /** Show a number or word beside the title of a tab; "" removes it. */
  note(id, words, tone = "") {
    const button = this.buttons.find((candidate) => candidate.dataset.id === id);
    const title = this.entries.find((entry) => entry.id === id).title;
    button.replaceChildren(title, words ? h("span", { class: `note ${tone}` }, words) : "");
  }

  #key(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const shown = this.buttons.filter((button) => button.offsetParent !== null);
    const next = shown[(shown.indexOf(document.activeElement) + by + shown.length) % shown.length];
    next.focus();
    this.open(next.dataset.id);
  }
}
