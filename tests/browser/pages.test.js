// The functions of the pages that need no browser.
import assert from "node:assert/strict";
import test from "node:test";
import { append, joined, MOST, prepend } from "../../worker/board/static/lib/conversation.js";
import { age, bytes, quoted } from "../../worker/board/static/lib/format.js";
import { hasCut, pretty } from "../../worker/board/static/lib/json.js";
import { markdown, safeAddress } from "../../worker/board/static/lib/markdown.js";
import { brief, parts, rest, role } from "../../worker/board/static/lib/parts.js";
import { inert, shown } from "../../worker/board/static/lib/text.js";
import { columns, matches, ORDERS, waits } from "../../worker/board/static/lib/waits.js";

/** A virtual node as text, its attributes too. */
function flat(node) {
  if (node === null || node === undefined || typeof node === "boolean") return "";
  if (Array.isArray(node)) return node.map(flat).join("");
  if (typeof node !== "object") return String(node);
  if (typeof node.type === "function") return flat(node.type(node.props));
  const { children, ...others } = node.props;
  const attributes = Object.entries(others).map(([name, value]) => ` ${name}=${value}`).join("");
  return `<${node.type}${attributes}>${flat(children)}`;
}
const numbered = (first, last) => Array.from({ length: last - first + 1 }, (_, at) => ({ n: first + at, message: {} }));
const session = (fields) => ({ id: "a", project: "P", status: "done", title: "T", messages: 1, last_role: "user", created_at: 0, updated_at: 0, last_seq: 1, waiting: false, ...fields });

test("controls and invisible characters are escapes", () => {
  assert.equal(inert("a\x1b[31mb\u202ec\u200bd"), "a\\u001b[31mb\\u202ec\\u200bd");
  assert.equal(inert("\ud800 \u{e0041}"), "\\ud800 \\u{e0041}");
  assert.equal(shown("plain\ttext\n"), "plain\ttext\n");
  assert.equal(shown("a\r\nb"), "a\nb");
  assert.match(flat(shown("a\rb")), /<span class=control>\\u000d/);
});

test("markdown is nodes, and HTML in it is text", () => {
  const made = flat(markdown("# T\n\n**b** <img src=x onerror=alert(1)>\n\n```py\nif x: pass\n```\n\n- one\n- two"));
  assert.match(made, /<p class=heading h1>T/);
  assert.match(made, /<strong>b/);
  assert.ok(made.includes("<img src=x onerror=alert(1)>"), "as text");
  assert.match(made, /<span class=hljs-keyword>if/);
  assert.match(made, /<ul><li>one<li>two/);
});

test("only addresses of the web and of mail are links", () => {
  for (const bad of ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "vbscript:x", "/relative", "\tjava\nscript:x", ""])
    assert.equal(safeAddress(bad), null, bad);
  assert.equal(safeAddress("https://a.example/b"), "https://a.example/b");
  assert.match(flat(markdown("[a](https://a.example)")), /rel=noopener noreferrer nofollow/);
  assert.doesNotMatch(flat(markdown("[a](javascript:alert(1)) [b](data:x)")), /href/);
});

test("images are named and not loaded", () => {
  const made = flat(markdown("![a cat](https://evil.example/cat.png)"));
  assert.match(made, /image: a cat \(https:\/\/evil.example\/cat.png\)/);
  assert.doesNotMatch(made, /<img| src=/);
});

test("no text takes markdown long", () => {
  for (const hostile of ["_a_b", "> ", "[", "*a ", "`", "[a](", "![", "<", "- "]) markdown(hostile.repeat(20_000).slice(0, 20_000));
  assert.match(flat(markdown("# x\n".repeat(10_000))), /^<div class=plain># x/);
});

test("the shapes of messages that programs write", () => {
  const kinds = (message) => parts(message).map(({ kind }) => kind);
  assert.deepEqual(kinds({ role: "user", content: "hello" }), ["text"]);
  assert.deepEqual(kinds({ role: "user", content: { cut: 99999, text: "h" } }), ["text"]);
  assert.deepEqual(
    kinds({ role: "assistant", content: [{ type: "thinking", thinking: "h" }, { type: "text", text: "a" }, { type: "tool_use", name: "Bash", input: {} }] }),
    ["thinking", "text", "call"],
  );
  assert.deepEqual(kinds({ role: "user", content: [{ type: "tool_result", content: [{ type: "text", text: "x" }] }] }), ["result"]);
  assert.deepEqual(kinds({ role: "assistant", content: null, tool_calls: [{ function: { name: "f", arguments: '{"a":1}' } }] }), ["call"]);
  assert.deepEqual(kinds({ role: "tool", tool_call_id: "1", content: "out" }), ["result"]);
  assert.deepEqual(kinds({ type: "function_call", name: "shell", arguments: "{}" }), ["call"]);
  assert.deepEqual(kinds({ type: "function_call_output", output: "x" }), ["result"]);
  const patch = { type: "custom_tool_call", name: "apply_patch", input: "*** Begin\n+a", call_id: "1", status: "completed" };
  assert.deepEqual([parts(patch), rest(patch), role(patch)], [[{ kind: "call", name: "apply_patch", input: patch.input }], null, "assistant"]);
  const done = { type: "custom_tool_call_output", call_id: "1", output: '{"output":"Success","metadata":{"exit_code":0}}' };
  assert.deepEqual([parts(done), role(done)], [[{ kind: "result", error: false, parts: [{ kind: "text", text: { text: "Success", cut: null } }] }], "tool"]);
  const reasoning = { type: "reasoning", summary: [{ type: "summary_text", text: "Look." }], encrypted_content: "g=" };
  assert.deepEqual([parts(reasoning), rest(reasoning)], [[{ kind: "thinking", text: { text: "Look.", cut: null } }], { encrypted_content: "g=" }]);
  assert.equal(role(reasoning), "assistant");
  assert.deepEqual(parts({ ...reasoning, summary: [] }), [{ kind: "thinking", text: { text: "encrypted", cut: null } }]);
  assert.deepEqual(kinds({ role: "assistant", parts: [{ type: "tool-weather", input: {}, output: "sunny" }] }), ["call", "result"]);
  assert.deepEqual(kinds({ role: "model", parts: [{ text: "a" }, { functionCall: { name: "f", args: {} } }] }), ["text", "call"]);
  assert.deepEqual(kinds({ role: "user", content: [{ type: "image", source: { media_type: "image/png" } }, { type: "odd" }] }), ["file", "json"]);
  assert.deepEqual(kinds({ role: "user", cut: 9, text: "{" }), ["text"]);
  for (const odd of [{}, { content: 1 }, { content: [null, 1, [], [[1]]] }, { role: {}, content: { a: { b: 1 } } }, { tool_calls: [null, 1] }]) parts(odd);
  assert.deepEqual(rest({ role: "user", content: "a", model: "m" }), { model: "m" });
  assert.equal(brief({ command: "ls -l\n  /tmp" }), "ls -l /tmp");
});

test("JSON keeps wide integers and says what was cut", () => {
  assert.equal(pretty({ a: { int: "9223372036854775807" }, b: [] }), '{\n  "a": 9223372036854775807,\n  "b": []\n}');
  assert.match(pretty({ cut: 5, text: "x" }), /"x"… \(5 bytes\)/);
  assert.ok(hasCut({ a: [{ cut: 5, text: "x" }] }));
  assert.ok(!hasCut({ a: [{ cut: 5, text: "x", more: 1 }] }));
});

test("ages, sizes, words of a shell", () => {
  assert.deepEqual([0, 9_000, 59_000, 61_000, 7_200_000, 172_800_000].map((ms) => age(0, ms)), ["now", "now", "59 s", "1 min", "2 h", "2 d"]);
  assert.deepEqual([1, 2048, 5 * 1024 ** 2].map(bytes), ["1 B", "2.0 KiB", "5.0 MiB"]);
  assert.deepEqual(["a.db", "a b", "it's"].map(quoted), ["a.db", "'a b'", `'it'"'"'s'`]);
});

test("a window takes what follows it, and no more than it may have", () => {
  const window = joined(100, numbered(1, 100));
  assert.equal(append(window, 101, numbered(101, 101), true).last, 101);
  assert.equal(append(window, 101, numbered(100, 101), true).messages.length, 101);
  assert.deepEqual(append(window, 150, numbered(150, 150), true).last, 100, "a gap");
  const full = joined(MOST, numbered(1, MOST));
  assert.equal(append(full, MOST + 1, numbered(MOST + 1, MOST + 1), true).first, 2);
  assert.equal(append(full, MOST + 1, numbered(MOST + 1, MOST + 1), false).last, MOST, "under the reader");
  const moved = prepend(joined(1000, numbered(701, 1000)), joined(1000, numbered(601, 700)));
  assert.deepEqual([moved.first, moved.last], [601, 900]);
});

test("who waits, and in which order", () => {
  assert.ok(waits(session({ status: "ready" })));
  assert.ok(waits(session({ status: "in-progress", last_role: "assistant", updated_at: 0 }), 60_000));
  assert.ok(!waits(session({ status: "in-progress", last_role: "assistant", updated_at: 1 }), 60_000));
  assert.ok(!waits(session({ status: "done", last_role: "assistant" })));
  const many = [session({ id: "a", last_seq: 1, updated_at: 9 }), session({ id: "b", last_seq: 2, status: "ready", updated_at: 5 }), session({ id: "c", last_seq: 3, status: "ready", updated_at: 4 })];
  assert.deepEqual([...many].sort(ORDERS.changed).map(({ id }) => id), ["c", "b", "a"]);
  assert.deepEqual([...many].sort(ORDERS.waiting).map(({ id }) => id), ["c", "b", "a"]);
});

test("twelve statuses have a column, those with most sessions first", () => {
  const known = ["ready", "in-progress", "review", "done"];
  assert.deepEqual(columns({ x: 1 }), [...known, "x"]);
  assert.deepEqual(columns({ a: 1, b: 3, done: 9, c: 3 }), [...known, "b", "c", "a"]);
  assert.deepEqual(columns({ a: 5, b: 3 }, [...known, "b", "gone"]), [...known, "b", "a"], "a column keeps its place");
  const many = Object.fromEntries(Array.from({ length: 400 }, (_, at) => [`s${at}`, at + 1]));
  assert.deepEqual(columns(many), [...known, ...[399, 398, 397, 396, 395, 394, 393, 392].map((at) => `s${at}`)]);
  assert.deepEqual(columns({ "a,b": 1, "": 1, constructor: 1, ["x".repeat(200)]: 1 }), [...known, "constructor"]);
});

test("filters match as the server's do", () => {
  const all = { project: "", q: "", status: [], not: [], waiting: false };
  assert.ok(matches(session({}), all));
  assert.ok(matches(session({ title: "Fix the Login" }), { ...all, q: "login fix" }));
  assert.ok(!matches(session({}), { ...all, project: "Q" }));
  assert.ok(!matches(session({}), { ...all, status: ["ready"] }));
  assert.ok(!matches(session({}), { ...all, not: ["done"] }));
});
