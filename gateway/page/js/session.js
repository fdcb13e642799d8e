// Who may come in: the form that takes a token, and the way out.

import { request, send } from "./api.js";
import { h, setText } from "./dom.js";

/** The form; `onIn` is called when the gateway has taken the token. */
export function loginView(onIn) {
  const token = h("input", {
    type: "password",
    id: "token",
    name: "token",
    autocomplete: "current-password",
    required: true,
    spellcheck: "false",
  });
  const said = h("p", { class: "problem", role: "alert" });
  const button = h("button", { type: "submit", class: "primary" }, "Sign in");
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    setText(said, "");
    try {
      await send("POST", "/session", { token: token.value.trim() });
      onIn();
    } catch (problem) {
      setText(
        said,
        [401, 422].includes(problem.status)
          ? "Invalid, expired or revoked token."
          : problem.message,
      );
      token.select();
    }
    button.disabled = false;
  };
  const form = h(
    "form",
    { class: "login", on: { submit } },
    h("h1", null, "Sign in"),
    h("label", { for: "token" }, "Token"),
    h("div", { class: "login-row" }, token, button),
    said,
    h("p", { class: "quiet" }, "Create a token where the stack runs:"),
    h("pre", { class: "quiet" }, "trainwire token create --name me"),
  );
  requestAnimationFrame(() => token.focus());
  return form;
}

/** Ask who we are: `{auth, role, job_id}`. */
export function whoAmI() {
  return request("/session");
}

/** Leave. */
export function logOut() {
  return request("/session", { method: "DELETE" });
}
