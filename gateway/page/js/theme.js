// The colour theme: light, dark, or that of the operating system.

import { remembered } from "./dom.js";

const ORDER = ["auto", "light", "dark"];
const system = matchMedia("(prefers-color-scheme: dark)");
const listeners = new Set();
let chosen = ORDER.find((theme) => theme === remembered.get("theme")) ?? "auto";

/** Call `listener` when the colours change; return a function that unregisters it. */
export function onTheme(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Return the chosen theme: auto, light or dark. */
export function theme() {
  return chosen;
}

/** Switch to the next theme and remember it. */
export function nextTheme() {
  chosen = ORDER[(ORDER.indexOf(chosen) + 1) % ORDER.length];
  remembered.set("theme", chosen);
  apply();
}

function apply() {
  const isDark = chosen === "auto" ? system.matches : chosen === "dark";
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  for (const listener of listeners) listener();
}

system.addEventListener("change", apply);
