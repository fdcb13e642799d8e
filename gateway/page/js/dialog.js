// Dialogs over the page.

import { h } from "./dom.js";

/**
 * Show a dialog with a heading and return it; closed, it is removed. `isLight`: a click beside it closes it, which is
 * for dialogs where nothing typed would be lost.
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

/** Close all dialogs: the view that they belong to is closed. */
export function closeDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
}
