// Light, dark, or as the system has it.

import { remembered } from "./dom.js";

const ORDER = ["auto", "light", "dark"];
const listeners = new Set();

/** Be told when colours change; returns how to stop that. */
export function onTheme(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** The chosen theme: auto, light or dark. */
export function theme() {
  const chosen = document.documentElement.dataset.theme;
  return ORDER.includes(chosen) ? chosen : "auto";
}

/** Go on to the next theme. */
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
