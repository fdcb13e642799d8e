// One job in the list.

import { h } from "../dom.js";
import { ago, count, dateTime, duration, fromText } from "../format.js";
import { sparkline } from "../sparkline.js";
import { epochs, hasEnded, headline, jobName, percent, runtime } from "../words.js";

const SHOWN_METRICS = 3;

/** The status as a coloured dot with its word. */
export function statusBadge(job) {
  return h(
    "span",
    { class: `status is-${job.status}` },
    h("i", { class: "dot", "aria-hidden": "true" }),
    job.status,
  );
}

/** A bar with what it means beside it. */
export function progressBar(job) {
  const done = percent(job);
  const words = epochs(job) || (done === null ? "" : `${Math.floor(done)} %`);
  if (done === null) return h("div", { class: "progress" }, h("span", { class: "quiet" }, words));
  const bar = h("progress", { max: "100", class: `is-${job.status}`, "aria-label": "progress" });
  bar.value = done;
  return h("div", { class: "progress" }, bar, h("span", { class: "quiet" }, words));
}

/** The row of a job. */
export function jobRow(job) {
  const began = fromText(job.started_at ?? job.created_at);
  const link = h(
    "a",
    { href: `#/jobs/${job.id}`, class: "job-link" },
    h("span", { class: "name", dir: "auto" }, jobName(job)),
  );
  return h(
    "tr",
    { class: `job is-${job.status}`, data: { id: String(job.id) } },
    h("td", { class: "c-status" }, statusBadge(job)),
    h("td", { class: "c-id num", title: String(job.id) }, String(job.id)),
    h("td", { class: "c-name" }, h("div", { class: "title" }, link, again(job)), why(job)),
    h("td", { class: "c-progress" }, progressBar(job)),
    h("td", { class: "c-metrics" }, metrics(job)),
    h("td", { class: "c-spark", title: job.sparkline?.name }, sparkline(job.sparkline)),
    h("td", { class: "c-time num" }, took(job)),
    h("td", { class: "c-began num", title: began ? dateTime(began) : "" }, began ? ago(began) : "–"),
  );
}

function again(job) {
  return job.attempt > 1 ? h("span", { class: "chip" }, `attempt ${count(job.attempt)}`) : null;
}

function why(job) {
  const words =
    job.status === "failed"
      ? job.error_message
      : ["stalled", "lost"].includes(job.status)
        ? job.status_reason
        : null;
  return words ? h("span", { class: "why", dir: "auto", title: words }, words) : null;
}

function metrics(job) {
  const shown =
    hasEnded(job) && job.final_metrics ? { ...job.last_metrics, ...job.final_metrics } : job.last_metrics;
  const items = headline(shown, SHOWN_METRICS).map(([name, words]) =>
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

function took(job) {
  const seconds = runtime(job);
  return seconds === null ? "–" : duration(seconds);
}
