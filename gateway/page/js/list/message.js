// What stands below the rows of the list: that they are loading, that there are none, or why they cannot be read.

import { h, setText } from "../dom.js";

/** The message; `onRetry()` and `onClear()`, which clears the filters, are what its buttons do. */
export class ListMessage {
  constructor({ onRetry, onClear }) {
    Object.assign(this, { onRetry, onClear });
    this.root = h("div", { class: "list-said", role: "status" }, "Loading…");
  }

  /** Show what there is to say of a list; `isNarrowed`: it has not all jobs. */
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

function problemWords(problem, retry) {
  return [h("p", { class: "problem" }, problem.message), h("button", { on: { click: retry } }, "Try again")];
}

function noMatch(clear) {
  return h("p", { class: "no-match" }, "No matching jobs. ", h("button", { on: { click: clear } }, "Clear filters"));
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
