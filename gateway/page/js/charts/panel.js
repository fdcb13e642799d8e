// The charts of a job: one for each metric, or one for all, of one run or of several that are compared.

import { get } from "../api.js";
import { h, remembered, setText, throttled } from "../dom.js";
import { count, counted, fromText } from "../format.js";
import { onTheme } from "../theme.js";
import { hasEnded } from "../words.js";
import { ChartActions } from "./actions.js";
import { chartColors } from "./colors.js";
import { ComparedJobs } from "./compared.js";
import { ChartControls } from "./controls.js";
import { suitableAxis } from "./curves.js";
import { ZoomDetail } from "./detail.js";
import { ChartGrid } from "./grid.js";
import { linesOf } from "./lines.js";
import { failureWords, MetricLoader, namesParameter } from "./loader.js";
import { NameReader } from "./names.js";
import { ranksOf, rankStyle, runsOf } from "./runs.js";
import { nameFilter, sectionsOf } from "./sections.js";
import { readSettings, writeSettings } from "./settings.js";
import { MetricStore } from "./store.js";

const POINTS = 1500;
const REDRAW_MS = 250;
const TOGETHER = "All selected metrics";
const MOST_TOGETHER = 20;
const MANY_RANKS = 8;
const [LARGE, FEW] = [2, 4];
const MOST_KEPT = 400;

/** The panel; `address` keeps its settings, `onPick(ms)` when a point is clicked. */
export class ChartPanel {
  constructor(jobId, { address, onPick }) {
    Object.assign(this, { jobId, address, job: null, themeRevision: 0, isLoaded: false });
    this.settings = readSettings(address);
    this.store = new MetricStore();
    this.update = throttled(() => this.#draw(), REDRAW_MS);
    this.loader = new MetricLoader((id, names, signal) => this.#read(id, names, signal), this.update);
    this.detail = new ZoomDetail(this.store, {
      axis: () => this.settings.axis,
      starts: (id) => this.#runs().filter((run) => run.jobId === id).map((run) => this.#startOf(run)),
      onChange: this.update,
    });
    this.actions = new ChartActions(this);
    this.controls = new ChartControls(this.settings, {
      onChange: () => this.#changed(),
      onCompare: (id) => id !== jobId && this.compared.add(id),
      onResetZoom: () => this.resetZoom(),
      onCsv: () => this.actions.csv(this.shown),
      onCopy: () => this.actions.copyLink(),
    });
    this.grid = new ChartGrid({
      onSeen: () => this.#draw(),
      onFold: (title) => this.#toggle("folded", title),
      onZoom: (zoom) => this.#zoomed(zoom),
      onPick,
      onAction: (name, title) => this.actions[name](title),
    });
    this.message = h("p", { class: "quiet padded", role: "status" }, "Loading…");
    this.hint = h("p", { class: "chart-hint quiet" }, "Click a point to see the log at that moment. Drag to zoom, double-click to reset.");
    this.root = h("section", { class: "charts", "aria-label": "Charts" }, this.controls.root, this.message, this.hint, this.grid.root);
    this.readers = new Map([[jobId, this.#reader(jobId)]]);
    const compared = (address.get("compare") ?? "").split(",").filter((id) => /^\d+$/.test(id) && id !== jobId);
    this.compared = new ComparedJobs([...new Set(compared)], {
      onBegin: (id, isResumed) => this.#begin(id, isResumed),
      onPoints: (id, points) => this.#add(id, points),
      onChange: () => this.#comparedChanged(),
      say: (words) => this.controls.say(words),
    });
    if (this.settings.zoom) this.grid.setZoom(this.settings.zoom);
    this.forgetTheme = onTheme(() => {
      this.themeRevision += 1;
      this.update();
    });
  }

  close() {
    this.isClosed = true;
    for (const part of [this.compared, this.detail, this.grid, ...this.readers.values()]) part.close();
    this.loader.reset();
    this.update.cancel();
    this.forgetTheme();
  }

  begin(snapshot, isFirst) {
    this.#begin(this.jobId, !isFirst && snapshot.type === "resumed");
  }

  take(event) {
    if (event.type === "training_progress" && event.points) this.#add(this.jobId, event.points);
  }

  setJob(job) {
    this.job = job;
  }

  opened() {
    this.update();
  }

  resetZoom() {
    this.grid.setZoom(null);
  }

  /** Go on to the next horizontal axis. */
  nextAxis() {
    const axes = this.controls.axes.map((button) => button.dataset.axis);
    this.controls.set({ axis: axes[(axes.indexOf(this.settings.axis) + 1) % axes.length], isAxisChosen: true });
  }

  toggleLog() {
    this.controls.set({ isLog: !this.settings.isLog });
  }

  toggleTogether() {
    this.controls.set({ isTogether: !this.settings.isTogether });
  }

  /** Add a name to one of the sets of the settings, or remove it. */
  #toggle(setting, name) {
    if (!this.settings[setting].delete(name)) this.settings[setting].add(name);
    this.#changed();
  }

  togglePinned(title) {
    this.#toggle("pinned", title);
  }

  /** Show one chart alone, null for all. */
  showFull(title) {
    this.settings.full = title;
    this.#changed();
  }

  get jobIds() {
    return [this.jobId, ...this.compared.ids];
  }

  #reader(id) {
    return new NameReader(id, {
      onNames: (names) => {
        this.store.addNames(id, names);
        this.update();
      },
      onEnd: () => {
        this.isLoaded = true;
        this.update();
      },
    });
  }

  /** A feed begins: read the names at first, and everything anew where it could not go on from what is here. */
  #begin(id, isResumed) {
    if (!this.readers.has(id)) this.readers.set(id, this.#reader(id));
    if (!isResumed) {
      this.store.outdate(id);
      this.detail.refresh();
      this.readers.get(id).read();
    }
    this.loader.retryNow();
    this.update();
  }

  #add(id, points) {
    this.store.add(id, points);
    this.update();
  }

  async #read(id, names, signal) {
    for (const name of names) this.store.expect(id, name);
    const attempt = id === this.jobId ? null : this.compared.job(id)?.attempt;
    const query = { names: namesParameter(names), points: POINTS, attempt };
    const page = await get(`/jobs/${id}/metrics`, query, signal);
    for (const name of names) {
      const series = page.series.filter((each) => each.name === name);
      this.store.replace(id, name, series, { lastSeq: page.last_seq, isThinned: page.downsampled });
    }
  }

  #zoomed(zoom) {
    this.settings.zoom = zoom;
    this.controls.zoomed.hidden = zoom === null;
    this.detail.show(zoom);
    writeSettings(this.address, this.settings);
    this.update();
  }

  #changed() {
    remembered.set("smoothing", String(this.settings.smoothing));
    if (this.lastAxis && this.lastAxis !== this.settings.axis) this.resetZoom();
    this.lastAxis = this.settings.axis;
    writeSettings(this.address, this.settings);
    this.#draw();
  }

  #comparedChanged() {
    const { ids } = this.compared;
    this.address.set("compare", ids.join(","));
    for (const [id, reader] of this.readers) {
      if (this.jobIds.includes(id)) continue;
      reader.close();
      this.readers.delete(id);
      this.store.forget(id);
    }
    this.update();
  }

  #draw() {
    if (this.isClosed) return;
    const names = [...new Set(this.jobIds.flatMap((id) => [...this.store.names(id)]))];
    this.#chooseAxis();
    const filter = nameFilter(this.settings.filter);
    const sections = sectionsOf(names.filter((name) => filter.matches(name)), this.settings.pinned);
    const fitting = sections.flatMap((section) => section.names);
    this.shown = fitting.filter((name) => !this.settings.hidden.has(name));
    this.#say(names);
    this.controls.setMetrics(fitting, names.length, filter.problem);
    this.controls.root.hidden = this.hint.hidden = names.length === 0;
    this.controls.mark();
    const runs = this.#runs();
    const view = this.#view(runs);
    this.#arrange(sections);
    const wanted = [];
    for (const title of this.grid.inView) {
      const members = this.settings.isTogether ? this.shown.slice(0, MOST_TOGETHER) : [title];
      wanted.push(...members.flatMap((name) => this.jobIds.map((jobId) => ({ jobId, name }))));
      this.#drawOne(title, members, view);
    }
    this.#request(wanted);
  }

  #arrange(sections) {
    const { hidden, folded, full, isTogether } = this.settings;
    const shown = sections
      .map(({ title, names }) => ({ title, names: names.filter((name) => !hidden.has(name)), isFolded: folded.has(title) }))
      .filter(({ names }) => names.length);
    const { classList } = this.grid.cells;
    classList.toggle("is-together", isTogether);
    classList.toggle("is-large", !isTogether && this.shown.length <= LARGE);
    classList.toggle("is-few", this.shown.length <= FEW);
    const overlay = this.shown.length ? [{ title: "", names: [TOGETHER], isFolded: false }] : [];
    this.grid.arrange(isTogether ? overlay : shown, full === TOGETHER || this.shown.includes(full) ? full : null);
  }

  // What is read comes in the order of the page; of metrics out of view a bounded number is kept.
  #request(wanted) {
    const needed = new Set(wanted.map(({ name }) => name));
    this.store.evict(MOST_KEPT, (name) => needed.has(name));
    this.loader.request(
      wanted.filter(({ jobId, name }) => this.store.names(jobId).has(name) && !this.store.isLoaded(jobId, name)),
    );
    this.detail.request(wanted);
  }

  #chooseAxis() {
    const points = this.jobIds.flatMap((id) => [...this.store.all(id)].map((entry) => entry.points));
    this.settings.axis ??= suitableAxis(points);
    this.lastAxis ??= this.settings.axis;
  }

  #say(names) {
    const problem = this.readers.get(this.jobId).problem;
    this.message.hidden = this.shown.length > 0;
    if (names.length) setText(this.message, "No matching metrics.");
    else if (problem) setText(this.message, failureWords(problem));
    else if (this.isLoaded && this.job)
      setText(
        this.message,
        hasEnded(this.job)
          ? "This job logged no metrics."
          : "No metrics logged yet. Call run.metric(loss=…) to see charts here.",
      );
  }

  #runs() {
    const { lines: palette } = chartColors();
    const documentOf = (id) => (id === this.jobId ? this.job : this.compared.job(id));
    return runsOf(this.store, { jobs: this.jobIds, documentOf, palette });
  }

  /** What is needed to draw lines; it also shows the switches of runs and ranks. */
  #view(all) {
    const { settings } = this;
    const { lines: palette } = chartColors();
    const ranks = ranksOf(all);
    if (!settings.isMeanChosen && ranks.length > MANY_RANKS) settings.isMean = true;
    const shown = all.map((run) => ({
      ...run,
      isShown: !settings.hiddenRuns.has(run.key),
      remove: run.isMain ? null : () => this.compared.remove(run.jobId),
    }));
    const styleOf = (rank) => (all.length > 1 || settings.isMean ? null : rankStyle(all[0], rank, { runs: all, ranks, palette }));
    this.controls.setRuns(shown, (key) => this.#toggle("hiddenRuns", key), ranks, {
      hidden: settings.hiddenRanks,
      styleOf,
      onToggle: (rank) => this.#toggle("hiddenRanks", String(rank)),
    });
    const runs = all.length > 1 ? shown.filter((run) => run.isShown) : all;
    const startOf = (run) => this.#startOf(run);
    const pointsOf = (entry) => this.detail.of(entry, settings.axis === "relative" ? startOf(entry) : 0);
    return { runs, ranks, palette, settings, startOf, pointsOf, isSeveral: all.length > 1 };
  }

  /** When an attempt began, in nanoseconds: what its relative time is counted from. */
  #startOf({ jobId, attempt }) {
    const document = jobId === this.jobId ? this.job : this.compared.job(jobId);
    const known = document?.attempts?.find((each) => each.attempt === attempt)?.started_at;
    return (fromText(known ?? document?.started_at) ?? 0) * 1e6;
  }

  #drawOne(title, members, view) {
    const lines = linesOf(this.store, members, view);
    const { axis, isLog, isOutlierFree, pinned, full } = this.settings;
    const options = { axis: axis ?? "step", isLog, isOutlierFree, note: this.#note(members, lines), themeRevision: this.themeRevision };
    this.grid.draw(title, lines, options, { isPinned: pinned.has(title), isFull: full === title });
  }

  #note(members, lines) {
    const problem = this.jobIds.flatMap((id) => members.map((name) => this.loader.problem(id, name))).find(Boolean);
    if (problem) return failureWords(problem);
    if (members.some((name) => this.jobIds.some((id) => this.store.names(id).has(name) && !this.store.isLoaded(id, name))))
      return lines.length ? "" : "Loading…";
    const odd = lines.reduce((sum, line) => sum + line.odd, 0);
    const notes = [
      this.settings.isTogether && this.shown.length > MOST_TOGETHER && `first ${MOST_TOGETHER} of ${count(this.shown.length)} metrics`,
      odd > 0 && counted(odd, "NaN or Inf value"),
      !lines.length && `no ${this.settings.axis} values`,
    ];
    return notes.filter(Boolean).join(" · ");
  }
}
