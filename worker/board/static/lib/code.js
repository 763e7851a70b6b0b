// Code with its words coloured, as elements.
import { html } from "../vendor/preact.js";
import { lowlight } from "../vendor/lowlight.js";
import { shown } from "./text.js";

/** @typedef {import("../vendor/preact.js").Child} Child */
/** @typedef {import("../vendor/lowlight.js").Hast} Hast */

const LONGEST = 10_000; // characters; longer code is shown plain
const ALIASES = /** @type {Record<string, string>} */ ({
  py: "python", js: "javascript", mjs: "javascript", jsx: "javascript", ts: "typescript", tsx: "typescript",
  rs: "rust", golang: "go", sh: "bash", zsh: "bash", console: "shell", html: "xml", svg: "xml", yml: "yaml",
  md: "markdown", toml: "ini", h: "c", cc: "cpp", hpp: "cpp", jsonc: "json", patch: "diff",
});

/**
 * @param {string} text
 * @param {string} [language] as written behind the fence
 * @returns {Child}
 */
export function code(text, language = "") {
  const name = ALIASES[language.toLowerCase()] ?? language.toLowerCase();
  if (text.length > LONGEST || !lowlight.registered(name)) return shown(text);
  return (lowlight.highlight(name, text).children ?? []).map(element);
}

/**
 * @param {Hast} node
 * @returns {Child}
 */
function element(node) {
  if (node.type === "text") return shown(node.value ?? "");
  const names = (node.properties?.className ?? []).join(" ");
  return html`<span class=${names}>${(node.children ?? []).map(element)}</span>`;
}
