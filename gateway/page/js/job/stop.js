// The button that asks the trainers of a job to stop.

import { send } from "../api.js";
import { h, setText } from "../dom.js";
import { fromText, moment } from "../format.js";
import { askFor } from "../list/actions.js";
import { hasEnded, quotedJob } from "../words.js";

/** The button, or the request that was sent already; `update(job)` whenever the job has changed. */
export class StopButton {
  constructor({ mayEdit, onDone }) {
    Object.assign(this, { mayEdit, onDone });
    this.button = h("button", { class: "danger", hidden: true, on: { click: () => this.#ask() } }, "Stop…");
    this.asked = h("span", { class: "chip", role: "status", dir: "auto", hidden: true });
    this.root = h("span", { class: "stop" }, this.button, this.asked);
  }

  update(job) {
    this.job = job;
    const isOpen = !hasEnded(job);
    this.button.hidden = !this.mayEdit || !isOpen || Boolean(job.stop);
    this.asked.hidden = !isOpen || !job.stop;
    if (this.asked.hidden) return;
    setText(this.asked, `Stop requested by ${job.stop.requested_by}, ${moment(fromText(job.stop.requested_at))}`);
    this.asked.title = job.stop.reason ?? "";
  }

  #ask() {
    const job = this.job;
    const reason = h("input", { type: "text", name: "reason", maxlength: "1000" });
    askFor({
      title: `Stop ${quotedJob(job)}?`,
      content: [
        h("p", null, "All its processes are asked to stop, and end by themselves. This cannot be undone."),
        h("label", null, h("span", null, "Reason"), reason, h("small", { class: "quiet" }, "Optional; stored with the job.")),
      ],
      action: "Stop",
      isDangerous: true,
      onAction: async () => {
        await send("POST", `/jobs/${job.id}/stop`, { reason: reason.value });
        this.onDone();
      },
    });
  }
}
