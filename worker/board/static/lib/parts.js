// What a message says, whichever program wrote it: text, thinking, calls of tools, their results.
import { asText, pretty } from "./json.js";

/** @typedef {{text: string, cut: number | null}} Text */
/** @typedef {{kind: "text", text: Text} | {kind: "thinking", text: Text}
 *   | {kind: "call", name: string, input: unknown} | {kind: "result", error: boolean, parts: Part[]}
 *   | {kind: "image", name: string} | {kind: "json", value: unknown}} Part */

const CONTENT = ["content", "parts", "text"]; // where a message has what it says
const SHOWN = new Set(["role", "cut", "type", ...CONTENT, "tool_calls", "name", "arguments", "output", "call_id", "tool_call_id", "id"]);
const DEEPEST = 8; // results within results

/**
 * Who said it.
 * @param {Record<string, any>} message
 */
export function role(message) {
  const said = asText(message.role ?? message.type)?.text ?? "";
  return said || "no role";
}

/**
 * @param {Record<string, any>} message
 * @returns {Part[]}
 */
export function parts(message) {
  const whole = asText({ cut: message.cut, text: message.text });
  if (whole) return [{ kind: "text", text: whole }]; // too long in many parts: its beginning as JSON
  /** @type {Part[]} */
  const found = [];
  if (["function_call", "tool_call", "tool_use"].includes(message.type)) {
    found.push(call(message));
  } else if (["function_call_output", "tool_result"].includes(message.type) || message.role === "tool") {
    const said = message.output ?? message.content ?? message.text;
    found.push({ kind: "result", error: message.is_error === true, parts: content(said, 0) });
  } else {
    for (const name of CONTENT)
      if (message[name] !== undefined && message[name] !== null) found.push(...content(message[name], 0));
  }
  if (Array.isArray(message.tool_calls)) found.push(...message.tool_calls.map(call));
  return found;
}

/**
 * The fields that `parts` does not show.
 * @param {Record<string, any>} message
 * @returns {Record<string, any> | null}
 */
export function rest(message) {
  const left = Object.entries(message).filter(([name, value]) => !SHOWN.has(name) && value !== null);
  return left.length ? Object.fromEntries(left) : null;
}

/**
 * @param {unknown} value
 * @param {number} depth
 * @returns {Part[]}
 */
function content(value, depth) {
  const text = asText(value);
  if (text) return text.text || text.cut ? [{ kind: "text", text }] : [];
  if (value === null || value === undefined) return [];
  if (Array.isArray(value)) return value.flatMap((one) => part(one, depth));
  return part(value, depth);
}

/**
 * @param {any} one
 * @param {number} depth
 * @returns {Part[]}
 */
function part(one, depth) {
  const plain = asText(one);
  if (plain) return [{ kind: "text", text: plain }];
  if (typeof one !== "object" || one === null || depth > DEEPEST) return [{ kind: "json", value: one }];
  switch (one.type) {
    case "thinking":
    case "reasoning":
    case "redacted_thinking": {
      const text = asText(one.thinking ?? one.text ?? one.summary);
      return [text ? { kind: "thinking", text } : { kind: "json", value: one }];
    }
    case "tool_use":
    case "tool_call":
    case "function_call":
    case "server_tool_use":
      return [call(one)];
    case "tool_result":
    case "function_call_output":
      return [{ kind: "result", error: one.is_error === true, parts: content(one.content ?? one.output, depth + 1) }];
    case "image":
    case "image_url":
    case "input_image":
      return [{ kind: "image", name: image(one) }];
  }
  if (one.functionCall) return [call(one.functionCall)];
  if (one.functionResponse) return [{ kind: "result", error: false, parts: content(one.functionResponse.response, depth + 1) }];
  const text = asText(one.text);
  return [text ? { kind: "text", text } : { kind: "json", value: one }];
}

/**
 * A call, as Anthropic, OpenAI and Google write it.
 * @param {any} one
 * @returns {Part}
 */
function call(one) {
  const made = one?.function ?? one;
  const name = asText(made?.name)?.text ?? "tool";
  let input = made?.input ?? made?.arguments ?? made?.args ?? null;
  if (typeof input === "string")
    try {
      input = JSON.parse(input);
    } catch {
      // not JSON: shown as it is
    }
  return { kind: "call", name, input };
}

/** @param {any} one */
function image(one) {
  const source = one.source ?? one.image_url ?? {};
  const address = asText(source.url ?? one.url ?? (typeof source === "string" ? source : null))?.text;
  if (address && !address.startsWith("data:")) return address;
  return asText(source.media_type)?.text ?? "in the message itself";
}

/**
 * One line that says what a call is about.
 * @param {unknown} input
 * @returns {string}
 */
export function brief(input) {
  const text = asText(input);
  if (text) return oneLine(text.text);
  if (typeof input !== "object" || input === null) return input === null ? "" : String(input);
  const fields = /** @type {Record<string, any>} */ (input);
  for (const name of ["command", "cmd", "file_path", "path", "pattern", "query", "url", "description", "prompt"]) {
    const said = asText(Array.isArray(fields[name]) ? fields[name].join(" ") : fields[name]);
    if (said) return oneLine(said.text);
  }
  return oneLine(pretty(input));
}

/** @param {string} text */
export const oneLine = (text) => text.slice(0, 400).replace(/\s+/g, " ").trim().slice(0, 160);
