// A job's page: its head, the charts, the log, and what else is known of it, all live.

import { get } from "../api.js";
import { ChartPanel } from "../charts/panel.js";
import { h, oncePerFrame, setText, throttled } from "../dom.js";
import { count } from "../format.js";
import { applyEvent, changesMore } from "../job_state.js";
import { bindKeys } from "../keys.js";
import { LogPanel } from "../log/panel.js";
import { Feed } from "../socket.js";
import { hasEnded, jobName } from "../words.js";
import { Checkpoints } from "./checkpoints.js";
import { Delivery, toneOf } from "./delivery.js";
import { Facts } from "./facts.js";
import { JobHeader } from "./header.js";
import { splitter } from "./splitter.js";
import { Tabs } from "./tabs.js";

const REFRESH_MS = 1000;
const TICK_MS = 1000;

/** Open the page of a job; returns how to close it. */
export function openJob(view, id, query) {
  const page = new JobPage(view, id, query);
  page.open();
  return () => page.close();
}

class JobPage {
  constructor({ content, crumbs, connection }, id, query) {
    Object.assign(this, { content, crumbs, connection, id });
    this.job = null;
    this.header = new JobHeader();
    this.log = new LogPanel(id);
    this.charts = new ChartPanel(id, {
      compared: (query.get("compare") ?? "").split(",").filter((other) => /^\d+$/.test(other) && other !== id),
      onPick: (ms) => this.#showTime(ms),
      onCompared: (ids) =>
        history.replaceState(null, "", `#/jobs/${id}${ids.length ? `?compare=${ids.join(",")}` : ""}`),
    });
    this.checkpoints = new Checkpoints(id);
    this.facts = new Facts();
    this.delivery = new Delivery(id, {
      isNeeded: () => this.#needsDelivery(),
      onState: (state) => this.#noteDelivery(state),
    });
    this.tabs = new Tabs(
      [
        { id: "charts", title: "Charts", panel: this.charts.root },
        { id: "log", title: "Log", panel: h("div", { class: "log-tab" }) },
        { id: "checkpoints", title: "Checkpoints", panel: this.checkpoints.root },
        { id: "facts", title: "Parameters", panel: this.facts.root },
        { id: "delivery", title: "Delivery", panel: this.delivery.root },
      ],
      (tab) => this.#opened(tab),
    );
    this.draw = oncePerFrame(() => this.#draw());
    this.refresh = throttled(() => this.#refresh(), REFRESH_MS);
  }

  open() {
    this.crumbs.replaceChildren(
      h("a", { href: "#/" }, "jobs"),
      h("span", { "aria-hidden": "true" }, "/"),
      h("span", { class: "num", "aria-current": "page" }, this.id),
    );
    this.waiting = h("p", { class: "quiet padded", role: "status" }, "Loading …");
    this.content.replaceChildren(this.waiting);
    this.feed = new Feed(`/jobs/${this.id}/ws`, {
      onEvent: (event) => this.#take(event),
      onState: (state) => this.#connected(state),
    });
    this.connection.onRetry = () => this.feed.wake();
    this.feed.open();
    this.timer = setInterval(this.draw, TICK_MS);
    this.unbind = bindKeys(this.#keys());
  }

  close() {
    this.isClosed = true;
    clearInterval(this.timer);
    this.refresh.cancel();
    this.unbind();
    for (const part of [this.feed, this.log, this.charts, this.checkpoints, this.delivery]) part.close();
  }

  #keys() {
    const names = ["charts", "checkpoints", "facts", "delivery"];
    const tabs = names.map((tab, index) => [
      String(index + 1),
      [`${tab === "facts" ? "parameters" : tab}`, () => this.tabs.open(tab)],
    ]);
    return {
      "/": ["search the log", () => this.#withLog(() => this.log.focusSearch())],
      f: ["follow the newest line, or stop", () => this.log.toggleFollow()],
      g: ["go to a line or a time", () => this.#withLog(() => this.log.focusGoTo())],
      x: ["charts: step, epoch, time", () => this.charts.nextAxis()],
      l: ["charts: logarithmic values", () => this.charts.toggleLog()],
      o: ["charts: one chart for all", () => this.charts.toggleTogether()],
      r: ["charts: end the zoom", () => this.charts.resetZoom()],
      Escape: ["close the line's details", () => this.log.closeDetail()],
      ...Object.fromEntries(tabs),
      5: ["log (on a narrow screen)", () => this.tabs.open("log")],
    };
  }

  #withLog(action) {
    if (this.log.root.offsetParent === null) this.tabs.open("log");
    action();
  }

  #showTime(ms) {
    this.#withLog(() => this.log.goToTime(ms));
  }

  #build() {
    const side = h("div", { class: "side" }, this.tabs.bar, this.tabs.panels);
    this.frame = h("div", { class: "job-frame" });
    this.frame.append(side, splitter(this.frame), this.log.root);
    this.content.replaceChildren(h("article", { class: "job-page" }, this.header.root, this.frame));
    this.tabs.open("charts");
    this.charts.load();
    this.checkpoints.reload();
    this.delivery.reload();
  }

  #connected(state) {
    this.connection.show(state);
    if (state.name === "unknown" && !this.job) this.#sayUnknown();
    if (state.name === "deleted") this.#sayDeleted();
    if (state.name === "refused") setText(this.waiting, "This token may not look at this job.");
    if (state.name === "waiting" && !this.job)
      setText(this.waiting, "The gateway does not answer. Trying again …");
  }

  #sayUnknown() {
    document.title = `job ${this.id} · trainwire`;
    this.content.replaceChildren(
      h(
        "div",
        { class: "empty" },
        h("h2", null, `Job ${this.id} has said nothing yet`),
        h("p", null, "This page opens by itself with its first message:"),
        h("pre", null, h("code", null, `trainwire run --job-id ${this.id} -- python train.py`)),
      ),
    );
  }

  #sayDeleted() {
    this.job = null;
    document.title = `job ${this.id} · trainwire`;
    this.content.replaceChildren(
      h(
        "div",
        { class: "empty", role: "status" },
        h("h2", null, `Job ${this.id} was deleted`),
        h("p", null, "Nothing more of it is stored, whatever its trainer still sends."),
      ),
    );
  }

  #take(event) {
    if (event.type === "snapshot" || event.type === "resumed") return this.#begin(event);
    if (!this.job || event.type === "training_deleted") return; // the connection ends, and comes back with the reason
    applyEvent(this.job, event);
    if (event.type === "training_log") this.#takeLines(event);
    else if (event.type === "training_progress" && event.points) this.charts.add(event.points);
    else if (event.type === "training_checkpoint") this.checkpoints.reload();
    if (changesMore(this.job, event)) this.refresh();
    this.draw();
  }

  #takeLines(event) {
    if (event.lines) this.log.add(event.lines);
    else if (event.last_seq) this.log.setTotal(event.last_seq);
  }

  #begin(event) {
    const isFirst = this.job === null;
    this.job = event.job;
    if (isFirst) this.#build();
    if (event.logs) this.log.add(event.logs);
    this.log.setTotal(this.job.rows.logs);
    // A second snapshot means that positions were of no use: what was drawn is read anew.
    if (!isFirst && event.type === "snapshot") this.charts.load();
    if (!isFirst) this.checkpoints.reload();
    this.draw();
  }

  async #refresh() {
    try {
      const job = await get(`/jobs/${this.id}`);
      if (this.isClosed) return;
      this.job = job;
      this.delivery.reload();
      this.draw();
    } catch {
      // The connection says it; the next snapshot brings the job.
    }
  }

  #draw() {
    if (!this.job || this.isClosed) return;
    const job = this.job;
    document.title = `${jobName(job)} · ${job.status} · trainwire`;
    this.header.update(job);
    this.facts.update(job);
    this.log.setAttempts(job.attempt);
    this.tabs.note("checkpoints", job.rows.checkpoints ? count(job.rows.checkpoints) : "");
    this.tabs.note("log", job.rows.logs ? count(job.rows.logs) : "");
  }

  #opened(tab) {
    this.frame?.setAttribute("data-tab", tab);
    if (tab === "delivery") this.delivery.reload();
    if (tab === "log") this.log.update();
  }

  // What has ended is looked at until its last message has come.
  #needsDelivery() {
    if (this.job === null || document.visibilityState !== "visible") return false;
    const isFinal = ["complete", "accounted"].includes(this.completeness);
    return this.tabs.current === "delivery" || (hasEnded(this.job) && !isFinal);
  }

  #noteDelivery(state) {
    this.completeness = state;
    this.tabs.note("delivery", state === "open" ? "" : state, `tone-${toneOf(state)}`);
  }
}
