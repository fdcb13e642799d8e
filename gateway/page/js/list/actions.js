// Actions on the selected jobs: compare, plot, edit name, note and tags, archive, delete.

import { request, send } from "../api.js";
import { MOST_COMPARED, comparisonAddress } from "../comparison.js";
import { showDialog } from "../dialog.js";
import { h, setText } from "../dom.js";
import { counted } from "../format.js";
import { quotedJob } from "../words.js";

/** The toolbar above the list while jobs are selected; `onDone()` is called after a change of the jobs. */
export class Actions {
  constructor({ mayEdit, onDone, onClear, onPlot }) {
    Object.assign(this, { mayEdit, onDone });
    this.count = h("span", { class: "num" });
    const button = (title, click, name = "") => h("button", { class: name, on: { click } }, title);
    this.compare = button("Compare", () => this.#compare(), "primary");
    this.plot = button("Plot", () => onPlot(this.jobs.map((job) => job.id)));
    this.edit = button("Edit…", () => this.#edit());
    this.archive = button("Archive", () => this.#archive());
    this.remove = button("Delete…", () => this.#delete(), "danger");
    this.said = h("span", { class: "problem", role: "alert" });
    this.root = h(
      "div",
      { class: "actions", role: "toolbar", "aria-label": "Selected jobs", hidden: true },
      this.count,
      this.compare,
      this.plot,
      ...(mayEdit ? [this.edit, this.archive, this.remove] : []),
      button("Clear", onClear, "plain"),
      this.said,
    );
  }

  update(jobs) {
    this.jobs = jobs;
    this.root.hidden = jobs.length === 0;
    setText(this.count, `${jobs.length} selected`);
    this.compare.disabled = jobs.length < 2 || jobs.length > MOST_COMPARED;
    this.compare.title = this.compare.disabled ? `Select 2 to ${MOST_COMPARED} jobs` : "";
    this.plot.disabled = jobs.length < 2;
    setText(this.archive, jobs.every((job) => job.archived_at) ? "Unarchive" : "Archive");
    setText(this.said, "");
  }

  #compare() {
    location.hash = comparisonAddress(this.jobs.map((job) => job.id));
  }

  async #archive() {
    const archived = !this.jobs.every((job) => job.archived_at);
    await this.#change(this.jobs, { archived });
  }

  /** Send the same change for each job; show the first error and stop there. */
  async #change(jobs, change) {
    try {
      for (const job of jobs) await send("PATCH", `/jobs/${job.id}`, change);
      this.onDone();
    } catch (problem) {
      setText(this.said, problem.message);
    }
  }

  #edit() {
    const [job] = this.jobs;
    const isOne = this.jobs.length === 1;
    const name = h("input", { type: "text", name: "name", value: isOne ? (job.name ?? "") : "", maxlength: "1000" });
    const note = h("textarea", { name: "note", rows: "3", maxlength: "10000", value: isOne ? (job.note ?? "") : "" });
    const tags = h("input", { type: "text", name: "tags", placeholder: "team=vision baseline -old", spellcheck: "false" });
    const field = (title, input, hint) =>
      h("label", null, h("span", null, title), input, hint && h("small", { class: "quiet" }, hint));
    askFor({
      title: isOne ? `Edit ${quotedJob(job)}` : `Edit ${counted(this.jobs.length, "job")}`,
      content: [
        ...(isOne ? [field("Name", name, "Empty: the trainer's name."), field("Note", note)] : []),
        field("Tags", tags, "NAME=VALUE adds or replaces, -NAME removes."),
      ],
      action: "Save",
      onAction: async () => {
        const change = {};
        if (isOne && name.value.trim() !== (job.name ?? "")) change.name = name.value;
        if (isOne && note.value.trim() !== (job.note ?? "")) change.note = note.value;
        if (tags.value.trim()) change.tags = tagsOf(tags.value);
        if (Object.keys(change).length) for (const { id } of this.jobs) await send("PATCH", `/jobs/${id}`, change);
        this.onDone();
      },
    });
  }

  #delete() {
    const jobs = this.jobs;
    const running = jobs.filter((job) => ["running", "stalled"].includes(job.status));
    askFor({
      title: jobs.length === 1 ? `Delete ${quotedJob(jobs[0])}?` : `Delete ${counted(jobs.length, "job")}?`,
      content: [
        h("p", null, "Rows, copies in other stores and the page are deleted. Files in S3 stay. This cannot be undone."),
        running.length
          ? h("p", { class: "problem" }, `${counted(running.length, "job")} still running: what is sent from now on is discarded.`)
          : null,
      ],
      action: "Delete",
      isDangerous: true,
      onAction: async () => {
        for (const job of jobs)
          await request(`/jobs/${job.id}`, { method: "DELETE" }, running.length ? { force: true } : {});
        this.onDone();
      },
    });
  }
}

/** `team=vision baseline -old` -> {team: "vision", baseline: "true", old: null} */
export function tagsOf(text) {
  const words = text.match(/(?:"[^"]*"|[^\s"])+/g) ?? [];
  return Object.fromEntries(
    words.map((word) => {
      const plain = word.replaceAll('"', "");
      if (plain.startsWith("-") && !plain.includes("=")) return [plain.slice(1), null];
      const at = plain.indexOf("=");
      return at < 0 ? [plain, "true"] : [plain.slice(0, at), plain.slice(at + 1)];
    }),
  );
}

/** Show a form in a dialog; submitting it calls `onAction()`, whose error is shown in the form. */
export function askFor({ title, content, action, onAction, isDangerous }) {
  const said = h("p", { class: "problem", role: "alert" });
  const button = h("button", { type: "submit", class: isDangerous ? "primary danger" : "primary" }, action);
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await onAction();
      dialog.close();
    } catch (problem) {
      setText(said, problem.message);
    }
    button.disabled = false;
  };
  const cancel = h("button", { on: { click: () => dialog.close() } }, "Cancel");
  const form = h("form", { on: { submit } }, content, said, h("div", { class: "buttons" }, cancel, button));
  const dialog = showDialog({ name: "edit", title, content: form });
}
