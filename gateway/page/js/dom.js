// Elements are made here and nowhere else: what a training printed or named becomes text nodes, never markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an HTML element. `props`: `on` (listeners), `data` (dataset), `class`, DOM properties, else attributes.
 * A button submits no form unless it says so.
 */
export function h(tag, props, ...children) {
  const given = tag === "button" ? { type: "button", ...props } : props;
  return fill(document.createElement(tag), given, children);
}

/** Make an SVG element. */
export function svg(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) setProp(element, name, value);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
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
  if (value === null || value === undefined) return;
  if (name === "on")
    for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
  else if (name === "data") Object.assign(element.dataset, value);
  else if (name === "class") element.setAttribute("class", value);
  else if (PROPERTIES.has(name)) element[name] = value;
  else if (value !== false) element.setAttribute(name, value === true ? "" : value);
}

/** Set the text of an element only where it changes, so that selections and screen readers are left in peace. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Have exactly these children, in this order; those that are there already are not touched. */
export function arrange(parent, children) {
  children.forEach((child, index) => {
    const there = parent.children[index];
    if (there !== child) parent.insertBefore(child, there ?? null);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}

/** Call `action` at most once a frame, however often the returned function is called. */
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

/** Call `action` after calls have paused for `ms`; the returned function has `cancel`. */
export function debounced(action, ms) {
  let timer = 0;
  const call = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), ms);
  };
  call.cancel = () => clearTimeout(timer);
  return call;
}

/** Call `action` at once, then at most every `ms`, the last call included; the returned function has `cancel`. */
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

/** Read and write what this browser remembers; a browser that keeps nothing is no error. */
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
