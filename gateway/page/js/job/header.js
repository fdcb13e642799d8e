// The header of a job's page: status, progress, newest metrics and the error of a failed job.

import { h, setText } from "../dom.js";
import { count, dateTime, fromText, isGiven, value } from "../format.js";
import { statusBadge } from "../list/row.js";
import { StopButton } from "./stop.js";
import { epochs, finalMetrics, headline, jobName, latestMetrics, percent, rankedValue, remaining, sentence } from "../words.js";

const SHOWN_METRICS = 4;

/** The header; call `update(job)` whenever the job has changed or time has passed. */
export class JobHeader {
  constructor({ mayEdit, onStop }) {
    this.stop = new StopButton({ mayEdit, onDone: onStop });
    this.name = h("h1", { dir: "auto" });
    this.badge = h("span");
    this.sentence = h("span", { class: "sentence", dir: "auto" });
    this.facts = h("span", { class: "quiet facts" });
    this.lineage = h("p", { class: "quiet lineage", hidden: true });
    this.bar = h("progress", { max: "100", "aria-label": "progress" });
    this.barWords = h("span", { class: "quiet num" });
    this.metrics = h("div", { class: "head-metrics" });
    this.mlflow = h(
      "a",
      { class: "button", target: "_blank", rel: "noopener noreferrer", hidden: true },
      "MLflow ↗",
    );
    this.warning = h("p", { class: "problem", role: "status", dir: "auto", hidden: true });
    this.failure = h("div", { class: "failure", hidden: true });
    this.root = h(
      "header",
      { class: "job-head" },
      h("div", { class: "job-title" }, this.badge, this.name, this.mlflow, this.stop.root),
      h("p", { class: "job-state" }, this.sentence, " ", this.facts),
      this.lineage,
      h("div", { class: "job-progress" }, this.bar, this.barWords),
      this.metrics,
      this.warning,
      this.failure,
    );
  }

  update(job) {
    setText(this.name, jobName(job));
    this.name.title = jobName(job);
    this.badge.replaceChildren(statusBadge(job));
    setText(this.sentence, sentence(job));
    this.sentence.title = sentence(job); // it is cut where many metrics stand beside it
    const began = fromText(job.started_at);
    const resumed = isGiven(job.resume_step) ? `, resumed from step ${count(job.resume_step)}` : "";
    const attempt = job.attempt > 1 || resumed ? `Attempt ${job.attempt}${resumed}.` : "";
    setText(this.facts, [attempt, began && `Started ${dateTime(began)}.`].filter(Boolean).join(" "));
    this.#lineage(job);
    this.#progress(job);
    this.#metrics(job);
    this.#link(job.mlflow_url);
    this.#failure(job);
    this.stop.update(job);
    this.warning.hidden = !job.warning;
    setText(this.warning, job.warning ?? "");
  }

  /** The links to the parent of a fork, and to the forks of a job. */
  #lineage({ parent_id: parent, fork_step: step, forks }) {
    const key = JSON.stringify([parent, step, forks]);
    if (key === this.lineageKey) return;
    this.lineageKey = key;
    const link = (id) => h("a", { href: `#/jobs/${id}` }, `job ${id}`);
    const isFork = isGiven(parent);
    const listed = (forks ?? []).flatMap((id, index) => [index ? ", " : "", link(id)]);
    this.lineage.replaceChildren(
      ...(isFork ? ["Forked from ", link(parent), ` at step ${count(step)}. `] : []),
      ...(listed.length ? ["Forks: ", ...listed, "."] : []),
    );
    this.lineage.hidden = !isFork && !listed.length;
  }

  #progress(job) {
    const done = percent(job);
    this.bar.hidden = done === null;
    this.bar.value = done ?? 0;
    this.bar.className = `is-${job.status}`;
    const words = [
      epochs(job),
      done === null || job.status === "completed" ? "" : `${done.toFixed(done < 10 ? 1 : 0)} %`,
      remaining(job),
    ];
    setText(this.barWords, words.filter(Boolean).join(" · "));
  }

  #metrics(job) {
    const final = finalMetrics(job);
    const shown = headline(latestMetrics(job), SHOWN_METRICS);
    const source = (name) => rankedValue(job, name, final?.[name]);
    const key = JSON.stringify([shown, shown.map(([name]) => source(name)), job.best_metrics, job.best_epoch]);
    if (key === this.metricsKey) return;
    this.metricsKey = key;
    const tiles = shown.map(([name, words]) => {
      const { value: mean, words: who } = source(name) ?? {};
      return h(
        "span",
        { class: "tile" },
        h("span", { class: "quiet", dir: "auto", title: name }, name),
        " ",
        h("b", { class: "num" }, mean === undefined ? words : value(mean)),
        who && h("span", { class: "quiet who" }, ` ${who}`),
      );
    });
    this.metrics.replaceChildren(...tiles, bestTile(job) ?? "");
  }

  #link(url) {
    const isWeb = /^https?:\/\//.test(url ?? "");
    this.mlflow.hidden = !isWeb;
    if (isWeb) this.mlflow.href = url;
  }

  #failure(job) {
    const text = job.status === "failed" ? (job.traceback ?? "").replace(/^TRACEBACK:\s*/, "") : "";
    const message = job.status === "failed" ? job.error_message : null;
    const key = JSON.stringify([text, message]);
    if (key === this.failureKey) return;
    this.failureKey = key;
    this.failure.hidden = !text && !message;
    const trace =
      text &&
      h(
        "details",
        { open: true },
        h("summary", null, "Traceback"),
        h("pre", { tabindex: "0", class: "traceback" }, text),
      );
    this.failure.replaceChildren(
      message ? h("p", { class: "failure-message", dir: "auto" }, message) : "",
      trace || "",
    );
    const pre = this.failure.querySelector("pre");
    // The cause stands at the end of a traceback.
    if (pre) requestAnimationFrame(() => (pre.scrollTop = pre.scrollHeight));
  }
}

function bestTile(job) {
  const [name, best] = Object.entries(job.best_metrics ?? {})[0] ?? [];
  if (name === undefined) return null;
  const where = isGiven(job.best_epoch) ? ` in epoch ${job.best_epoch}` : "";
  return h(
    "span",
    { class: "tile" },
    h("span", { class: "quiet", dir: "auto" }, `best ${name}`),
    " ",
    h("b", { class: "num" }, value(best)),
    where && h("span", { class: "quiet" }, where),
  );
}
