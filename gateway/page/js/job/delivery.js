// The panel with the completeness of a job's messages and their delivery to sinks.

import { get } from "../api.js";
import { h, setText } from "../dom.js";
import { count, counted } from "../format.js";

const RELOAD_MS = 5000;

/** The panel. It reloads regularly while `isNeeded()`, and calls `onState(state)` with the state of the sum. */
export class Delivery {
  constructor(jobId, { isNeeded, onState }) {
    Object.assign(this, { path: `/jobs/${jobId}`, isNeeded, onState });
    this.sum = h("div", { class: "facts-block" });
    this.sinks = h("div", { class: "facts-block" });
    this.said = h("p", { class: "quiet padded", role: "status" }, "Loading…");
    const alerts = h("p", null, h("a", { href: `#/alerts?job=${jobId}` }, "Alerts of this job"));
    this.root = h("section", { class: "pane", "aria-label": "Delivery" }, this.sum, this.sinks, alerts, this.said);
    this.timer = setInterval(() => this.isNeeded() && this.reload(), RELOAD_MS);
  }

  close() {
    clearInterval(this.timer);
  }

  begin(_snapshot, isFirst) {
    if (isFirst) this.reload();
  }

  opened() {
    this.reload();
  }

  async reload() {
    try {
      const [sum, deliveries] = await Promise.all([
        get(`${this.path}/completeness`),
        get(`${this.path}/deliveries`),
      ]);
      this.sum.replaceChildren(...sumWords(sum));
      this.sinks.replaceChildren(h("h2", null, "Deliveries"), ...sinkWords(deliveries.items));
      this.onState(sum.state);
      this.said.hidden = true;
    } catch (problem) {
      this.said.hidden = false;
      setText(this.said, problem.message);
    }
  }
}

function sumWords(sum) {
  const numbers = [
    ["Produced", sum.produced],
    ["Stored", sum.stored],
    ["Dead-lettered", sum.dead_lettered],
    ["Missing", sum.missing],
    ["Lost", Object.values(sum.lost ?? {}).reduce((total, number) => total + number, 0)],
    ["Dropped", sum.dropped],
  ];
  const tiles = numbers.map(([name, number]) =>
    h(
      "span",
      { class: `tile${number && ["Missing", "Lost", "Dead-lettered"].includes(name) ? " tone-bad" : ""}` },
      h("span", { class: "quiet" }, name),
      " ",
      h("b", { class: "num" }, count(number)),
    ),
  );
  return [
    h("h2", null, "Completeness"),
    h("p", { class: `tone-${toneOf(sum.state)}` }, verdict(sum)),
    h("div", { class: "tiles" }, tiles),
    ...(sum.shared_ranks.length
      ? [
          h(
            "p",
            { class: "tone-bad" },
            "Several trainers ran as one rank of this job at the same time: their messages are mixed in one " +
              "attempt. Give each a job id or a rank of its own.",
          ),
        ]
      : []),
    h("p", { class: "quiet small" }, sum.line),
  ];
}

/** Return the tone (good, bad or quiet) of a state of the sum (docs/concepts.md). */
export function toneOf(state) {
  return { complete: "good", incomplete: "bad", unproven: "bad" }[state] ?? "quiet";
}

function verdict(sum) {
  switch (sum.state) {
    case "complete":
      return "Complete: every message is in Postgres.";
    case "accounted":
      return "Accounted: no message is missing, but some were dead-lettered or dropped.";
    case "unproven":
      return sum.absent_ranks.length
        ? "Unproven: no known message is missing, but not all ranks have reported."
        : "Unproven: no known message is missing, but a process did not report its end.";
    case "incomplete":
      return `Incomplete: ${counted(sum.missing, "message")} did not arrive.`;
    default:
      return "Still receiving: final count not known yet.";
  }
}

function sinkWords(items) {
  if (!items.length) return [h("p", { class: "quiet" }, "No external destinations configured.")];
  return items.map((item) =>
    h(
      "p",
      { class: "sink" },
      h("b", null, item.title),
      h(
        "span",
        { class: item.is_down ? "tone-bad" : item.behind_rows ? "tone-quiet" : "tone-good", dir: "auto" },
        item.words,
      ),
    ),
  );
}
