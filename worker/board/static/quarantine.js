// The events that could not be folded: why, what is in them, and what to do about them.
import { html, useEffect, useState } from "./vendor/preact.js";
import { get, post, query } from "./lib/api.js";
import { bytes, count, counted, moment, quoted } from "./lib/format.js";
import { Command, Failure, Frame, mount, useAnswer, useFollow, useStatus } from "./lib/frame.js";
import { pretty } from "./lib/json.js";
import { Code } from "./lib/markdown.js";
import { watchNotifications } from "./lib/notify.js";
import { shown } from "./lib/text.js";

/** @typedef {import("./vendor/preact.js").Child} Child */
/** @typedef {{seq: number, id: unknown, key: unknown, projection: string, reason: string,
 *   note: string | null, type: string | null, time: number | null}} Row */
/** @typedef {{total: number, undismissed: number, reasons: {projection: string, reason: string,
 *   count: number, dismissed: number, first: number, last: number}[], events: Row[], next: number | null}} Listed */

const PAGE = 100;
const given = new URLSearchParams(location.search);

function Quarantine() {
  useFollow();
  useEffect(watchNotifications, []);
  const seq = given.get("seq");
  return html`<${Frame} page="Quarantine" title=${seq ? `Event ${seq}, quarantine` : "Quarantine"}>
    ${seq ? html`<${OneEvent} seq=${seq} />` : html`<${List} />`}
  <//>`;
}

function List() {
  const { status } = useStatus();
  const [projection, reason] = [given.get("projection") ?? "", given.get("reason") ?? ""];
  const [rows, setRows] = useState(/** @type {Row[]} */ ([]));
  const [next, setNext] = useState(/** @type {number | null} */ (null));
  const [chosen, setChosen] = useState(/** @type {Set<number>} */ (new Set()));
  const counts = (status?.projections ?? []).map((/** @type {any} */ one) => `${one.quarantined} ${one.dismissed}`).join();
  const { value, error, again } = useAnswer(async () => {
    const found = /** @type {Listed} */ (await get("quarantine", { projection, reason, limit: PAGE }));
    setRows(found.events);
    setNext(found.next);
    return found;
  }, [counts]);
  const more = async () => {
    const found = /** @type {Listed} */ (await get("quarantine", { projection, reason, after: next, limit: PAGE }));
    setRows([...rows, ...found.events]);
    setNext(found.next);
  };
  if (!value) return error ? html`<${Failure} error=${error} again=${again} />` : html`<p class="loading">Loading…</p>`;
  if (!value.total) return html`<h1 class="unseen">Quarantine</h1><div class="empty"><p>Nothing is quarantined: every event could be folded.</p></div>`;
  const groups = grouped(rows);
  const dismissed = most(value, (one) => one.dismissed);
  /** @param {number} seq */
  const toggle = (seq) => {
    const now = new Set(chosen);
    if (!now.delete(seq)) now.add(seq);
    setChosen(now);
  };
  const left = groups.filter(({ first }) => first.note === null);
  const all = left.length > 0 && left.every(({ seq }) => chosen.has(seq));
  return html`<h1>Quarantine</h1>
    <p class="muted">${counted(most(value, ({ count }) => count), "event")} could not be folded${leftOut(most(value, ({ count }) => count), dismissed)}. The other events of their sessions count all the same.</p>
    ${error && html`<${Failure} error=${error} again=${again} />`}
    <section class="panel" aria-label="reasons"><h2>Why</h2><table class="stack"><thead><tr><th scope="col">reason</th><th scope="col">projection</th><th scope="col" class="figure">events</th><th scope="col" class="figure">seq</th></tr></thead>
      <tbody>${together(value).map((one) => html`<tr aria-current=${one.reason === reason ? "true" : null}><td data-label="reason"><a href=${`/quarantine${query({ reason: one.reason })}`}>${shown(one.reason)}</a></td>
        <td data-label="projection">${shown(one.projections.join(", "))}</td><td class="figure" data-label="events">${count(one.count)}</td><td class="figure" data-label="seq">${count(one.first)}${one.last !== one.first && html` to ${count(one.last)}`}</td></tr>`)}</tbody></table>
      ${(reason || projection) && html`<p><a href="/quarantine">Show all reasons</a></p>`}</section>
    <section class="panel" aria-label="events"><h2>Events</h2>
      <${Bulk} seqs=${[...chosen].sort((a, b) => a - b)} done=${() => (setChosen(new Set()), again())} />
      <table class="stack"><thead><tr><th scope="col"><input type="checkbox" aria-label="all of these that are not dismissed" checked=${all} disabled=${!left.length} onChange=${() => setChosen(all ? new Set() : new Set(left.map(({ seq }) => seq)))} /></th>
        <th scope="col" class="figure">seq</th><th scope="col">key</th><th scope="col">type</th><th scope="col">time</th><th scope="col">why</th></tr></thead>
      <tbody>${groups.map(({ seq, first, reasons }) => html`<tr key=${seq} class=${first.note === null ? "" : "dismissed"}>
        <td data-label="choose"><input type="checkbox" aria-label=${`event ${seq}`} checked=${chosen.has(seq)} onChange=${() => toggle(seq)} /></td>
        <td class="figure" data-label="seq"><a data-item href=${`/quarantine${query({ seq })}`}>${count(seq)}</a></td><td data-label="key">${shown(text(first.key))}</td><td data-label="type">${shown(first.type ?? "–")}</td>
        <td data-label="time">${first.time === null ? "" : moment(first.time)}</td><td data-label="why">${reasons.map((one) => html`<span class="line">${shown(one)}</span>`)}${first.note !== null && html`<span class="line muted">dismissed: ${shown(first.note)}</span>`}</td></tr>`)}</tbody></table>
      ${next !== null && html`<p class="more"><button type="button" onClick=${more}>More</button></p>`}
    </section>`;
}

/**
 * @param {number} all
 * @param {number} dismissed
 */
const leftOut = (all, dismissed) =>
  dismissed === 0 ? "" : dismissed < all ? `; ${count(dismissed)} of them ${dismissed === 1 ? "is" : "are"} dismissed` : all === 1 ? "; it is dismissed" : "; all of them are dismissed";

/**
 * Of the sums of each projection the largest: most events are in the quarantine of two.
 * @param {Listed} listed
 * @param {(one: Listed["reasons"][0]) => number} number
 */
function most({ reasons }, number) {
  /** @type {Record<string, number>} */
  const sums = {};
  for (const one of reasons) sums[one.projection] = (sums[one.projection] ?? 0) + number(one);
  return Math.max(0, ...Object.values(sums));
}

/**
 * The reasons, with the projections that have each.
 * @param {Listed} listed
 */
function together({ reasons }) {
  /** @type {Map<string, {reason: string, projections: string[], count: number, first: number, last: number}>} */
  const found = new Map();
  for (const { reason, projection, count, first, last } of reasons) {
    const one = found.get(reason) ?? { reason, projections: [], count, first, last };
    one.projections.push(projection);
    one.count = Math.max(one.count, count);
    one.first = Math.min(one.first, first);
    one.last = Math.max(one.last, last);
    found.set(reason, one);
  }
  return [...found.values()].sort((a, b) => b.count - a.count);
}

/**
 * One row for each event, with the reasons of all projections.
 * @param {Row[]} rows
 */
function grouped(rows) {
  /** @type {Map<number, {seq: number, first: Row, reasons: string[]}>} */
  const found = new Map();
  for (const row of rows) {
    const group = found.get(row.seq);
    if (!group) found.set(row.seq, { seq: row.seq, first: row, reasons: [row.reason] });
    else if (!group.reasons.includes(row.reason)) group.reasons.push(row.reason);
  }
  return [...found.values()];
}

/** @param {unknown} value */
const text = (value) => (typeof value === "string" ? value : pretty(value));

/** @param {{seqs: number[], done: () => void}} props */
function Bulk({ seqs, done }) {
  const { status } = useStatus();
  const [note, setNote] = useState("");
  const [sure, setSure] = useState(false);
  const [said, setSaid] = useState(/** @type {Child} */ (null));
  if (!status) return null;
  if (!status.board?.actions) {
    if (!seqs.length) return html`<p class="cut">This board only reads. Choose events for the commands, or run it with <code>--allow-actions</code>.</p>`;
    const database = quoted(status.database);
    const list = seqs.length > 1 ? `for seq in ${seqs.join(" ")}; do ` : "";
    const one = list ? '"$seq"' : String(seqs[0]);
    const end = list && "; done";
    return html`<div class="rows commands"><p>Append again, once what was wrong is right: <${Command} text=${`${list}projector quarantine resubmit -d ${database} ${one}${end}`} /></p>
      <p>Dismiss: <${Command} text=${`${list}projector quarantine dismiss -d ${database} ${one} --note 'WHY'${end}`} /></p></div>`;
  }
  /** @param {() => Promise<Child>} act */
  const run = (act) => async (/** @type {any} */ event) => {
    event?.preventDefault();
    setSure(false);
    setSaid("Working…");
    try {
      setSaid(await act());
      done();
    } catch (error) {
      setSaid(html`<${Failure} error=${error} />`);
    }
  };
  const dismiss = run(async () => {
    const { dismissed } = await post("quarantine/dismiss", { seqs, note });
    setNote("");
    return `${counted(dismissed, "event")} dismissed.`;
  });
  const resubmit = run(async () => {
    const found = await post("quarantine/resubmit", { seqs });
    const failed = Object.entries(found.failed ?? {});
    return html`${counted(Object.keys(found.seqs).length, "event")} appended again${Object.keys(found.seqs).length ? ` as ${Object.values(found.seqs).slice(0, 20).join(", ")}` : ""}.
      ${failed.length > 0 && html`<span class="bad"> ${counted(failed.length, "event")} not: ${failed.slice(0, 5).map(([seq, why]) => html`${seq}, ${shown(/** @type {any} */ (why).error)}; `)}</span>`}`;
  });
  return html`<div class="tools actions">
    <span class="muted">${counted(seqs.length, "event")} chosen</span>
    ${sure ? html`<span>Append ${counted(seqs.length, "event")} again? <button type="button" class="main" onClick=${resubmit}>Append</button> <button type="button" onClick=${() => setSure(false)}>Cancel</button></span>`
      : html`<button type="button" disabled=${!seqs.length} onClick=${() => setSure(true)}>Resubmit…</button>`}
    <form class="tools" onSubmit=${dismiss}><input type="text" aria-label="why they may stay" placeholder="Note: why they may stay" value=${note} required onInput=${(/** @type {any} */ event) => setNote(event.currentTarget.value)} />
      <button disabled=${!seqs.length || !note.trim()}>Dismiss</button></form>
    <span role="status">${said}</span></div>`;
}

/** @param {{seq: string}} props */
function OneEvent({ seq }) {
  const { value, error, again } = useAnswer(() => get("quarantine/event", { seq }), [seq]);
  if (!value) return error ? html`<${Failure} error=${error} again=${again} />` : html`<p class="loading">Loading…</p>`;
  const session = typeof value.key === "string" && value.key.replace(/^session:/, "");
  return html`<h1>Event ${count(value.seq)}</h1>
    <section class="panel" aria-label="why"><h2>Why it is quarantined</h2>
      <dl class="pairs">${Object.entries(value.reasons).map(([name, why]) => html`<div><dt>${shown(name)}</dt><dd>${shown(String(why))}</dd></div>`)}
      ${value.detail !== null && html`<div><dt>in detail</dt><dd>${shown(value.detail)}</dd></div>`}
      ${value.note !== null && html`<div><dt>dismissed</dt><dd>${shown(value.note)}</dd></div>`}</dl></section>
    <section class="panel" aria-label="event"><h2>What is in it</h2>
      <dl class="pairs"><div><dt>id</dt><dd>${shown(text(value.id))}</dd></div><div><dt>key</dt><dd>${session ? html`<a href=${`/session/history${query({ id: session })}`}>${shown(text(value.key))}</a>` : shown(text(value.key))}</dd></div>
        <div><dt>created_at</dt><dd>${typeof value.created_at === "number" && html`${moment(value.created_at)} `}<span class="muted">${shown(text(value.created_at))}</span></dd></div><div><dt>size</dt><dd>${bytes(value.bytes)}</dd></div></dl>
      ${value.event !== null && value.event !== undefined && html`<h3>As far as it decodes</h3><${Code} text=${typeof value.event === "string" ? value.event : pretty(value.event)} language="json" />`}
      ${value.hex && html`${value.fault && html`<p class="cut">Decoding stopped: ${shown(value.fault)}</p>`}<h3>Its bytes</h3><pre class="code" tabindex="0" role="group" aria-label="bytes">${dump(value.hex)}${value.hex.length / 2 < value.bytes ? `\n… ${bytes(value.bytes)} in all` : ""}</pre>`}</section>
    <${Actions} value=${value} again=${again} />`;
}

/** @param {string} hex */
function dump(hex) {
  const found = hex.replace(/[^0-9a-f]/gi, "").match(/.{1,32}/g) ?? [];
  return found.map((line, at) => {
    const pairs = line.match(/../g) ?? [];
    const letters = pairs.map((one) => parseInt(one, 16)).map((one) => (one >= 32 && one < 127 ? String.fromCharCode(one) : ".")).join("");
    return `${(at * 16).toString(16).padStart(6, "0")}  ${pairs.join(" ").padEnd(47)}  ${letters}`;
  }).join("\n");
}

/**
 * JSON over several lines; as it stands where a number has more digits than this page keeps, or where it is no JSON.
 * @param {string} json
 */
function editable(json) {
  if (/[\d.]{16}/.test(json)) return json;
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}

/** @param {{value: any, again: () => void}} props */
function Actions({ value, again }) {
  const { status } = useStatus();
  const [edited, setEdited] = useState(/** @type {string | null} */ (null));
  const [busy, setBusy] = useState(false);
  const [said, setSaid] = useState(/** @type {Child} */ (null));
  const [note, setNote] = useState("");
  if (!status) return null;
  if (!status.board?.actions)
    return html`<section class="panel rows" aria-label="commands"><h2>What to do</h2>${Object.entries(value.commands ?? {}).map(([name, command]) => html`<p>${NAMES[name] ?? name}: <${Command} text=${String(command)} /></p>`)}
      <p class="cut">With <code>projector board --allow-actions</code> the page does it.</p></section>`;
  const done = String(value.note ?? "").startsWith("resubmitted as seq ");
  /** The text as it stands, whose numbers keep all their digits. */
  const event = () => {
    if (edited === null) return undefined;
    JSON.parse(edited);
    return edited;
  };
  /** @param {() => Promise<Child>} act */
  const run = (act) => async (/** @type {any} */ submitted) => {
    submitted?.preventDefault();
    setSaid("Working…");
    setBusy(true);
    try {
      setSaid(await act());
    } catch (error) {
      setSaid(error instanceof SyntaxError ? html`<span class="bad">This is not JSON: ${shown(error.message)}</span>` : html`<${Failure} error=${error} />`);
    }
    setBusy(false);
  };
  const check = run(async () => {
    const { verdicts } = await post("quarantine/check", { seq: value.seq, event: event() });
    return html`<dl class="pairs">${Object.entries(verdicts).map(([name, why]) => html`<div><dt>${shown(name)}</dt><dd>${why === null ? "it can be folded" : shown(String(why))}</dd></div>`)}</dl>`;
  });
  const resubmit = run(async () => {
    const found = await post("quarantine/resubmit", { seq: value.seq, event: event() });
    again();
    return html`Appended as event ${Object.values(found.seqs).map(String).join(", ")}.`;
  });
  const dismiss = run(async () => {
    await post("quarantine/dismiss", { seqs: [value.seq], note });
    setNote("");
    again();
    return "Dismissed.";
  });
  return html`<section class="panel rows" aria-label="actions"><h2>What to do</h2>
    ${edited === null && value.text === null ? html`<p class="muted">This event cannot be corrected here, as JSON would lose some of it or it is long. Append a corrected one with <${Command} text=${String(value.commands?.resubmit)} /> and <code>-m -</code>.</p>`
      : edited === null ? html`<p><button type="button" disabled=${done} onClick=${() => setEdited(editable(value.text))}>Correct it</button></p>`
      : html`<p class="muted">The session is the one that <code>"sessionId"</code> in the event names, and without it that of the key.</p><label>The event, corrected<textarea rows="12" class="mono" spellcheck=${false} value=${edited} onInput=${(/** @type {any} */ change) => setEdited(change.currentTarget.value)}></textarea></label>`}
    <div class="tools actions"><button type="button" onClick=${check}>Check</button><button type="button" class="main" disabled=${busy || done} onClick=${resubmit}>Append it again</button>
      <form class="tools" onSubmit=${dismiss}><input type="text" aria-label="why it may stay" placeholder="Note: why it may stay" value=${note} required onInput=${(/** @type {any} */ change) => setNote(change.currentTarget.value)} /><button disabled=${!note.trim()}>Dismiss</button></form></div>
    <div role="status">${said}</div></section>`;
}

const NAMES = /** @type {Record<string, string>} */ ({ check: "Check it", resubmit: "Append it again, corrected or not", dismiss: "Leave it out of the count" });

mount(Quarantine);
