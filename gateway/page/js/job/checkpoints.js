// The panel with the checkpoints of a job.

import { get } from "../api.js";
import { h, setText, throttled } from "../dom.js";
import { bytes, count, dateTime, fromNs, fromText, isGiven, moment } from "../format.js";
import { headline } from "../words.js";

const RELOAD_MS = 2000;
const COLUMNS = ["Kind", "Saved", "Epoch", "Size", "State", "File", "Download"];

/** The table of a job's checkpoints; `reload()` requests it again, at most every two seconds. */
export class Checkpoints {
  constructor(jobId) {
    this.path = `/jobs/${jobId}/checkpoints`;
    this.body = h("tbody");
    this.said = h("p", { class: "quiet padded", role: "status" }, "Loading…");
    this.table = h(
      "table",
      { class: "checkpoints", hidden: true },
      h(
        "thead",
        null,
        h(
          "tr",
          null,
          COLUMNS.map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      this.body,
    );
    this.root = h("section", { class: "pane", "aria-label": "Checkpoints" }, this.table, this.said);
    this.reload = throttled(() => this.#load(), RELOAD_MS);
  }

  close() {
    this.reload.cancel();
  }

  begin() {
    this.reload();
  }

  take(event) {
    if (event.type === "training_checkpoint") this.reload();
  }

  async #load() {
    try {
      const { items } = await get(this.path);
      this.body.replaceChildren(...items.reverse().map((item) => this.#row(item)));
      this.table.hidden = items.length === 0;
      this.said.hidden = items.length > 0;
      setText(this.said, "No checkpoints yet. Call run.checkpoint(path).");
    } catch (problem) {
      this.said.hidden = false;
      setText(this.said, problem.message);
    }
  }

  #row(item) {
    const marks = [
      item.is_best && h("span", { class: "mark is-best" }, "best"),
      item.is_last && h("span", { class: "mark is-last" }, "last"),
    ];
    const [words, tone] = stateWords(item);
    const metrics = headline(item.metrics, 2).map(([name, shown]) => `${name} ${shown}`);
    return h(
      "tr",
      null,
      h(
        "td",
        { class: "marks" },
        marks,
        !item.is_best && !item.is_last && h("span", { class: "quiet" }, item.checkpoint_kind),
      ),
      h("td", { class: "num", title: dateTime(fromNs(item.ts)) }, moment(fromNs(item.ts))),
      h("td", { class: "num" }, isGiven(item.epoch) ? count(item.epoch) : "–"),
      h("td", { class: "num" }, bytes(item.size_bytes)),
      h(
        "td",
        {
          class: `state tone-${tone}`,
          title: item.verified_at ? `checked ${dateTime(fromText(item.verified_at))}` : "",
        },
        words,
      ),
      h(
        "td",
        { class: "uri" },
        h("span", { dir: "ltr", title: item.uri }, item.uri),
        metrics.length > 0 && h("span", { class: "quiet" }, metrics.join(" · ")),
      ),
      h("td", null, this.#download(item)),
    );
  }

  #download(item) {
    if (item.deleted_at || item.overwritten_by || !/^s3:/.test(item.uri)) return null;
    const button = h(
      "button",
      {
        class: "icon",
        title: "Download",
        "aria-label": `Download ${item.uri}`,
        on: { click: () => this.#fetchUrl(item, button) },
      },
      "⤓",
    );
    return button;
  }

  async #fetchUrl(item, button) {
    button.disabled = true;
    try {
      const { url } = await get(`${this.path}/${item.seq}/url`);
      if (/^https?:\/\//.test(url)) h("a", { href: url, rel: "noreferrer", download: "" }).click();
    } catch (problem) {
      button.replaceWith(h("span", { class: "problem" }, problem.message));
    }
    button.disabled = false;
  }
}

/** Return the state of a checkpoint's file as [text, tone]; the tone is good, bad or quiet. */
function stateWords(item) {
  if (item.deleted_at) return ["deleted by retention", "quiet"];
  if (item.overwritten_by) return ["overwritten", "quiet"];
  if (item.upload_error) return [`upload failed: ${item.upload_error}`, "bad"];
  // A file that was not looked for is no fault of the file.
  if (item.verify_error) return [item.verify_error, ["missing", "different"].includes(item.state) ? "bad" : "quiet"];
  if (item.verified_at) return ["verified", "good"];
  return [item.state || "not checked yet", "quiet"];
}
