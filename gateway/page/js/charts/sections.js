// Groups the names of metrics into sections: pinned ones first, then by the part before the last "/".

import { ordered } from "../words.js";

const PINNED = "Pinned";

/** Return the sections as `[{title, names}]`; the title is "" for names without "/". */
export function sectionsOf(names, pinned) {
  const sections = new Map([["", []]]);
  for (const name of ordered(names)) {
    if (pinned.has(name)) continue;
    add(sections, name.slice(0, Math.max(0, name.lastIndexOf("/"))), name);
  }
  // Sections of one metric each, like those of layer/1/norm, layer/2/norm …, are one by the part before the first "/".
  for (const [title, [name, ...others]] of [...sections]) {
    if (others.length || !title.includes("/")) continue;
    sections.delete(title);
    add(sections, title.slice(0, title.indexOf("/")), name);
  }
  const known = new Set(names);
  const first = { title: PINNED, names: [...pinned].filter((name) => known.has(name)) };
  const others = [...sections].map(([title, members]) => ({ title, names: members }));
  others.sort((a, b) => place(a.title) - place(b.title) || a.title.localeCompare(b.title));
  return [first, ...others].filter((section) => section.names.length);
}

function add(sections, title, name) {
  if (!sections.has(title)) sections.set(title, []);
  sections.get(title).push(name);
}

/** Return the sort order of a section: without a title first, then metrics of the training, then of the system. */
function place(title) {
  return title === "" ? 0 : title === "system" || title.startsWith("system/") ? 2 : 1;
}

/**
 * Compile a case-insensitive regular expression to `{matches(name), problem}`; `problem` is the error of an invalid
 * one, else null.
 */
export function nameFilter(text) {
  try {
    const expression = new RegExp(text, "iu");
    return { matches: (name) => expression.test(name), problem: null };
  } catch (error) {
    const reason = error.message.replace(/^Invalid regular expression: \/.*\/\w*: /s, "");
    return { matches: () => true, problem: `Not a regular expression: ${reason}` };
  }
}
