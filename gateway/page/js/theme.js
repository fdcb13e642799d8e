// The colour theme: light, dark, or that of the operating system.

import { remembered } from "./dom.js";

const ORDER = ["auto", "light", "dark"];
const listeners = new Set();

/** Call `listener` when the colours change; return a function that unregisters it. */
export function onTheme(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Return the chosen theme: auto, light or dark. */
export function theme() {
  const chosen = document.documentElement.dataset.theme;
  return ORDER.includes(chosen) ? chosen : "auto";
}

/** Switch to the next theme and remember it. */
export function nextTheme() {
  const next = ORDER[(ORDER.indexOf(theme()) + 1) % ORDER.length];
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  remembered.set("theme", next);
  tell();
}

function tell() {
  for (const listener of listeners) listener();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
