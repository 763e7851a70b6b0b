// Markdown as elements: tokens become virtual nodes, never a string of HTML. HTML in it is text.
import MarkdownIt from "../vendor/markdown-it.js";
import { h, html } from "../vendor/preact.js";
import { code } from "./code.js";
import { inert, shown } from "./text.js";

/** @typedef {import("../vendor/preact.js").Child} Child */
/** @typedef {import("../vendor/markdown-it.js").Token} Token */

const LONGEST = 20_000; // characters; longer text is shown as it is
const parser = new MarkdownIt({ html: false, linkify: false, breaks: true, maxNesting: 40 });
const TAGS = new Set("p strong em s ul ol li blockquote table thead tbody tr th td hr br".split(" "));

/**
 * @param {string} text
 * @returns {Child}
 */
export function markdown(text) {
  if (text.length > LONGEST) return html`<div class="plain">${shown(text)}</div>`;
  return html`<div class="markdown">${nodes(parser.parse(text, {}))}</div>`;
}

/**
 * Only addresses of the web and of mail; the others stay text.
 * @param {string | null} address
 * @returns {string | null}
 */
export function safeAddress(address) {
  try {
    const url = new URL(address ?? "");
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/**
 * The tokens as a tree.
 * @param {Token[]} tokens
 * @returns {Child[]}
 */
function nodes(tokens) {
  /** @type {{token: Token | null, children: Child[]}[]} */
  const open = [{ token: null, children: [] }];
  for (const token of tokens) {
    if (token.nesting === 1) {
      open.push({ token, children: [] });
    } else if (token.nesting === -1 && open.length > 1) {
      const { token: start, children } = /** @type {any} */ (open.pop());
      open[open.length - 1].children.push(container(start, children));
    } else {
      open[open.length - 1].children.push(leaf(token));
    }
  }
  return open[0].children;
}

/**
 * @param {Token} token
 * @param {Child[]} children
 * @returns {Child}
 */
function container(token, children) {
  if (token.hidden) return children;
  if (token.type === "heading_open") return html`<p class="heading ${token.tag}">${children}</p>`;
  if (token.type === "table_open") return html`<div class="wide" tabindex="0" role="group" aria-label="table"><table>${children}</table></div>`;
  if (token.type === "link_open") {
    const address = token.attrGet("href");
    const safe = safeAddress(address);
    if (!safe) return html`${children}<span class="muted"> (${shown(address ?? "")})</span>`;
    return html`<a href=${safe} title=${inert(safe)} target="_blank" rel="noopener noreferrer nofollow">${children}</a>`;
  }
  if (token.type === "ordered_list_open") return html`<ol start=${token.attrGet("start") ?? "1"}>${children}</ol>`;
  return TAGS.has(token.tag) ? h(token.tag, null, ...children) : children;
}

/**
 * @param {Token} token
 * @returns {Child}
 */
function leaf(token) {
  switch (token.type) {
    case "inline":
      return nodes(token.children ?? []);
    case "text":
    case "text_special":
      return shown(token.content);
    case "softbreak":
    case "hardbreak":
      return html`<br />`;
    case "hr":
      return html`<hr />`;
    case "code_inline":
      return html`<code>${shown(token.content)}</code>`;
    case "fence":
    case "code_block":
      return html`<${Code} text=${token.content.replace(/\n$/, "")} language=${token.info.trim().split(/\s+/)[0]} />`;
    case "image":
      return html`<span class="image">image: ${shown(token.content || "unnamed")} (${shown(token.attrGet("src") ?? "")})</span>`;
    default:
      return shown(token.content);
  }
}

/**
 * A block of code, with the name of its language.
 * @param {{text: string, language?: string}} props
 */
export function Code({ text, language }) {
  return html`<pre class="code" tabindex="0" role="group" aria-label=${language ? `code, ${inert(language)}` : "code"}><code>${code(text, language)}</code></pre>`;
}
