// The details of one log line: its whole text, wrapped, with time, output stream, level, attempt and rank.

import { h } from "../dom.js";
import { clock, count, dateTime, fromNs, isGiven } from "../format.js";
import { plain } from "./ansi.js";
import { textNodes } from "./row.js";

const MOST_SHOWN = 100_000;

/**
 * Return the element with the details of a line. `onShowAround(seq)`, if given, shows its surrounding lines, which a
 * filter hides.
 */
export function lineDetail(line, { needle, onShowAround, onClose }) {
  const ms = fromNs(line.ts);
  const known = [
    `line ${count(line.seq)}`,
    `${dateTime(ms).slice(0, 10)} ${clock(ms, true)}`,
    line.log_type,
    line.level,
    `attempt ${line.attempt}`,
    isGiven(line.rank) && `rank ${line.rank}`,
  ];
  const copy = h("button", { on: { click: () => copyText(copy, plain(line.text)) } }, "Copy");
  return h(
    "div",
    { class: "line-detail", role: "region", "aria-label": `line ${line.seq}` },
    h(
      "div",
      { class: "line-detail-head" },
      h("span", { class: "quiet" }, known.filter(Boolean).join(" · ")),
      onShowAround && h("button", { on: { click: () => onShowAround(line.seq) } }, "Show surrounding lines"),
      copy,
      h("button", { class: "icon", "aria-label": "Close", on: { click: onClose } }, "×"),
    ),
    h("pre", { tabindex: "0" }, textNodes(line.text, needle, MOST_SHOWN)),
  );
}

async function copyText(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it and press Ctrl-C";
  }
}
