// Runs before the first paint, so that a chosen theme does not flash.
try {
  const chosen = localStorage.getItem("trainwire.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // A browser that keeps nothing: the system's theme it is.
}
