// Actions of the buttons of charts and of the bar above them: pin, full screen, downloads, copying the link.

import { count, counted } from "../format.js";
import { downloadCsv, downloadPng, fileName } from "./export.js";

const MOST_IN_IMAGE = 100;

/** The actions of a `ChartPanel`; those for one chart take its title. */
export class ChartActions {
  constructor(panel) {
    this.panel = panel;
  }

  pin(title) {
    this.panel.togglePinned(title);
  }

  full(title) {
    const isFull = this.panel.settings.full === title;
    this.panel.showFull(isFull ? null : title);
    this.panel.grid.charts.get(title)?.full.focus();
  }

  png(title) {
    const chart = this.panel.grid.charts.get(title);
    if (chart?.plot) downloadPng(fileName(`job-${this.panel.jobId}`, title), [chart]);
  }

  /** Download all selected charts as one image, also those that are not in view. */
  async pngOfAll() {
    const { controls, grid, jobId, settings, shown } = this.panel;
    const titles = settings.isTogether ? [...grid.charts.keys()] : shown.slice(0, MOST_IN_IMAGE);
    try {
      controls.say("Drawing…", false);
      const charts = await this.panel.drawApart(titles);
      if (charts.length) await downloadPng(fileName(`job-${jobId}`), charts);
      for (const chart of charts) chart.close();
      const isPart = !settings.isTogether && titles.length < shown.length;
      controls.say(isPart ? `The image has the first ${counted(titles.length, "chart")} of ${count(shown.length)}.` : "", false);
    } catch (problem) {
      controls.say(problem.message);
    }
  }

  /** Download all points of one chart (`wanted` is its title), or of all selected metrics, as CSV. */
  async csv(wanted) {
    const { controls, data, grid, jobId, shown, settings } = this.panel;
    const isOne = typeof wanted === "string" && !(settings.isTogether && grid.charts.has(wanted));
    const names = isOne ? [wanted] : shown;
    const name = fileName(`job-${jobId}`, ...(isOne ? [wanted] : []));
    try {
      const isSampled = await downloadCsv(name, data.jobIds, names, (done, all) =>
        controls.say(`Reading metric ${done + 1} of ${all}…`, false),
      );
      controls.say(
        isSampled ? "Some series have more than 20,000 points: the file has the extremes of equal pieces." : "",
        false,
      );
    } catch (problem) {
      controls.say(problem.message);
    }
  }

  async copyLink() {
    const { address, controls } = this.panel;
    address.write();
    try {
      await navigator.clipboard.writeText(location.href);
      controls.say("Link copied.", false);
    } catch {
      controls.say("The browser does not allow this: copy the address of the page, it has the whole view.");
    }
  }
}
