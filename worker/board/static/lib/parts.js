// What a message says, whichever program wrote it: text, thinking, calls of tools, their results.
// The shapes are those of `worker/sessions/content.py`, which reads them for a terminal.
import { asText, pretty } from "./json.js";

/** @typedef {{text: string, cut: number | null}} Text */
/** @typedef {{kind: "text", text: Text} | {kind: "thinking", text: Text}
 *   | {kind: "call", name: string, input: unknown} | {kind: "result", error: boolean, parts: Part[]}
 *   | {kind: "file", of: string, name: string} | {kind: "json", value: unknown}} Part */

const CONTENT = ["content", "parts", "text"]; // where a message has what it says
const SHOWN = new Set(["role", "cut", "type", ...CONTENT, "tool_calls", "name", "call_id", "tool_call_id", "id"]);
const OF_ITEMS = new Set(["input", "arguments", "args", "action", "rawInput", "toolName", "output", "result", "response", "is_error", "summary", "thinking", "reasoning"]);
const CALLS = new Set([
  "tool_use", "server_tool_use", "mcp_tool_use", "tool_call", "tool-call", "function_call", "custom_tool_call", "local_shell_call",
  "web_search_call", "mcp_call", "dynamic-tool",
]);
const RESULTS = new Set([
  "tool_result", "web_search_tool_result", "mcp_tool_result", "tool-result", "function_call_output", "custom_tool_call_output",
  "local_shell_call_output",
]);
const THINKING = new Set(["thinking", "redacted_thinking", "reasoning"]);
const FILES = new Set(["image", "document", "image_url", "input_image", "input_file", "input_audio", "audio", "file"]);
const DEEPEST = 8; // results within results

/**
 * Who said it; items of OpenAI's Responses API, and so of Codex, have no role.
 * @param {Record<string, any>} message
 */
export function role(message) {
  const said = asText(message.role)?.text;
  if (said) return said;
  if (RESULTS.has(message.type)) return "tool";
  return isItem(message) ? "assistant" : asText(message.type)?.text || "no role";
}

/**
 * Whether a message is one part by itself.
 * @param {Record<string, any>} message
 */
const isItem = ({ type }) => CALLS.has(type) || RESULTS.has(type) || THINKING.has(type);

/**
 * @param {Record<string, any>} message
 * @returns {Part[]}
 */
export function parts(message) {
  const whole = asText({ cut: message.cut, text: message.text });
  if (whole) return [{ kind: "text", text: whole }]; // too long in many parts: its beginning as JSON
  /** @type {Part[]} */
  const found = [];
  if (isItem(message)) found.push(...part(message, 0));
  else if (message.role === "tool") found.push(result(message, 0));
  else
    for (const name of CONTENT)
      if (message[name] !== undefined && message[name] !== null) found.push(...content(message[name], 0));
  if (Array.isArray(message.tool_calls)) found.push(...message.tool_calls.map(call));
  return found;
}

/**
 * The fields that `parts` does not show.
 * @param {Record<string, any>} message
 * @returns {Record<string, any> | null}
 */
export function rest(message) {
  const left = Object.entries(message).filter(([name, value]) =>
    value !== null && !SHOWN.has(name) && !(isItem(message) && (OF_ITEMS.has(name) || (name === "status" && value === "completed"))));
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
  if (CALLS.has(one.type)) return called(one, depth);
  if (RESULTS.has(one.type)) return [result(one, depth)];
  if (THINKING.has(one.type)) return thought(one);
  if (FILES.has(one.type)) return [file(one)];
  if (one.type === "step-start") return [];
  if (one.type === "tool-invocation" && one.toolInvocation) return called(one.toolInvocation, depth);
  if (typeof one.type === "string" && one.type.startsWith("tool-")) return called({ ...one, name: one.type.slice("tool-".length) }, depth);
  if (one.functionCall) return [call(one.functionCall)];
  if (one.functionResponse) return [result(one.functionResponse, depth)];
  if (one.inlineData ?? one.fileData) return [file(one)];
  const text = asText(one.text ?? one.refusal);
  if (text && one.thought === true) return [{ kind: "thinking", text }];
  return [text ? { kind: "text", text } : { kind: "json", value: one }];
}

/**
 * Thinking; of the Responses API its summary, of which the rest is encrypted.
 * @param {any} one
 * @returns {Part[]}
 */
function thought(one) {
  const said = asText(one.thinking ?? one.text ?? one.reasoning);
  if (said?.text) return [{ kind: "thinking", text: said }];
  const texts = [one.summary, one.content].flat().map((/** @type {any} */ inner) => asText(inner?.text ?? inner)).filter((text) => text !== null);
  const cut = texts.find((text) => text.cut !== null)?.cut ?? null;
  const text = texts.map((inner) => inner.text).join("\n\n");
  if (text) return [{ kind: "thinking", text: { text, cut } }];
  const hidden = one.type === "redacted_thinking" ? "redacted" : one.encrypted_content ? "encrypted" : "";
  return hidden ? [{ kind: "thinking", text: { text: hidden, cut: null } }] : [];
}

/**
 * What a tool returned. Codex may write it as JSON beside an exit code.
 * @param {any} one
 * @param {number} depth
 * @returns {Part}
 */
function result(one, depth) {
  let said = one.content ?? one.output ?? one.result ?? one.response ?? one.errorText ?? one.text;
  if (typeof said === "string" && said.startsWith('{"output":'))
    try {
      said = asText(JSON.parse(said).output) ? JSON.parse(said).output : said;
    } catch {
      // not JSON: shown as it is
    }
  if (asText(said?.value)) said = said.value; // of the AI SDK
  return { kind: "result", error: one.is_error === true || Boolean(one.errorText), parts: content(said, depth + 1) };
}

/**
 * A call, and what it returned where the same part has that.
 * @param {any} one
 * @param {number} depth
 * @returns {Part[]}
 */
function called(one, depth) {
  const has = [one.output, one.result, one.errorText].some((said) => said !== undefined && said !== null);
  return [call(one), ...(has ? [result({ ...one, content: null }, depth)] : [])];
}

/**
 * A call, as Anthropic, OpenAI and Google write it.
 * @param {any} one
 * @returns {Part}
 */
function call(one) {
  const made = one?.function ?? one;
  const name = asText(made?.name ?? made?.toolName ?? made?.type)?.text ?? "tool";
  let input = made?.input ?? made?.arguments ?? made?.args ?? made?.action ?? made?.rawInput ?? null;
  if (typeof input === "string")
    try {
      input = JSON.parse(input);
    } catch {
      // not JSON: shown as it is
    }
  return { kind: "call", name, input };
}

/**
 * A picture, a sound or a document, by its address or type.
 * @param {any} one
 * @returns {Part}
 */
function file(one) {
  const inner = [one.source, one.image_url, one.input_audio, one.inlineData, one.fileData, one.file].find((given) => typeof given === "object" && given !== null) ?? one;
  const address = asText(inner.url ?? inner.fileUri ?? inner.image_url ?? inner.file_id)?.text;
  const kind = asText(inner.media_type ?? inner.mediaType ?? inner.mimeType ?? inner.filename ?? inner.format)?.text;
  const of = ["image", "image_url", "input_image"].includes(one.type) ? "image" : (asText(one.type)?.text ?? "file");
  return { kind: "file", of, name: address && !address.startsWith("data:") ? address : (kind ?? "in the message itself") };
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
