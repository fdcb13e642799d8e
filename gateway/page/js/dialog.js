// Dialogs over the page.

import { h } from "./dom.js";

/**
 * Show a modal dialog with a heading, and return its element, which is removed when it is closed. With `isLight` a
 * click beside the dialog closes it: for dialogs without input that could be lost.
 */
export function showDialog({ name, title, content, isLight }) {
  const id = `${name}-title`;
  const dialog = h(
    "dialog",
    {
      class: name,
      "aria-labelledby": id,
      on: {
        click: (event) => isLight && event.target === dialog && dialog.close(),
        close: () => dialog.remove(),
      },
    },
    h("h2", { id, dir: "auto" }, title),
    content,
  );
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Close all dialogs, because the view that opened them is closed. */
export function closeDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
}
