// What can be done with the ticked jobs: compare, rename, note, tag, archive, delete.

import { request } from "../api.js";
import { h, setText } from "../dom.js";
import { counted } from "../format.js";
import { jobName } from "../words.js";

const MOST_COMPARED = 20;
const JSON_HEADERS = { "Content-Type": "application/json", Accept: "application/json" };

/** The bar over the list while jobs are ticked; `onDone()` after a change. */
export class Actions {
  constructor({ mayEdit, onDone, onClear }) {
    Object.assign(this, { mayEdit, onDone });
    this.count = h("span", { class: "num" });
    const button = (title, click, name = "") => h("button", { class: name, on: { click } }, title);
    this.compare = button("Compare", () => this.#compare(), "primary");
    this.edit = button("Edit…", () => this.#edit());
    this.archive = button("Archive", () => this.#archive());
    this.remove = button("Delete…", () => this.#delete(), "danger");
    this.said = h("span", { class: "problem", role: "alert" });
    this.root = h(
      "div",
      { class: "actions", role: "toolbar", "aria-label": "Selected jobs", hidden: true },
      this.count,
      this.compare,
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
    setText(this.archive, jobs.every((job) => job.archived_at) ? "Unarchive" : "Archive");
    setText(this.said, "");
  }

  #compare() {
    const [first, ...others] = this.jobs.map((job) => job.id);
    location.hash = `#/jobs/${first}?compare=${others.join(",")}`;
  }

  async #archive() {
    const archived = !this.jobs.every((job) => job.archived_at);
    await this.#change(this.jobs, { archived });
  }

  /** Send one change for each job; the first error is shown. */
  async #change(jobs, change) {
    try {
      for (const job of jobs) await patch(job.id, change);
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
    openDialog({
      title: isOne ? `Edit ${jobName(job)}` : `Edit ${counted(this.jobs.length, "job")}`,
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
        if (Object.keys(change).length) for (const each of this.jobs) await patch(each.id, change);
        this.onDone();
      },
    });
  }

  #delete() {
    const jobs = this.jobs;
    const running = jobs.filter((job) => ["running", "stalled"].includes(job.status));
    openDialog({
      title: jobs.length === 1 ? `Delete ${jobName(jobs[0])}?` : `Delete ${counted(jobs.length, "job")}?`,
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

function patch(id, change) {
  return request(`/jobs/${id}`, { method: "PATCH", headers: JSON_HEADERS, body: JSON.stringify(change) });
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

function openDialog({ title, content, action, onAction, isDangerous }) {
  const said = h("p", { class: "problem", role: "alert" });
  const send = h("button", { type: "submit", class: isDangerous ? "primary danger" : "primary" }, action);
  const submit = async (event) => {
    event.preventDefault();
    send.disabled = true;
    try {
      await onAction();
      dialog.close();
    } catch (problem) {
      setText(said, problem.message);
    }
    send.disabled = false;
  };
  const close = () => dialog.close();
  const dialog = h(
    "dialog",
    { class: "edit", "aria-labelledby": "dialog-title", on: { close: () => dialog.remove() } },
    h(
      "form",
      { on: { submit } },
      h("h2", { id: "dialog-title", dir: "auto" }, title),
      content,
      said,
      h("div", { class: "buttons" }, h("button", { on: { click: close } }, "Cancel"), send),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}
