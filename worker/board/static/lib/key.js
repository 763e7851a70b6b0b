// The key of this page's origin, port included: a cookie alone is shown to every port of a machine.
const NAME = "projector-key";

const given = new URLSearchParams(globalThis.location?.hash.slice(1)).get("key");
if (given) {
  localStorage.setItem(NAME, given);
  history.replaceState(null, "", location.pathname + location.search);
}

export const key = () => localStorage.getItem(NAME) ?? "";
