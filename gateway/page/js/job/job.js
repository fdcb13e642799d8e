// The page of one job: header, charts, log and other panels, updated by live events.

import { AddressState } from "../address_state.js";
import { get } from "../api.js";
import { h, oncePerFrame, setText, throttled } from "../dom.js";
import { count } from "../format.js";
import { applyEvent, changesMore } from "../job_state.js";
import { bindKeys } from "../keys.js";
import { Feed } from "../socket.js";
import { hasEnded, jobName } from "../words.js";
import { toneOf } from "./delivery.js";
import { JobHeader } from "./header.js";
import { PANELS } from "./panels.js";
import { splitter } from "./splitter.js";
import { Tabs } from "./tabs.js";

const REFRESH_MS = 1000;
const TICK_MS = 1000;
const NARROW = matchMedia("(max-width: 720px)"); // as in css/job.css

/** Return whether a job has log lines and no metrics; the log then has the whole width. */
function hasOnlyLogs(job) {
  return job.rows.logs > 0 && job.rows.metrics === 0;
}

/** Return whether a job has ended without log lines; the other panels then have the whole width. */
function hasNoOutput(job) {
  return hasEnded(job) && job.rows.logs === 0;
}

/** Open the page of job `id`; return a function that closes it. */
export function openJob(view, id, query) {
  const page = new JobPage(view, id, query);
  page.open();
  return () => page.close();
}

class JobPage {
  constructor({ content, crumbs, connection, mayEdit }, id, query) {
    Object.assign(this, { content, crumbs, connection, id });
    this.job = null;
    this.header = new JobHeader({ mayEdit, onStop: () => this.#refresh() });
    this.address = new AddressState(`#/jobs/${id}`, query);
    this.panels = Object.fromEntries(PANELS.map((entry) => [entry.id, entry.make(this)]));
    // The log stands beside the tabs; it has one for narrow screens.
    const rootOf = (tab) => (tab === "log" ? h("div", { class: "log-tab" }) : this.panels[tab].root);
    this.tabs = new Tabs(
      PANELS.map((entry) => ({ id: entry.id, title: entry.title, panel: rootOf(entry.id) })),
      (tab) => this.#opened(tab),
    );
    this.leaveLogTab = () => this.tabs.current === "log" && this.tabs.open("log");
    this.draw = oncePerFrame(() => this.#draw());
    this.refresh = throttled(() => this.#refresh(), REFRESH_MS);
  }

  open() {
    this.crumbs.replaceChildren(
      h("a", { href: "#/" }, "Jobs"),
      h("span", { "aria-hidden": "true" }, "/"),
      h("span", { class: "num job-number", "aria-current": "page", title: this.id }, this.id),
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
    NARROW.addEventListener("change", this.leaveLogTab);
  }

  close() {
    this.isClosed = true;
    clearInterval(this.timer);
    this.refresh.cancel();
    this.unbind();
    NARROW.removeEventListener("change", this.leaveLogTab);
    this.address.close();
    this.feed.close();
    this.#each((panel) => panel.close?.());
  }

  #each(action) {
    Object.values(this.panels).forEach(action);
  }

  #keys() {
    const { charts, log } = this.panels;
    const tabs = PANELS.map(({ id, title, key }) => [key, [title, () => this.tabs.open(id)]]);
    return {
      "/": ["Search the log", () => this.#withLog(() => log.focusSearch())],
      f: ["Follow the newest line, or stop", () => log.toggleFollow()],
      g: ["Go to line or time", () => this.#withLog(() => log.focusGoTo())],
      x: ["Charts: step, epoch, time, relative time", () => charts.nextAxis()],
      l: ["Charts: log scale", () => charts.toggleLog()],
      o: ["Charts: overlay", () => charts.toggleTogether()],
      r: ["Charts: reset zoom", () => charts.resetZoom()],
      Escape: [
        "Close the line's details, or a chart on the full screen",
        () => log.closeDetail() || charts.showFull(null),
      ],
      ...Object.fromEntries(tabs),
      6: ["Log", () => this.#withLog(() => log.focusLines())],
    };
  }

  #withLog(action) {
    if (this.panels.log.root.offsetParent === null) this.tabs.open("log");
    action();
  }

  /** Return whether the job has lines, or may still get some. */
  hasLog() {
    return this.job === null || !hasNoOutput(this.job);
  }

  /** Show the log at a time in milliseconds since 1970. */
  showTime(ms) {
    this.#withLog(() => this.panels.log.goToTime(ms));
  }

  #build() {
    const side = h("div", { class: "side" }, this.tabs.bar, this.tabs.panels);
    this.frame = h("div", { class: "job-frame" });
    this.frame.append(side, splitter(this.frame), this.panels.log.root);
    this.content.replaceChildren(h("article", { class: "job-page" }, this.header.root, this.frame));
    const given = this.address.get("tab");
    this.isLogOnly = hasOnlyLogs(this.job);
    this.#setWidth();
    this.tabs.open(this.panels[given] ? given : this.isLogOnly ? "log" : PANELS[0].id);
  }

  #connected(state) {
    this.connection.show(state);
    if (state.name === "unknown" && !this.job) this.#sayUnknown();
    if (state.name === "deleted") this.#sayDeleted();
    if (state.name === "refused") setText(this.waiting, "This token may not read this job.");
    if (state.name === "waiting") setText(this.waiting, "Can't reach the trainwire server. Retrying…");
    if (state.name === "stale") setText(this.waiting, `This page opens as soon as possible: ${state.problem}.`);
  }

  #sayUnknown() {
    document.title = `job ${this.id} · trainwire`;
    this.content.replaceChildren(
      h(
        "div",
        { class: "empty" },
        h("h1", null, `No job ${this.id} yet.`),
        h("p", null, "This page updates as soon as it starts."),
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
        h("h1", null, `Job ${this.id} was deleted`),
        h("p", null, "Its data is no longer stored; messages that its trainer still sends are discarded."),
      ),
    );
  }

  #take(event) {
    if (event.type === "snapshot" || event.type === "resumed") return this.#begin(event);
    if (!this.job || event.type === "training_deleted") return; // the connection ends, and comes back with the reason
    applyEvent(this.job, event);
    this.#each((panel) => panel.take?.(event));
    if (changesMore(this.job, event)) this.refresh();
    this.#arrange();
    this.draw();
  }

  #begin(event) {
    const isFirst = this.job === null;
    this.job = event.job;
    if (isFirst) this.#build();
    else this.#arrange();
    this.#each((panel) => panel.begin?.(event, isFirst));
    this.draw();
  }

  /** Show the charts beside the log as soon as there are metrics and lines, or the job runs again. */
  #arrange() {
    const hadOnePane = this.hasOnePane;
    this.isLogOnly &&= hasOnlyLogs(this.job);
    this.#setWidth();
    if (hadOnePane && !this.hasOnePane) this.leaveLogTab();
  }

  #setWidth() {
    this.hasOnePane = this.isLogOnly || hasNoOutput(this.job);
    this.frame.classList.toggle("has-one-pane", this.hasOnePane);
  }

  async #refresh() {
    try {
      const job = await get(`/jobs/${this.id}`);
      if (this.isClosed) return;
      this.job = job;
      this.#arrange();
      this.panels.delivery.reload();
      this.draw();
    } catch {
      // The connection indicator shows the error; the next snapshot has the job.
    }
  }

  #draw() {
    if (!this.job || this.isClosed) return;
    const job = this.job;
    document.title = `${jobName(job)} · ${job.status} · trainwire`;
    this.header.update(job);
    this.#each((panel) => panel.setJob?.(job));
    for (const { id, note } of PANELS) if (note) this.tabs.note(id, note(job) ? count(note(job)) : "");
  }

  #opened(tab) {
    // The log has no tab where it stands beside the others.
    if (tab === "log" && !this.hasOnePane && !NARROW.matches) return this.tabs.open(PANELS[0].id);
    this.frame?.setAttribute("data-tab", tab);
    const usual = this.isLogOnly ? "log" : PANELS[0].id;
    if (this.frame) this.address.set("tab", tab === usual ? null : tab);
    this.panels[tab].opened?.();
  }

  /**
   * Return whether the delivery panel should reload: while it is shown, and after the end of the attempt until the sum
   * is final.
   */
  needsDelivery() {
    if (this.job === null || document.visibilityState !== "visible") return false;
    const isFinal = ["complete", "accounted"].includes(this.completeness);
    return this.tabs.current === "delivery" || (hasEnded(this.job) && !isFinal);
  }

  noteDelivery(state) {
    this.completeness = state;
    this.tabs.note("delivery", state === "open" ? "" : state, `tone-${toneOf(state)}`);
  }
}
