// The session: the form to sign in with a token, and signing out.

import { request, send } from "./api.js";
import { h, setText } from "./dom.js";

/** Return the form to sign in; `onIn` is called when the gateway has accepted the token. */
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

/** Request the session, `{auth, role, job_id, flower_url}`, from the gateway. */
export function whoAmI() {
  return request("/session");
}

/** Sign out: delete the session cookie. */
export function logOut() {
  return request("/session", { method: "DELETE" });
}
