// The panel that compares jobs side by side: different parameters, final and best metrics.

import { get } from "../api.js";
import { comparedIds } from "../comparison.js";
import { h } from "../dom.js";
import { value } from "../format.js";
import { finalMetrics, jobName, latestMetrics, ordered, rankedValue, runtimeWords } from "../words.js";
import { flat } from "./facts.js";

const MOST_ROWS = 1000;

/** The panel; it requests the jobs that `address` names when it is opened. */
export class Differences {
  constructor(jobId, address) {
    Object.assign(this, { jobId, address });
    this.jobs = [];
    this.all = h("input", { type: "checkbox", on: { change: () => this.#draw() } });
    this.table = h("div", { class: "differences-frame", tabindex: "0", role: "group", "aria-label": "Compared jobs" });
    this.root = h(
      "section",
      { class: "pane", "aria-label": "Compare" },
      h("label", { class: "differences-all" }, this.all, "Show equal values too"),
      this.table,
    );
  }

  async opened() {
    const ids = [this.jobId, ...comparedIds(this.address, this.jobId)];
    const found = await Promise.all(ids.map((id) => get(`/jobs/${id}`).catch(() => null)));
    this.jobs = found.filter(Boolean);
    this.#draw();
  }

  /** Request the jobs again when an attempt has ended. */
  take(event) {
    if (["training_complete", "training_error"].includes(event.type) && this.root.offsetParent) this.opened();
  }

  #draw() {
    if (this.jobs.length < 2) {
      const words = "No jobs to compare. Select jobs in the list and press Compare, or add a job above the charts.";
      this.table.replaceChildren(h("p", { class: "quiet" }, words));
      return;
    }
    const heads = this.jobs.map((job) =>
      h("th", { scope: "col" }, h("a", { href: `#/jobs/${job.id}`, dir: "auto" }, jobName(job)), h("small", { class: "quiet num" }, String(job.id))),
    );
    this.table.replaceChildren(
      h(
        "table",
        { class: "differences" },
        h("thead", null, h("tr", null, h("td"), heads)),
        this.#group("Job", (job) => ({ status: job.status, duration: runtimeWords(job) }), { isWhole: true }),
        this.#group("Parameters", (job) => Object.fromEntries(flat(job.params))),
        this.#group("Final metrics", shownMetrics, { shown: valueWords, isWhole: true, order: ordered }),
        this.#group("Best metrics", (job) => job.best_metrics, { shown: value, isWhole: true, order: ordered }),
        this.#group("Tags", (job) => Object.fromEntries(flat(job.tags))),
      ),
    );
  }

  #group(title, valuesOf, { shown = (text) => text, isWhole = false, order = (names) => names } = {}) {
    const values = this.jobs.map((job) => valuesOf(job) ?? {});
    const names = order([...new Set(values.flatMap(Object.keys))]);
    const wanted = isWhole || this.all.checked ? names : names.filter((name) => isDifferent(values, name));
    const head = h("tr", null, h("th", { class: "group", colspan: String(this.jobs.length + 1), scope: "rowgroup" }, title));
    const rows = wanted.slice(0, MOST_ROWS).map((name) =>
      h(
        "tr",
        { class: isDifferent(values, name) ? "is-different" : null },
        h("th", { scope: "row", dir: "auto" }, name),
        values.map((each) => h("td", { class: "num", dir: "auto" }, name in each ? shown(each[name]) : "–")),
      ),
    );
    if (names.length && !rows.length)
      rows.push(h("tr", null, h("td", { class: "quiet", colspan: String(this.jobs.length + 1) }, "All equal.")));
    return rows.length ? h("tbody", null, head, rows) : null;
  }
}

/** Return the final or newest metrics of a job; those of several ranks as `{value, words}`, where words names the ranks. */
function shownMetrics(job) {
  const final = finalMetrics(job);
  const entries = Object.entries(latestMetrics(job));
  return Object.fromEntries(entries.map(([name, newest]) => [name, rankedValue(job, name, final?.[name]) ?? newest]));
}

function valueWords(given) {
  return given?.words ? [value(given.value), h("small", { class: "quiet" }, ` ${given.words}`)] : value(given);
}

function isDifferent(values, name) {
  return new Set(values.map((each) => (name in each ? JSON.stringify(each[name]) : ""))).size > 1;
}
