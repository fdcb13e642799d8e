// The row of one job in the list.

import { h } from "../dom.js";
import { ago, count, dateTime, fromText, isGiven, value } from "../format.js";
import { sparkline } from "../sparkline.js";
import { epochs, hasEnded, headline, jobName, latestMetrics, percent, quotedJob, runtimeWords, statusWords } from "../words.js";

const SHOWN_METRICS = 3;

/** Return the status as a coloured dot with its name. */
export function statusBadge(job) {
  return h(
    "span",
    { class: `status is-${job.status}` },
    h("i", { class: "dot", "aria-hidden": "true" }),
    job.status,
  );
}

/** Return a progress bar with the epoch or per cent beside it. */
function progressBar(job) {
  const done = percent(job);
  const words = epochs(job) || (done === null ? "" : `${Math.floor(done)} %`);
  if (done === null) return h("div", { class: "progress" }, h("span", { class: "quiet" }, words));
  const bar = h("progress", { max: "100", class: `is-${job.status}`, "aria-label": "progress" });
  bar.value = done;
  return h("div", { class: "progress" }, bar, h("span", { class: "quiet" }, words));
}

/** Return the table row of a job with these columns; `onTick(isTicked)` is called by its checkbox. */
export function jobRow(job, columns, { isTicked, onTick }) {
  const tick = h("input", {
    type: "checkbox",
    checked: isTicked,
    "aria-label": `Select ${quotedJob(job)}`,
    on: { change: (event) => onTick(event.target.checked) },
  });
  return h(
    "tr",
    {
      class: `job is-${job.status}${job.archived_at ? " is-archived" : ""}`,
      data: { id: String(job.id) },
      "aria-selected": isTicked ? "true" : null,
    },
    h("td", { class: "c-tick" }, tick),
    columns.map((key) => (CELLS[key] ?? fieldCell(key))(job)),
  );
}

const CELLS = {
  status: (job) => h("td", { class: "c-status" }, statusBadge(job)),
  id: (job) => h("td", { class: "c-id num job-number", title: String(job.id) }, String(job.id)),
  name: (job) => h("td", { class: "c-name" }, title(job)),
  progress: (job) => h("td", { class: "c-progress" }, progressBar(job)),
  metrics: (job) => h("td", { class: "c-metrics" }, metrics(job)),
  chart: (job) => h("td", { class: "c-chart", title: job.sparkline?.name }, sparkline(job.sparkline)),
  duration: (job) => h("td", { class: "c-duration num" }, runtimeWords(job)),
  started: (job) => h("td", { class: "c-started num" }, time(job.started_at ?? job.created_at)),
};
const TIMES = ["created", "ended", "seen"];
const COUNTS = ["lines", "points", "checkpoints"];

function fieldCell(key) {
  return (job) => {
    const found = latest(job, key) ?? job.columns?.[key];
    const shown = TIMES.includes(key) ? time(found) : fieldWords(key, found);
    const isNumber = typeof found === "number" || ["NaN", "Infinity", "-Infinity"].includes(found);
    return h("td", { class: isNumber ? "c-field num" : "c-field", title: wholeText(found), dir: "auto" }, shown);
  };
}

/** Return the newest value of a metric from events, undefined if the value of the column should be shown. */
function latest(job, key) {
  const name = /^metrics\.([^"]+?)(?:\.last)?$/.exec(key)?.[1];
  if (!name || /\.(best|min|max)$/.test(key) || hasEnded(job) || job.final_metrics?.[name] !== undefined) return undefined;
  return job.last_metrics?.[name];
}

function fieldWords(key, found) {
  if (!isGiven(found)) return h("span", { class: "quiet" }, "–");
  if (COUNTS.includes(key)) return count(found);
  if (typeof found === "number") return value(found);
  return typeof found === "string" ? found : JSON.stringify(found);
}

function wholeText(found) {
  if (!isGiven(found)) return null;
  return typeof found === "string" ? found : JSON.stringify(found);
}

function time(text) {
  const at = fromText(text);
  return at ? h("time", { title: dateTime(at), datetime: text }, ago(at)) : "–";
}

/** Return the name of a job, with the error of a failed job or the note below it. */
function title(job) {
  const link = h(
    "a",
    { href: `#/jobs/${job.id}`, class: "job-link" },
    h("span", { class: "name", dir: "auto" }, jobName(job)),
  );
  const words = why(job) ?? note(job);
  return [h("div", { class: "title" }, link, chip(job)), words];
}

function chip(job) {
  const words = [job.archived_at && "archived", job.attempt > 1 && `attempt ${count(job.attempt)}`].filter(Boolean);
  return words.map((text) => h("span", { class: "chip" }, text));
}

function note(job) {
  return job.note ? h("span", { class: "note", dir: "auto", title: job.note }, job.note) : null;
}

function why(job) {
  const words =
    ["failed", "preempted"].includes(job.status)
      ? job.error_message
      : ["stalled", "lost"].includes(job.status)
        ? job.status_reason
        : job.status === "stopped"
          ? statusWords(job)
          : null;
  return words ? h("span", { class: "why", dir: "auto", title: words }, words) : null;
}

function metrics(job) {
  const items = headline(latestMetrics(job), SHOWN_METRICS).map(([name, words]) =>
    h(
      "span",
      { class: "metric" },
      h("span", { class: "metric-name", dir: "auto", title: name }, name),
      " ",
      h("b", null, words),
    ),
  );
  return h("div", { class: "metrics" }, items);
}
