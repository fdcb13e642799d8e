// The panel with the parameters, tags, attempts and provenance of a job.

import { get } from "../api.js";
import { h } from "../dom.js";
import { count, dateTime, duration, fromText, isGiven } from "../format.js";
import { headline, statusWords } from "../words.js";

/** The panel; `setJob(job)` redraws it if something has changed. */
export class Facts {
  constructor(jobId) {
    this.path = `/jobs/${jobId}/provenance`;
    this.facts = h("div");
    this.provenance = h("div");
    this.root = h("section", { class: "pane", "aria-label": "Parameters" }, this.facts, this.provenance);
  }

  /** Request the provenance again, because it is stored shortly after the start of each attempt. */
  async opened() {
    try {
      const { items } = await get(this.path);
      this.provenance.replaceChildren(...provenanceBlocks(items));
    } catch {
      this.provenance.replaceChildren(); // other parts of the page show that the gateway is unreachable, or that there is no job yet
    }
  }

  setJob(job) {
    const key = JSON.stringify([job.note, job.params, job.tags, job.attempts, job.final_metrics, job.best_metrics]);
    if (key === this.key) return;
    if (this.attempt !== job.attempt && this.root.offsetParent) this.opened();
    this.attempt = job.attempt;
    this.key = key;
    const parts = [
      job.note && h("div", { class: "facts-block" }, h("h2", null, "Note"), h("p", { dir: "auto" }, job.note)),
      table("Parameters", flat(job.params)),
      table("Tags", flat(job.tags)),
      table("Final metrics", headline(job.final_metrics, Infinity)),
      table("Best metrics", headline(job.best_metrics, Infinity)),
      attempts(job.attempts ?? []),
    ].filter(Boolean);
    this.facts.replaceChildren(
      ...(parts.length
        ? parts
        : [h("p", { class: "quiet padded" }, "No parameters. Pass params={…} to Run(…).")]),
    );
  }
}

/** Flatten nested parameters to [path, text] pairs in alphabetical order; Postgres does not keep the original order. */
export function flat(given, path = "") {
  const sorted = Object.entries(given ?? {}).sort(([one], [other]) => one.localeCompare(other));
  return sorted.flatMap(([name, found]) => {
    const here = path ? `${path}.${name}` : name;
    if (found !== null && typeof found === "object" && !Array.isArray(found) && Object.keys(found).length)
      return flat(found, here);
    return [[here, typeof found === "string" ? found : JSON.stringify(found)]];
  });
}

function table(title, rows) {
  if (!rows.length) return null;
  return h("div", { class: "facts-block" }, h("h2", null, title), pairs(rows));
}

function pairs(rows) {
  const lines = rows.map(([name, text]) =>
    h("tr", null, h("th", { scope: "row", dir: "auto" }, name), h("td", { dir: "auto" }, text)),
  );
  return h("table", { class: "pairs" }, h("tbody", null, lines));
}

function attempts(all) {
  if (all.length < 2) return null;
  const rows = [...all].reverse().map((attempt) => {
    const [from, until] = [fromText(attempt.started_at), fromText(attempt.completed_at)];
    const took = from && until ? duration((until - from) / 1000) : "";
    const why = [
      isGiven(attempt.exit_code) && `exit code ${attempt.exit_code}`,
      attempt.error_message,
    ]
      .filter(Boolean)
      .join(": ");
    return h(
      "tr",
      null,
      h("th", { scope: "row" }, `Attempt ${attempt.attempt}`),
      h(
        "td",
        { dir: "auto" },
        [statusWords(attempt), resumed(attempt), attempt.attempt < 1 && "sent late", from && `started ${dateTime(from)}`, took, why].filter(Boolean).join(" · "),
      ),
    );
  });
  return h(
    "div",
    { class: "facts-block" },
    h("h2", null, "Attempts"),
    h("table", { class: "pairs" }, h("tbody", null, rows)),
  );
}

function resumed({ resume_step: step }) {
  return isGiven(step) ? `resumed from step ${count(step)}` : "";
}

/** Return the elements with command, code, machine and Python; packages and the diff are collapsed. */
function provenanceBlocks(items) {
  const { command, packages, diff, gpu, git, ...others } = items;
  const rows = [
    ...flat(command && { command: command.map(quoted).join(" ") }),
    ...flat(git && { git }),
    ...(gpu ?? []).flatMap((each, index) => flat({ [`gpu ${index}`]: Object.values(each).join(", ") })),
    ...flat(others),
  ];
  return [
    table("Provenance", rows),
    folded(`Packages (${Object.keys(packages ?? {}).length})`, packages && pairs(flat(packages).sort())),
    folded("Changes since the commit", diff && h("pre", { class: "traceback", tabindex: "0" }, diff)),
  ].filter(Boolean);
}

/** Quote an argument for a shell, if it is necessary. */
function quoted(argument) {
  const text = String(argument);
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
}

function folded(title, content) {
  return content ? h("details", { class: "facts-block" }, h("summary", null, title), content) : null;
}
