// All elements are created here: text and names from trainings become text nodes, never markup.

import { isGiven } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";

/**
 * Create an HTML element. `props` has `on` (listeners by event), `data` (dataset), `class`, DOM properties and
 * attributes. Buttons get `type="button"` by default, so they do not submit forms.
 */
export function h(tag, props, ...children) {
  const given = tag === "button" ? { type: "button", ...props } : props;
  return fill(document.createElement(tag), given, children);
}

/** Create an SVG element; `props` as for `h`. */
export function svg(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) setProp(element, name, value);
  element.append(...children.flat().filter((child) => isGiven(child) && child !== false));
  return element;
}

const PROPERTIES = new Set([
  "value",
  "checked",
  "disabled",
  "hidden",
  "selected",
  "open",
  "textContent",
  "htmlFor",
]);

function setProp(element, name, value) {
  if (!isGiven(value)) return;
  if (name === "on")
    for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
  else if (name === "data") Object.assign(element.dataset, value);
  else if (name === "class") element.setAttribute("class", value);
  else if (PROPERTIES.has(name)) element[name] = value;
  else if (value !== false) element.setAttribute(name, value === true ? "" : value);
}

/** Set the text of an element if it differs, so that selections are kept and screen readers do not repeat it. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Make `children` the only children of `parent`, in this order; elements that are in place already are not moved. */
export function arrange(parent, children) {
  children.forEach((child, index) => {
    const there = parent.children[index];
    if (there !== child) parent.insertBefore(child, there ?? null);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}

/** Return a function that calls `action` in the next animation frame, once for all calls before it. */
export function oncePerFrame(action) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      action();
    });
  };
}

/** Return a function that calls `action` once it has not been called for `ms`; its `cancel` drops a pending call. */
export function debounced(action, ms) {
  let timer = 0;
  const call = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), ms);
  };
  call.cancel = () => clearTimeout(timer);
  return call;
}

/** Return a function that calls `action` soon, but at most once every `ms`; its `cancel` drops a pending call. */
export function throttled(action, ms) {
  let timer = 0;
  let last = -Infinity;
  const run = () => {
    timer = 0;
    last = performance.now();
    action();
  };
  const call = () => {
    if (!timer) timer = setTimeout(run, Math.max(0, last + ms - performance.now()));
  };
  call.cancel = () => clearTimeout(timer);
  return call;
}

/** Read and write settings in localStorage; errors of a browser that does not allow this are ignored. */
export const remembered = {
  get(name) {
    try {
      return localStorage.getItem(`trainwire.${name}`);
    } catch {
      return null;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(`trainwire.${name}`, value);
    } catch {
      // Kept for this visit only.
    }
  },
};
