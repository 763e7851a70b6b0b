// One message of a conversation.
import { Component, html, useState } from "../vendor/preact.js";
import { ApiError } from "./api.js";
import { bytes, count, iso, moment } from "./format.js";
import { asText, hasCut, pretty } from "./json.js";
import { Code, markdown } from "./markdown.js";
import { brief, oneLine, parts, rest, role } from "./parts.js";
import { inert, shown } from "./text.js";

/** @typedef {import("../vendor/preact.js").Child} Child */
/** @typedef {import("./parts.js").Part} Part */
/** @typedef {import("./api.js").Message} Entry */

const STEP = 256 * 1024; // characters of a long text that are shown at a time
const SPOKEN = new Set(["user", "assistant"]); // whose text is markdown

/**
 * @param {{entry: Entry, whole?: (n: number) => Promise<void>, chosen?: boolean,
 *   note?: string, anchored?: boolean}} props `whole` gets the parts that were cut
 */
export function Message({ entry, whole, chosen = false, note, anchored = true }) {
  const { n, time, message } = entry;
  const who = said(message);
  const tone = SPOKEN.has(who) || who === "tool" ? who : "other";
  return html`<article class="message ${tone} ${chosen ? "chosen" : ""}" id=${anchored ? `m${n}` : null} tabindex="-1" data-item
      aria-label=${`message ${n}, ${inert(who.slice(0, 80))}`}>
    <header>
      <span class="who" title=${inert(oneLine(who))}>${shown(oneLine(who))}</span>
      ${note && html`<span class=${`note ${note}`}>${note}</span>`}
      ${typeof time === "number" && html`<time datetime=${iso(time)}>${moment(time)}</time>`}
      <a class="number" href=${`#m${n}`} aria-label=${`link to message ${n}`}>${count(n)}</a>
    </header>
    <${Boundary} value=${message}>
      <${Body} message=${message} spoken=${SPOKEN.has(who)} />
      ${whole && (hasCut(message) || typeof message.cut === "number") && html`<${Whole} n=${n} whole=${whole} />`}
    <//>
  </article>`;
}

/**
 * Who speaks: results of tools come in messages of the user, who did not write them.
 * @param {Record<string, any>} message
 */
function said(message) {
  const who = role(message);
  try {
    const found = parts(message);
    return who === "user" && found.length && found.every(({ kind }) => kind === "result") ? "tool" : who;
  } catch {
    return who;
  }
}

/** @param {{message: Record<string, any>, spoken: boolean}} props */
function Body({ message, spoken }) {
  const found = parts(message);
  const left = rest(message);
  return html`<div class="body">
    ${found.map((part) => html`<${OnePart} part=${part} spoken=${spoken} />`)}
    ${!found.length && !left && html`<p class="muted">says nothing</p>`}
    ${left && html`<${Fold} name="other fields" line=${Object.keys(left).join(", ")} open=${!found.length}
      body=${() => html`<${Code} text=${pretty(left)} language="json" />`} />`}
  </div>`;
}

/** @param {{part: Part, spoken: boolean}} props */
function OnePart({ part, spoken }) {
  switch (part.kind) {
    case "text":
      return html`<${Long} text=${part.text} markup=${spoken} />`;
    case "thinking":
      return html`<${Fold} name="thinking" line=${oneLine(part.text.text)} body=${() => html`<${Long} text=${part.text} markup />`} />`;
    case "call":
      return html`<${Fold} name=${part.name} line=${brief(part.input)} tool
        body=${() => given(part.input)} />`;
    case "result":
      return html`<${Fold} name=${part.error ? "error" : "result"} line=${first(part.parts)} failed=${part.error}
        body=${() => part.parts.map((one) => html`<${OnePart} part=${one} spoken=${false} />`)} />`;
    case "file":
      return html`<p class="image">${shown(part.of)}: ${shown(part.name)}</p>`;
    default:
      return html`<${Code} text=${pretty(part.value)} language="json" />`;
  }
}

/**
 * What a tool was given: text as it is, such as a patch, or JSON.
 * @param {unknown} input
 */
function given(input) {
  const text = asText(input);
  return text ? html`<${Long} text=${text} markup=${false} />` : html`<${Code} text=${pretty(input)} language="json" />`;
}

/** @param {Part[]} inner */
function first(inner) {
  const text = inner.find((one) => one.kind === "text");
  if (text?.kind === "text") return oneLine(text.text.text) || "empty";
  return inner.length ? inner[0].kind : "empty";
}

/**
 * What is folded until somebody opens it; its contents are made then.
 * @param {{name: string, line: string, body: () => Child, tool?: boolean, failed?: boolean,
 *   open?: boolean}} props
 */
export function Fold({ name, line, body, tool = false, failed = false, open = false }) {
  const [opened, setOpened] = useState(open);
  /** @param {any} event */
  const toggled = (event) => setOpened(event.currentTarget.open);
  return html`<details class=${`fold ${tool ? "tool" : ""} ${failed ? "failed" : ""}`} open=${opened} onToggle=${toggled}>
    <summary><b>${shown(oneLine(name))}</b> <span>${shown(line)}</span></summary>
    ${opened && html`<div class="within">${body()}</div>`}
  </details>`;
}

/**
 * Text; of a long one only the beginning, until somebody asks for more.
 * @param {{text: import("./parts.js").Text, markup: boolean}} props
 */
function Long({ text, markup }) {
  const [most, setMost] = useState(STEP);
  const said = text.text;
  const part = said.length > most ? said.slice(0, most) : said;
  return html`${markup ? markdown(part) : html`<div class="plain">${shown(part)}</div>`}
    ${said.length > most && html`<p class="cut">${count(most)} of ${count(said.length)} characters are shown.${" "}
      <button type="button" onClick=${() => setMost(most + STEP)}>Show more</button></p>`}
    ${text.cut !== null && html`<p class="cut">Cut: the first ${bytes(new TextEncoder().encode(said).length)} of ${bytes(text.cut)} are shown.</p>`}`;
}

/** @param {{n: number, whole: (n: number) => Promise<void>}} props */
function Whole({ n, whole }) {
  const [state, setState] = useState("");
  const ask = async () => {
    setState("Loading…");
    try {
      await whole(n);
    } catch (error) {
      setState(error instanceof ApiError ? error.message : String(error));
    }
  };
  return html`<p class="cut"><button type="button" onClick=${ask} disabled=${state === "Loading…"}>Show all</button> ${state}</p>`;
}

/**
 * Where drawing fails, the message stands as JSON.
 * @extends {Component<{value: unknown}, {failed: boolean}>}
 */
class Boundary extends Component {
  /** @param {{value: unknown}} props */
  constructor(props) {
    super(props);
    this.state = { failed: false };
  }

  static getDerivedStateFromError() {
    return { failed: true };
  }

  /** @param {any} props */
  render({ value, children }) {
    if (!this.state.failed) return children;
    let text;
    try {
      text = pretty(value).slice(0, STEP);
    } catch {
      text = "This message cannot be shown.";
    }
    return html`<div class="body"><p class="cut">This message could not be drawn; here it is as JSON.</p><div class="plain">${shown(text)}</div></div>`;
  }
}
