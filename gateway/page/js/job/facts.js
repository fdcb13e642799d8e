// Parameters, tags and attempts of a job.

import { h } from "../dom.js";
import { dateTime, duration, fromText, value } from "../format.js";

/** The pane; `setJob(job)` draws it anew where something has changed. */
export class Facts {
  constructor() {
    this.root = h("section", { class: "pane facts-pane", "aria-label": "Parameters" });
  }

  setJob(job) {
    const key = JSON.stringify([job.params, job.tags, job.attempts, job.final_metrics, job.best_metrics]);
    if (key === this.key) return;
    this.key = key;
    const parts = [
      table("Parameters", flat(job.params)),
      table("Tags", flat(job.tags)),
      table("Final metrics", shownMetrics(job.final_metrics)),
      table("Best metrics", shownMetrics(job.best_metrics)),
      attempts(job.attempts ?? []),
    ].filter(Boolean);
    this.root.replaceChildren(
      ...(parts.length
        ? parts
        : [h("p", { class: "quiet padded" }, "No parameters: Run(…, params={…}) says them.")]),
    );
  }
}

/** Nested parameters as [path, text]. */
function flat(given, path = "") {
  return Object.entries(given ?? {}).flatMap(([name, found]) => {
    const here = path ? `${path}.${name}` : name;
    if (found !== null && typeof found === "object" && !Array.isArray(found) && Object.keys(found).length)
      return flat(found, here);
    return [[here, typeof found === "string" ? found : JSON.stringify(found)]];
  });
}

function shownMetrics(metrics) {
  return Object.entries(metrics ?? {}).map(([name, found]) => [name, value(found)]);
}

function table(title, rows) {
  if (!rows.length) return null;
  const lines = rows.map(([name, text]) =>
    h("tr", null, h("th", { scope: "row", dir: "auto" }, name), h("td", { dir: "auto" }, text)),
  );
  return h(
    "div",
    { class: "facts-block" },
    h("h2", null, title),
    h("table", { class: "pairs" }, h("tbody", null, lines)),
  );
}

function attempts(all) {
  if (all.length < 2) return null;
  const rows = [...all].reverse().map((attempt) => {
    const [from, until] = [fromText(attempt.started_at), fromText(attempt.completed_at)];
    const took = from && until ? duration((until - from) / 1000) : "";
    const why = [
      attempt.exit_code !== null && attempt.exit_code !== undefined && `exit code ${attempt.exit_code}`,
      attempt.error_message,
    ]
      .filter(Boolean)
      .join(": ");
    return h(
      "tr",
      null,
      h("th", { scope: "row" }, `attempt ${attempt.attempt}`),
      h(
        "td",
        { dir: "auto" },
        [attempt.status, attempt.attempt < 1 && "sent late", from && `began ${dateTime(from)}`, took, why].filter(Boolean).join(" · "),
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
