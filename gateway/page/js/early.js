// Runs before the first paint, so that the page does not flash in the other theme; js/theme.js changes it later.
{
  let chosen = null;
  try {
    chosen = localStorage.getItem("trainwire.theme");
  } catch {
    // The browser does not allow it: the theme of the system is used.
  }
  const isDark = ["light", "dark"].includes(chosen)
    ? chosen === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
}
