// The input of a filter expression: completes fields, and marks the position of an error.

import { h } from "../dom.js";
import { STATUSES } from "../words.js";
import { fieldText } from "./columns.js";

const MOST = 8;
const WORDS = ["and", "or", "not", "in", "is null", "is not null"];

export class FilterBox {
  /**
   * `names()` returns the known fields. `onChange(text)` is called while the user types, `onEnter(text)` when Enter is
   * pressed.
   */
  constructor(text, { names, onChange, onEnter }) {
    Object.assign(this, { names, onChange, onEnter, chosen: -1 });
    this.input = h("input", {
      type: "text",
      id: "filter-jobs",
      class: "filter-text",
      role: "combobox",
      placeholder: 'Filter, for example  status = failed and params.lr < 0.01',
      "aria-label": "Filter jobs",
      "aria-autocomplete": "list",
      "aria-expanded": "false",
      "aria-controls": "filter-words",
      autocomplete: "off",
      autocapitalize: "off",
      spellcheck: "false",
      value: text,
      on: {
        input: () => this.#typed(),
        keydown: (event) => this.#key(event),
        blur: () => setTimeout(() => this.#show([]), 150), // after a click on a word
        click: () => this.#show([]),
      },
    });
    this.list = h("ul", { id: "filter-words", class: "filter-words popover", role: "listbox", hidden: true });
    this.problem = h("p", { class: "filter-problem", role: "alert", hidden: true });
    this.root = h("div", { class: "filter-box" }, this.input, this.list, this.problem);
  }

  /** Show the error with which the gateway rejected the filter, or null for none. */
  refuse(message) {
    this.refused = message;
    if (message && this.words?.length) return; // while a field is being typed
    this.problem.hidden = !message;
    this.input.setAttribute("aria-invalid", String(Boolean(message)));
    if (!message) return;
    const at = Number(/at column (\d+)/.exec(message)?.[1] ?? 0);
    const [before, rest] = [this.input.value.slice(0, at - 1), this.input.value.slice(at - 1)];
    const word = /^(\S+|\s*$)/.exec(rest)?.[0] || " ";
    const place = at ? [before.slice(-60), h("mark", null, word.slice(0, 60)), rest.slice(word.length, word.length + 40)] : [];
    this.problem.replaceChildren(message.replace(/^filter '.*': /s, ""), h("code", { "aria-hidden": "true" }, place));
  }

  #typed() {
    this.refuse(null);
    this.#show(this.#words());
    this.onChange(this.input.value);
  }

  /** Return completions for the word at the cursor, as [completion, typed part]. */
  #words() {
    const before = this.input.value.slice(0, this.input.selectionStart);
    const typed = /(?:[^\s"'=<>!~(),]|"[^"]*"?)*$/.exec(before)[0];
    if (!typed) return [];
    const known = this.names();
    const all = /status\s*(?:!?=|(?:not\s+)?in\s*\([^)]*)\s*\S*$/i.test(before)
      ? STATUSES
      : [
          ...(known?.jobs ?? []),
          ...["params", "tags", "metrics"].flatMap((space) =>
            (known?.[space] ?? []).map((name) => fieldText(space, name)),
          ),
          ...WORDS,
        ];
    const wanted = typed.toLowerCase();
    const starts = all.filter((word) => word.toLowerCase().startsWith(wanted));
    const inside = all.filter((word) => word.includes(".") && !starts.includes(word) && word.toLowerCase().includes(wanted));
    const found = [...starts, ...inside].slice(0, MOST);
    return found.length === 1 && found[0] === typed ? [] : found.map((word) => [word, typed]);
  }

  #show(words) {
    this.words = words;
    if (!words.length && this.refused) this.refuse(this.refused);
    this.chosen = -1;
    this.list.hidden = !words.length;
    this.input.setAttribute("aria-expanded", String(words.length > 0));
    this.list.replaceChildren(
      ...words.map(([word], index) =>
        h(
          "li",
          { role: "option", id: `filter-word-${index}`, dir: "auto", on: { pointerdown: (event) => this.#take(index, event) } },
          word,
        ),
      ),
    );
    this.#mark();
  }

  #mark() {
    [...this.list.children].forEach((item, index) => item.setAttribute("aria-selected", String(index === this.chosen)));
    if (this.chosen < 0) this.input.removeAttribute("aria-activedescendant");
    else this.input.setAttribute("aria-activedescendant", `filter-word-${this.chosen}`);
  }

  #take(index, event) {
    event.preventDefault();
    const [word, typed] = this.words[index];
    const at = this.input.selectionStart;
    this.input.setRangeText(`${word} `, at - typed.length, at, "end");
    this.#show([]);
    this.onChange(this.input.value);
  }

  #key(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by && this.words?.length) {
      event.preventDefault();
      this.chosen = (this.chosen + by + this.words.length) % this.words.length;
      this.#mark();
    } else if (event.key === "Tab" && this.words?.length && !event.shiftKey) this.#take(Math.max(0, this.chosen), event);
    else if (event.key === "Enter" && this.chosen >= 0) this.#take(this.chosen, event);
    else if (event.key === "Enter") {
      this.#show([]);
      this.onEnter(this.input.value);
    } else if (event.key === "Escape" && this.words?.length) {
      event.stopPropagation();
      this.#show([]);
    }
  }
}
