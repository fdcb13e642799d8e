// The message below the list: loading, no jobs, no matching jobs, or an error.

import { retriedWords } from "../api.js";
import { h, setText } from "../dom.js";

/** The message; its buttons call `onRetry()`, or `onClear()` to clear the filters. */
export class ListMessage {
  constructor({ onRetry, onClear }) {
    Object.assign(this, { onRetry, onClear });
    this.root = h("div", { class: "list-said", role: "status" }, "Loading…");
  }

  /** Show the message for the state of the list; `isNarrowed` is true if a filter is set. */
  update({ problem, isLoaded, isEmpty, isNarrowed }) {
    const key = JSON.stringify([problem?.message, isLoaded, isEmpty, isNarrowed]);
    if (key === this.key) return;
    this.key = key;
    if (problem) this.root.replaceChildren(...problemWords(problem, this.onRetry));
    else if (!isEmpty) this.root.replaceChildren();
    else if (!isLoaded) setText(this.root, "Loading…");
    else this.root.replaceChildren(isNarrowed ? noMatch(this.onClear) : noJobs());
  }
}

/** Return the text of an error, with a button that calls `retry`. */
export function problemWords(problem, retry) {
  return [h("p", { class: "problem" }, retriedWords(problem)), h("button", { on: { click: retry } }, "Try again")];
}

/** Return "No matching jobs." (or other `things`), with a button that calls `clear`. */
export function noMatch(clear, things = "jobs") {
  return h("p", { class: "no-match" }, `No matching ${things}. `, h("button", { on: { click: clear } }, "Clear filters"));
}

function noJobs() {
  return h(
    "div",
    { class: "empty" },
    h("h2", null, "No runs yet"),
    h("p", null, "Start a run and it will appear here automatically:"),
    h("pre", null, h("code", null, "trainwire run -- python train.py")),
  );
}
