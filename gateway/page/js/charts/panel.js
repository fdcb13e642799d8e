// The charts of a job: one for each metric, or one for all; with the curves of one run or of several compared ones.

import { comparedIds } from "../comparison.js";
import { h, remembered, setText, throttled } from "../dom.js";
import { onTheme } from "../theme.js";
import { hasEnded } from "../words.js";
import { ChartActions } from "./actions.js";
import { Chart } from "./chart.js";
import { ChartControls } from "./controls.js";
import { suitableAxis } from "./curves.js";
import { ChartData } from "./data.js";
import { ChartGrid } from "./grid.js";
import { linesOf } from "./lines.js";
import { failureWords } from "./loader.js";
import { nameFilter, sectionsOf } from "./sections.js";
import { readSettings, writeSettings } from "./settings.js";
import { chartNote, drawnRuns, MOST_TOGETHER } from "./view.js";

const REDRAW_MS = 250;
const TOGETHER = "All selected metrics";
const MANY_RANKS = 8;
const [LARGE, FEW] = [2, 4];

/** The panel of charts. Its settings are stored in `address`; `onPick(ms)` is called when a point is clicked, if `hasLog()`. */
export class ChartPanel {
  constructor(jobId, { address, onPick, hasLog }) {
    Object.assign(this, { jobId, address, hasLog, themeRevision: 0, shown: [], apart: [] });
    this.settings = readSettings(address);
    this.update = throttled(() => this.#draw(), REDRAW_MS);
    this.actions = new ChartActions(this);
    this.controls = new ChartControls(this.settings, {
      onChange: () => this.#changed(),
      onCompare: (id) => id !== jobId && this.data.compared.add(id),
      onResetZoom: () => this.resetZoom(),
      onCsv: () => this.actions.csv(this.shown),
      onPng: () => this.actions.pngOfAll(),
      onCopy: () => this.actions.copyLink(),
    });
    this.data = new ChartData(jobId, {
      compared: comparedIds(address, jobId),
      axis: () => this.settings.axis,
      onChange: this.update,
      onCompared: (ids) => address.set("compare", ids.join(",")),
      say: (words) => this.controls.say(words),
    });
    this.grid = new ChartGrid({
      onSeen: () => this.#draw(),
      onFold: (title) => this.#toggle("folded", title),
      onZoom: (zoom) => this.#zoomed(zoom),
      onPick: (ms) => this.#picked(ms, onPick),
      onAction: (name, title) => this.actions[name](title),
    });
    this.message = h("p", { class: "quiet padded", role: "status" }, "Loading…");
    this.hint = h("p", { class: "chart-hint quiet" });
    this.root = h(
      "section",
      { class: "charts", "aria-label": "Charts" },
      this.controls.root,
      this.message,
      this.hint,
      this.grid.root,
    );
    if (this.settings.zoom) this.grid.setZoom(this.settings.zoom);
    this.forgetTheme = onTheme(() => {
      this.themeRevision += 1;
      this.update();
    });
  }

  close() {
    this.isClosed = true;
    this.data.close();
    this.grid.close();
    this.update.cancel();
    this.forgetTheme();
  }

  begin(snapshot, isFirst) {
    this.data.begin(this.jobId, !isFirst && snapshot.type === "resumed");
  }

  take(event) {
    if (event.type === "training_progress" && event.points) this.data.add(this.jobId, event.points);
  }

  setJob(job) {
    this.data.job = job;
    this.data.ancestors.follow(job);
    setText(this.hint, `${this.hasLog() ? "Click a point to see the log at that moment. " : ""}Drag to zoom.`);
  }

  opened() {
    this.update();
  }

  resetZoom() {
    this.grid.setZoom(null);
  }

  /** Switch to the next horizontal axis. */
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

  /** Add a name to one of the sets in the settings, or remove it if it is there. */
  #toggle(setting, name) {
    if (!this.settings[setting].delete(name)) this.settings[setting].add(name);
    this.#changed();
  }

  togglePinned(title) {
    this.#toggle("pinned", title);
  }

  /** Show one chart in full screen; null shows all charts. */
  showFull(title) {
    this.settings.full = title;
    this.#changed();
  }

  #zoomed(zoom) {
    this.settings.zoom = zoom;
    this.controls.zoomed.hidden = zoom === null;
    this.data.detail.show(zoom);
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

  // The hint is hidden once the user has clicked a point.
  #picked(ms, onPick) {
    if (!this.hasLog()) return;
    remembered.set("picked", "1");
    this.update();
    onPick(ms);
  }

  #draw() {
    if (this.isClosed) return;
    const { settings, data } = this;
    this.#chooseAxis();
    const { names, filter, sections } = this.#sections();
    const fitting = sections.flatMap((section) => section.names);
    this.shown = fitting.filter((name) => !settings.hidden.has(name));
    this.#say(names);
    this.controls.setMetrics(fitting, names.length, filter.problem);
    this.controls.root.hidden = names.length === 0;
    this.hint.hidden = names.length === 0 || remembered.get("picked") === "1";
    const view = this.#view();
    this.controls.mark();
    this.#arrange(sections);
    const wanted = [...this.apart];
    for (const title of this.grid.inView) {
      const members = this.#membersOf(title);
      wanted.push(...members);
      this.#drawOne(title, members, view);
    }
    data.request(wanted);
  }

  // Of 100,000 names sorting takes longer than the pause between two drawings: only where something has changed.
  #sections() {
    const { filter: expression, pinned } = this.settings;
    const { names } = this.data;
    const key = JSON.stringify([this.data.jobIds, names.length, expression, [...pinned]]);
    if (key !== this.sectionsKey) {
      const filter = nameFilter(expression);
      const sections = sectionsOf(names.filter(filter.matches), pinned);
      Object.assign(this, { sectionsKey: key, found: { names, filter, sections } });
    }
    return this.found;
  }

  #arrange(sections) {
    const { hidden, folded, full, isTogether } = this.settings;
    const shown = sections
      .map(({ title, names }) => ({
        title,
        names: names.filter((name) => !hidden.has(name)),
        isFolded: folded.has(title),
      }))
      .filter(({ names }) => names.length);
    const { classList } = this.grid.cells;
    classList.toggle("is-together", isTogether);
    classList.toggle("is-large", !isTogether && this.shown.length <= LARGE);
    classList.toggle("is-few", this.shown.length <= FEW);
    const overlay = this.shown.length ? [{ title: "", names: [TOGETHER], isFolded: false }] : [];
    this.grid.arrange(isTogether ? overlay : shown, full === TOGETHER || this.shown.includes(full) ? full : null);
  }

  #chooseAxis() {
    const { store, jobIds } = this.data;
    this.settings.axis ??= suitableAxis(jobIds.flatMap((id) => [...store.all(id)].map((entry) => entry.points)));
    this.lastAxis ??= this.settings.axis;
  }

  #say(names) {
    const { problem, isLoaded, job } = this.data;
    this.message.hidden = this.shown.length > 0;
    if (names.length) setText(this.message, "No matching metrics.");
    else if (problem) setText(this.message, failureWords(problem));
    else if (isLoaded && job)
      setText(
        this.message,
        hasEnded(job)
          ? "This job logged no metrics. A training that prints them: trainwire run --metrics-regex."
          : "No metrics logged yet. Call run.metric(loss=…) to see charts here.",
      );
  }

  /** Return the runs and ranks to draw (see view.js), and update their toggle buttons. */
  #view() {
    const { settings, data } = this;
    const view = drawnRuns(data, settings);
    if (!settings.isMeanChosen && view.ranks.length > MANY_RANKS) settings.isMean = true;
    const label = (run) => (data.compared.isLost(run.jobId) ? `${run.label} (reconnecting…)` : run.label);
    const remove = (run) => (run.isMain ? null : () => data.compared.remove(run.jobId));
    this.controls.setRuns(
      view.all.map((run) => ({ ...run, label: label(run), remove: remove(run) })),
      (key) => this.#toggle("hiddenRuns", key),
      view.ranks,
      {
        hidden: settings.hiddenRanks,
        styleOf: view.styleOf,
        onToggle: (rank) => this.#toggle("hiddenRanks", String(rank)),
      },
    );
    return view;
  }

  /**
   * Return charts with these titles outside of the page, once their points have been read; charts without points are
   * left out. The caller closes them.
   */
  async drawApart(titles) {
    this.apart = titles.flatMap((title) => this.#membersOf(title));
    const isReady = () =>
      this.isClosed || this.apart.every((name) => this.data.problemOf([name]) || !this.data.jobIds.some((id) => this.data.isMissing(id, name)));
    while (!isReady()) {
      this.update();
      await new Promise((resolve) => setTimeout(resolve, REDRAW_MS));
    }
    this.apart = [];
    const view = this.#view();
    const ignored = { onZoom() {}, onPick() {}, onAction() {} };
    const host = h("div", { class: "charts-apart", "aria-hidden": "true" });
    document.body.append(host);
    const charts = titles.map((title) => {
      const chart = new Chart(title, ignored);
      host.append(chart.root);
      const { lines, options } = this.#drawing(this.#membersOf(title), view);
      chart.draw(lines, { ...options, zoom: this.grid.zoom });
      return chart;
    });
    await new Promise((resolve) => setTimeout(resolve)); // uPlot draws after this task
    host.remove();
    return charts.filter((chart) => chart.plot);
  }

  #membersOf(title) {
    return this.settings.isTogether ? this.shown.slice(0, MOST_TOGETHER) : [title];
  }

  #drawOne(title, members, view) {
    const { lines, options } = this.#drawing(members, view);
    const { pinned, full } = this.settings;
    this.grid.draw(title, lines, options, { isPinned: pinned.has(title), isFull: full === title });
  }

  /** Return the lines and the options of the chart of these metrics. */
  #drawing(members, view) {
    const lines = linesOf(this.data.store, members, view);
    const { axis, isLog, isOutlierFree, isTogether, smoothing } = this.settings;
    const options = {
      axis: axis ?? "step",
      isLog,
      isOutlierFree,
      note: chartNote(this.data, members, lines, { axis, isTogether, total: this.shown.length, smoothing }),
      themeRevision: this.themeRevision,
    };
    return { lines, options };
  }
}
