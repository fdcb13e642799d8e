// The charts of a job: one for each metric, or one for all, of one run or of several that are compared.

import { get } from "../api.js";
import { h, remembered, setText, throttled } from "../dom.js";
import { counted } from "../format.js";
import { onTheme } from "../theme.js";
import { ordered } from "../words.js";
import { chartColors } from "./colors.js";
import { ChartControls } from "./controls.js";
import { curve, positive, smoothed, suitableAxis } from "./curves.js";
import { ZoomDetail } from "./detail.js";
import { ChartGrid } from "./grid.js";
import { runsOf } from "./runs.js";
import { MetricStore } from "./store.js";

const POINTS = 1500;
const REDRAW_MS = 250;
const RETRY_MS = 3000;
const UNREADABLE = "The points cannot be read: the gateway does not answer. Trying again …";
const TOGETHER = "all chosen metrics";
const FEW = 4;
const DASHES = [undefined, [6, 4], [2, 3], [8, 3, 2, 3]];

/** The panel; `onPick(ms)` when a point is clicked, `onCompared(ids)` when other jobs come or go. */
export class ChartPanel {
  constructor(jobId, { compared, onPick, onCompared }) {
    Object.assign(this, { jobId, onCompared });
    this.compared = new Map(compared.map((id) => [id, null]));
    this.settings = {
      axis: null,
      isLog: false,
      isTogether: false,
      smoothing: Number(remembered.get("smoothing") ?? 0),
      hidden: new Set(),
    };
    this.store = new MetricStore();
    this.hiddenRuns = new Set();
    this.themeRevision = 0;
    this.controls = new ChartControls(this.settings, {
      onChange: () => this.#changed(),
      onCompare: (id) => this.#compare(id),
      onResetZoom: () => this.resetZoom(),
    });
    this.grid = new ChartGrid({
      onSeen: () => this.#draw(),
      onZoom: (zoom) => this.#zoomed(zoom),
      onPick,
    });
    this.detail = new ZoomDetail(this.store, {
      jobIds: () => [this.jobId, ...this.compared.keys()],
      axis: () => this.settings.axis,
      onChange: () => this.update(),
    });
    this.said = h("p", { class: "quiet padded", role: "status" }, "Loading …");
    this.root = h(
      "section",
      { class: "charts", "aria-label": "Charts" },
      this.controls.root,
      this.said,
      this.grid.root,
    );
    this.update = throttled(() => this.#draw(), REDRAW_MS);
    this.forgetTheme = onTheme(() => {
      this.themeRevision += 1;
      this.update();
    });
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.retry);
    this.update.cancel();
    this.forgetTheme();
    this.detail.close();
    this.grid.close();
  }

  /** Read all points from the gateway; live ones that come meanwhile are not lost: `lastSeq` tells. */
  async load() {
    if (this.isLoading) return;
    this.isLoading = true;
    this.waiting = [];
    try {
      const found = await get(`/jobs/${this.jobId}/metrics`, { points: POINTS });
      this.store.replace(this.jobId, found.series, { lastSeq: found.last_seq, isThinned: found.downsampled });
      this.detail.refresh();
      this.problem = null;
    } catch (problem) {
      this.problem = problem;
      if (!this.isClosed) this.retry = setTimeout(() => this.load(), RETRY_MS);
    }
    this.isLoading = false;
    this.isLoaded ||= !this.problem;
    this.store.add(this.jobId, this.waiting);
    for (const id of this.compared.keys()) if (!this.compared.get(id)) this.#loadOther(id);
    this.update();
  }

  /** Read everything at first, and where the feed could not go on from what is drawn. */
  begin(snapshot, isFirst) {
    if (isFirst || snapshot.type === "snapshot") this.load();
  }

  take(event) {
    if (event.type === "training_progress" && event.points) this.add(event.points);
  }

  /** Take live points. */
  add(points) {
    if (this.isLoading) this.waiting.push(...points);
    else this.store.add(this.jobId, points);
    if (this.store.isCrowded) this.load();
    this.update();
  }

  resetZoom() {
    this.grid.setZoom(null);
  }

  /** Go on to the next horizontal axis. */
  nextAxis() {
    const axes = this.controls.axes.map((button) => button.dataset.axis);
    this.controls.set({ axis: axes[(axes.indexOf(this.settings.axis) + 1) % axes.length] });
  }

  toggleLog() {
    this.controls.set({ isLog: !this.settings.isLog });
  }

  toggleTogether() {
    this.controls.set({ isTogether: !this.settings.isTogether });
  }

  #zoomed(zoom) {
    this.controls.zoomed.hidden = zoom === null;
    this.detail.show(zoom);
    this.update();
  }

  #changed() {
    remembered.set("smoothing", String(this.settings.smoothing));
    if (this.lastAxis !== this.settings.axis) this.resetZoom();
    this.lastAxis = this.settings.axis;
    this.#draw();
  }

  #compare(id) {
    if (id === this.jobId || this.compared.has(id)) return;
    this.compared.set(id, null);
    this.onCompared([...this.compared.keys()]);
    this.#loadOther(id);
  }

  async #loadOther(id) {
    try {
      const found = await get("/jobs/compare", { ids: id });
      if (!this.compared.has(id)) return;
      this.compared.set(id, found.jobs[0]);
      this.store.replace(id, found.series);
      this.detail.refresh();
      this.controls.say("");
    } catch (problem) {
      this.controls.say(problem.message);
      if (problem.status !== 0) this.#forget(id);
    }
    this.update();
  }

  #forget(id) {
    this.compared.delete(id);
    this.store.forget(id);
    this.onCompared([...this.compared.keys()]);
    this.update();
  }

  #draw() {
    if (this.isClosed) return;
    const names = [...this.store.names];
    this.#say(names);
    this.settings.axis ??= this.#chooseAxis();
    this.lastAxis ??= this.settings.axis;
    this.controls.mark();
    this.controls.setMetrics(names);
    this.controls.root.hidden = names.length === 0;
    const runs = this.#runs();
    this.controls.setRuns(runs, (key) => this.#toggleRun(key));
    const shown = ordered(names.filter((name) => !this.settings.hidden.has(name)));
    const groups = this.settings.isTogether ? [[TOGETHER, shown]] : shown.map((name) => [name, [name]]);
    this.grid.root.classList.toggle("is-together", this.settings.isTogether);
    this.grid.root.classList.toggle("is-few", groups.length <= FEW);
    this.grid.arrange(groups.filter(([, members]) => members.length).map(([title]) => title));
    for (const [title, members] of groups) if (this.grid.isVisible(title)) this.#drawOne(title, members, runs);
  }

  #toggleRun(key) {
    if (!this.hiddenRuns.delete(key)) this.hiddenRuns.add(key);
    this.#draw();
  }

  #chooseAxis() {
    return this.store.series.size
      ? suitableAxis([...this.store.series.values()].map((entry) => entry.points))
      : null;
  }

  #say(names) {
    this.said.hidden = names.length > 0 && !this.problem;
    if (this.problem) setText(this.said, this.problem.status === 0 ? UNREADABLE : this.problem.message);
    else if (this.isLoaded) setText(this.said, "No metrics yet. What run.metric(…) says is drawn here.");
  }

  #runs() {
    const { lines: palette } = chartColors();
    return runsOf(this.store, { jobId: this.jobId, compared: this.compared, palette }).map((run) => ({
      ...run,
      isShown: !this.hiddenRuns.has(run.key),
      remove: run.isMain ? null : () => this.#forget(run.jobId),
    }));
  }

  #drawOne(title, members, runs) {
    const { lines: palette } = chartColors();
    const isMixed = members.length > 1;
    const lines = members.flatMap((name, nth) =>
      runs.flatMap((run, index) => {
        const style = isMixed
          ? { color: palette[nth % palette.length], dash: DASHES[index % DASHES.length] }
          : { color: run.color };
        const entries = run.isShown ? this.store.of(name, run) : [];
        return entries.map((entry) =>
          this.#line(entry, { ...style, isMain: run.isMain, words: [isMixed && name, run.label] }),
        );
      }),
    );
    const drawn = lines.filter((line) => line.x.length);
    const odd = drawn.reduce((sum, line) => sum + line.odd, 0);
    const note = odd ? `${counted(odd, "value")} not finite` : drawn.length ? "" : `no ${this.settings.axis} said`;
    const { axis, isLog } = this.settings;
    this.grid.draw(title, drawn, { axis, isLog, note, themeRevision: this.themeRevision });
  }

  #line(entry, { words, ...style }) {
    const found = curve(this.detail.of(entry), this.settings.axis ?? "step");
    const label = [...words, entry.rank !== null && `rank ${entry.rank}`].filter(Boolean).join(" · ");
    return { ...found, ...this.#shape(found.y), ...style, label };
  }

  #shape(given) {
    const y = this.settings.isLog ? positive(given) : given;
    return { y, strong: this.settings.smoothing > 0 ? smoothed(y, this.settings.smoothing) : null };
  }
}
