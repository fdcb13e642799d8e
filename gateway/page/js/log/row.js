// The element of one log line.

import { h } from "../dom.js";
import { clock, count, dateTime, fromNs } from "../format.js";
import { runs } from "./ansi.js";

const MOST_SHOWN = 2000;

/** Return the row of a line; for a line that is not loaded yet, a placeholder with its number. */
export function lineRow(line, number, needle) {
  if (!line)
    return h(
      "div",
      { class: "line is-coming", data: { seq: String(number) } },
      h("span", { class: "no" }, number),
      h("span", { class: "quiet" }, "…"),
    );
  const ms = fromNs(line.ts);
  const classes = [
    "line",
    line.log_type === "stderr" && "is-stderr",
    line.level && `level-${levelClass(line.level)}`,
  ];
  return h(
    "div",
    { class: classes.filter(Boolean).join(" "), data: { seq: String(line.seq) } },
    h("span", { class: "no" }, String(line.seq)),
    h("time", { title: dateTime(ms) }, clock(ms), h("span", { class: "ms" }, clock(ms, true).slice(8))),
    h("span", { class: "rank", title: "Rank" }, String(line.rank ?? "")),
    h(
      "span",
      { class: "level", title: line.level ? `${line.level}, ${line.log_type}` : line.log_type },
      shownLevel(line),
    ),
    h("span", { class: "text" }, textNodes(line.text, needle), more(line.text)),
  );
}

/** Return the text of a line as nodes: colours as spans, matches of `needle` marked, at most `most` characters. */
export function textNodes(text, needle = "", most = MOST_SHOWN) {
  return runs(text.length > most ? text.slice(0, most) : text).flatMap((run) => {
    const marked = mark(run.text, needle);
    return run.classes ? [h("span", { class: run.classes }, marked)] : marked;
  });
}

/** Return the CSS class of a level: error, warning, debug or other. */
function levelClass(level) {
  const name = level.toLowerCase();
  if (["error", "critical", "fatal"].includes(name)) return "error";
  if (["warning", "warn"].includes(name)) return "warning";
  return name === "debug" || name === "trace" ? "debug" : "other";
}

function shownLevel(line) {
  if (line.level) return line.level.slice(0, 1).toUpperCase();
  return line.log_type === "stderr" ? "!" : "";
}

function more(text) {
  return text.length > MOST_SHOWN
    ? h("span", { class: "quiet" }, ` … ${count(text.length - MOST_SHOWN)} more characters`)
    : null;
}

function mark(text, needle) {
  if (!needle) return [text];
  const found = [];
  const lower = text.toLowerCase();
  const wanted = needle.toLowerCase();
  let from = 0;
  for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, from)) {
    found.push(text.slice(from, at), h("mark", null, text.slice(at, at + wanted.length)));
    from = at + wanted.length;
  }
  return [...found, text.slice(from)].filter((part) => part !== "");
}
