// Keyboard shortcuts: one table of all keys and their actions, which `?` shows.

import { showDialog } from "./dialog.js";
import { h } from "./dom.js";

const bound = new Map();

/** Bind keyboard shortcuts, `{key: [description, action]}`; return a function that unbinds them. */
export function bindKeys(table) {
  const entries = Object.entries(table);
  for (const [key, [words, action]] of entries) bound.set(key, { words, action });
  return () => {
    for (const [key, [, action]] of entries) if (bound.get(key)?.action === action) bound.delete(key);
  };
}

/** Show a dialog with all keyboard shortcuts. */
export function showKeys() {
  const rows = [...bound].map(([key, { words }]) =>
    h("tr", null, h("td", null, h("kbd", null, shown(key))), h("td", null, words)),
  );
  const table = h("table", null, h("tbody", null, rows));
  const close = h("button", { on: { click: () => dialog.close() } }, "Close");
  const dialog = showDialog({ name: "keys", title: "Keyboard shortcuts", content: [table, close], isLight: true });
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
