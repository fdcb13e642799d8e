// The keyboard: one table of what keys do, which `?` shows.

import { h } from "./dom.js";

const bound = new Map();
let dialog = null;

/** Bind `{key: [words, action]}` until the returned function is called. */
export function bindKeys(table) {
  const entries = Object.entries(table);
  for (const [key, [words, action]] of entries) bound.set(key, { words, action });
  return () => {
    for (const [key, [, action]] of entries) if (bound.get(key)?.action === action) bound.delete(key);
  };
}

/** Show all keys. */
export function showKeys() {
  dialog?.remove();
  const rows = [...bound].map(([key, { words }]) =>
    h("tr", null, h("td", null, h("kbd", null, shown(key))), h("td", null, words)),
  );
  const close = () => dialog.close();
  dialog = h(
    "dialog",
    {
      class: "keys",
      "aria-labelledby": "keys-title",
      on: { click: (event) => event.target === dialog && close() },
    },
    h("h2", { id: "keys-title" }, "Keyboard shortcuts"),
    h("table", null, h("tbody", null, rows)),
    h("button", { on: { click: close } }, "Close"),
  );
  document.body.append(dialog);
  dialog.showModal();
}

function shown(key) {
  return { Escape: "Esc", ArrowDown: "↓", ArrowUp: "↑" }[key] ?? key;
}

function isTyping(target) {
  return target.closest?.("input:not([type=range]):not([type=checkbox]), textarea, select, dialog") !== null;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (isTyping(event.target)) {
    if (event.key === "Escape" && !event.target.closest("dialog")) event.target.blur();
    return;
  }
  const found = bound.get(event.key);
  if (!found) return;
  event.preventDefault();
  found.action();
});
