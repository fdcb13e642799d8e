// The indicator in the top bar of whether the page receives live events.

import { h, setText } from "./dom.js";

const BACK_FOR_MS = 4000;

/** The indicator of the connection state of a `Feed`, with a button to reconnect at once. */
export class Connection {
  constructor(root) {
    this.root = root;
    this.word = h("span");
    this.retry = h("button", { hidden: true, on: { click: () => this.onRetry?.() } }, "Retry now");
    root.replaceChildren(h("i", { class: "dot", "aria-hidden": "true" }), this.word, this.retry);
    this.hide();
  }

  /** Clear the indicator, because no view is open. */
  hide() {
    clearInterval(this.timer);
    this.root.dataset.state = "";
    setText(this.word, "");
    this.retry.hidden = true;
  }

  /** Show a connection state, as `Feed` passes it to `onState`. */
  show(state) {
    clearInterval(this.timer);
    this.retry.hidden = state.name !== "waiting";
    if (state.name === "waiting") this.#countDown(state.retryAt);
    else if (state.name === "live") this.#live(state.wasLost);
    else if (state.name === "stale") this.#set("stale", `Not live: ${state.problem}`);
    else
      this.#set(
        state.name,
        {
          connecting: "Connecting…",
          unknown: "Waiting for the job",
          refused: "Not allowed",
          deleted: "Job deleted",
        }[state.name],
      );
  }

  #live(wasLost) {
    this.#set("live", wasLost ? "Reconnected, nothing missed" : "Live");
    if (wasLost) this.timer = setInterval(() => this.#set("live", "Live"), BACK_FOR_MS);
  }

  #countDown(retryAt) {
    const show = () => {
      const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
      this.#set("waiting", `Connection lost. Retrying in ${seconds} s…`);
    };
    show();
    this.timer = setInterval(show, 1000);
  }

  #set(name, words) {
    this.root.dataset.state = name;
    setText(this.word, words);
    this.word.title = words; // it is cut where the bar is narrow
  }
}
