// The history of one session: its events, a slider through them, and what changed between two.
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/preact.js";
import { get, query } from "./lib/api.js";
import { bytes, count, counted, iso, moment } from "./lib/format.js";
import { Failure, followAll, Frame, mount } from "./lib/frame.js";
import { pretty } from "./lib/json.js";
import { Message } from "./lib/message.js";
import { watchNotifications } from "./lib/notify.js";
import { listen } from "./lib/stream.js";
import { inert, shown } from "./lib/text.js";

/** @typedef {import("./lib/api.js").Event} Event */
/** @typedef {import("./lib/api.js").Message} Entry */
/** @typedef {{fields: Record<string, {from: unknown, to: unknown}>, messages: {added: Entry[],
 *   removed: Entry[], changed: {n: number, from: any, to: any}[]},
 *   totals: {added: number, removed: number, changed: number}}} Changes */

const PAGE = 1000; // events an answer
const ROWS = 100; // events on the page
const SETTLED = 80; // milliseconds that the slider stands still before its moment is read

const given = new URLSearchParams(location.search);
const id = given.get("id") ?? "";

/** @type {(by: number) => void} */
let step = () => {};

/** All events after a position, page by page. */
async function eventsAfter(/** @type {number} */ after, /** @type {(events: Event[]) => void} */ take) {
  for (let next = /** @type {number | null} */ (after); next !== null; ) {
    const found = await get("session/events", { id, after: next, limit: PAGE });
    take(found.events);
    next = found.next;
  }
}

function History() {
  const [events, setEvents] = useState(/** @type {Event[]} */ ([]));
  const [loaded, setLoaded] = useState(false);
  const [error, setError] = useState(/** @type {unknown} */ (null));
  const [at, setAt] = useState(/** @type {number | null} */ (Number(given.get("at")) || null)); // null: the newest
  const [from, setFrom] = useState(/** @type {number | null} */ (Number(given.get("from")) || null)); // null: the event before
  const newest = useRef(0);

  const more = async () => {
    try {
      await eventsAfter(newest.current, (found) => {
        const fresh = found.filter((one) => one.seq > newest.current);
        if (fresh.length) newest.current = fresh[fresh.length - 1].seq;
        setEvents((old) => [...old, ...fresh]);
      });
      setError(null);
    } catch (failed) {
      setError(failed);
    }
    setLoaded(true);
  };
  useEffect(() => {
    watchNotifications();
    const stop = listen((change) => {
      if (change.type === "reset" || (change.type === "sessions" && change.sessions.some((one) => one.id === id))) more();
    });
    followAll();
    more();
    return stop;
  }, []);

  const index = useMemo(() => (at === null ? events.length - 1 : nearest(events, at)), [events, at]);
  const event = events[index];
  /** @param {number} next */
  const choose = (next) => setAt(next >= events.length - 1 ? null : (events[Math.max(next, 0)]?.seq ?? null));
  step = (by) => choose(index + by);
  const start = from ?? events[index - 1]?.seq ?? null;
  useEffect(() => {
    if (loaded) history.replaceState(null, "", `/session/history${query({ id, at, from })}`);
  }, [loaded, at, from]);

  return html`<${Frame} page="" title=${`History of ${id}`} wide>
    <div class="head"><h1>History of ${shown(id)}</h1><p class="facts"><a href=${`/session${query({ id })}`}>Conversation</a>
      <span>${counted(events.length, "event")}${!loaded && " so far"}</span></p></div>
    ${error && html`<${Failure} error=${error} again=${more} />`}
    ${!loaded && !events.length && html`<p class="loading">Loading…</p>`}
    ${event && html`<${Slider} events=${events} index=${index} event=${event} choose=${choose} />
      <div class="past">
        <${Events} events=${events} index=${index} choose=${choose} from=${from} setFrom=${setFrom} />
        <div class="rows"><${Moment} event=${event} start=${start} from=${from} setFrom=${setFrom} /></div>
      </div>`}
  <//>`;
}

/**
 * The last event that is not later than a position.
 * @param {Event[]} events
 * @param {number} seq
 */
function nearest(events, seq) {
  const after = events.findIndex((one) => one.seq > seq);
  return after < 0 ? events.length - 1 : Math.max(after - 1, 0);
}

/** @param {{events: Event[], index: number, event: Event, choose: (index: number) => void}} props */
function Slider({ events, index, event, choose }) {
  const [early, setEarly] = useState(false);
  /** @param {any} change */
  const jump = (change) => {
    const time = new Date(change.currentTarget.value).getTime();
    if (!Number.isFinite(time)) return setEarly(false);
    const last = events.findLastIndex((one) => one.time !== null && one.time <= time);
    setEarly(last < 0);
    choose(last);
  };
  const said = `event ${count(index + 1)} of ${count(events.length)}, ${event.type ?? "of no type"}, ${moment(event.time)}`;
  return html`<section class="panel slider" aria-label="moment">
    <input type="range" min="0" max=${events.length - 1} value=${index} aria-label="moment" aria-valuetext=${inert(said)}
      onInput=${(/** @type {any} */ change) => choose(Number(change.currentTarget.value))} />
    <p class="facts"><button type="button" onClick=${() => choose(index - 1)} disabled=${index <= 0} aria-label="the event before">←</button>
      <button type="button" onClick=${() => choose(index + 1)} disabled=${index >= events.length - 1} aria-label="the event after">→</button>
      <b>${shown(event.type ?? "no type")}</b> <span>event ${count(index + 1)} of ${count(events.length)}, seq ${count(event.seq)}</span>
      <time datetime=${iso(event.time)}>${moment(event.time)}</time>
      <label class="last">go to <input type="datetime-local" step="1" onChange=${jump} /></label></p>
    <p role="status" class="muted">${early && `The session began later, at ${moment(events[0].time)}: this is its first event.`}</p>
    ${event.reason && html`<p class=${event.note === null ? "reason" : "muted"}>${event.note === null ? "Quarantined" : html`Dismissed (${shown(event.note)}), not folded`}: ${shown(event.reason)} <a href=${`/quarantine${query({ seq: event.seq })}`}>Look at it</a></p>`}
  </section>`;
}

/**
 * @param {{events: Event[], index: number, choose: (index: number) => void, from: number | null,
 *   setFrom: (seq: number | null) => void}} props
 */
function Events({ events, index, choose, from, setFrom }) {
  const first = Math.max(0, Math.min(index - ROWS / 2, events.length - ROWS));
  const rows = events.slice(first, first + ROWS);
  const panel = useRef(/** @type {HTMLElement | null} */ (null));
  useLayoutEffect(() => {
    const row = /** @type {HTMLElement | null} */ (panel.current?.querySelector("tr[aria-current]"));
    const box = panel.current;
    if (!row || !box || box.scrollHeight <= box.clientHeight) return;
    if (row.offsetTop < box.scrollTop || row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight)
      box.scrollTop = row.offsetTop - box.clientHeight / 2;
  }, [index, first]);
  return html`<section class="panel events" aria-label="events" tabindex="0" ref=${panel}>
    ${first > 0 && html`<p class="cut">${counted(first, "earlier event")}: move the slider</p>`}
    <table class="stack"><thead><tr><th class="figure" scope="col">seq</th><th scope="col">time</th><th scope="col">type, what it says</th><th class="figure" scope="col">size</th><th scope="col">compare</th></tr></thead>
    <tbody>${rows.map((one, n) => html`<tr key=${one.seq} aria-current=${first + n === index ? "true" : null} class=${one.reason ? "odd" : ""}>
      <td class="figure" data-label="seq"><button type="button" class="plainly" data-item onClick=${() => choose(first + n)} aria-label=${`go to event ${one.seq}`}>${count(one.seq)}</button></td>
      <td data-label="time">${one.time === null ? "" : moment(one.time)}</td><td data-label="type" class="kind"><span class="type">${shown(one.type ?? "–")}</span>${one.reason && (one.note === null ? html` <span class="badge">quarantined</span>` : html` <span class="muted">dismissed</span>`)}
        ${one.says && html`<span class="says" title=${inert(one.says)}>${shown(one.says)}</span>`}</td>
      <td class="figure" data-label="size">${bytes(one.bytes)}</td>
      <td data-label="compare"><button type="button" class="plainly" aria-pressed=${String(from === one.seq)} aria-label=${`compare from here: event ${one.seq}`}
        onClick=${() => setFrom(from === one.seq ? null : one.seq)}>${from === one.seq ? "from here ✓" : "from here"}</button></td></tr>`)}</tbody></table>
    ${first + ROWS < events.length && html`<p class="cut">${counted(events.length - first - ROWS, "later event")}: move the slider</p>`}
  </section>`;
}

/** @param {{event: Event, start: number | null, from: number | null, setFrom: (seq: number | null) => void}} props */
function Moment({ event, start, from, setFrom }) {
  const [found, setFound] = useState(/** @type {{seq: number, then: any, changes: Changes | null, error: unknown} | null} */ (null));
  useEffect(() => {
    let gone = false;
    const timer = setTimeout(async () => {
      try {
        const [then, changes] = await Promise.all([
          get("session/at", { id, at: event.seq }),
          start === null || start === event.seq ? null : get("session/diff", { id, from: Math.min(start, event.seq), to: Math.max(start, event.seq) }).catch(() => null),
        ]);
        if (!gone) setFound({ seq: event.seq, then, changes, error: null });
      } catch (error) {
        if (!gone) setFound({ seq: event.seq, then: null, changes: null, error });
      }
    }, SETTLED);
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, [event.seq, start]);
  if (!found) return html`<p class="loading">Loading…</p>`;
  if (found.error) return html`<${Failure} error=${found.error} />`;
  return html`${found.changes && html`<${Difference} changes=${found.changes} start=${start ?? 0} end=${found.seq} from=${from} setFrom=${setFrom} />`}
    <${Then} seq=${found.seq} then=${found.then} />`;
}

/** @param {{changes: Changes, start: number, end: number, from: number | null, setFrom: (seq: number | null) => void}} props */
function Difference({ changes, start, end, from, setFrom }) {
  const fields = Object.entries(changes.fields);
  const { added, removed, changed } = changes.messages;
  return html`<section class="panel" aria-label="differences">
    <h2>Changed from ${count(Math.min(start, end))} to ${count(Math.max(start, end))} ${from !== null && html`<button type="button" class="plainly" onClick=${() => setFrom(null)}>compare with the event before</button>`}</h2>
    ${!fields.length && !added.length && !removed.length && !changed.length && html`<p class="muted">Nothing.</p>`}
    ${fields.length > 0 && html`<dl class="pairs">${fields.map(([name, { from: was, to }]) => html`<div><dt>${shown(name)}</dt><dd>${value(name, was)} → ${value(name, to)}</dd></div>`)}</dl>`}
    ${removed.map((entry) => html`<${Message} key=${`r${entry.n}`} entry=${entry} note="removed" anchored=${false} />`)}
    ${changed.map(({ n, from: was, to }) => html`<${Message} key=${`f${n}`} entry=${{ n, message: was }} note="before" anchored=${false} /><${Message} key=${`t${n}`} entry=${{ n, message: to }} note="after" anchored=${false} />`)}
    ${cut(changes)}
    ${added.map((entry) => html`<${Message} key=${`a${entry.n}`} entry=${entry} note="added" anchored=${false} />`)}
  </section>`;
}

/** @param {Changes} changes */
function cut({ messages, totals }) {
  const all = totals.added + totals.removed + totals.changed;
  const here = messages.added.length + messages.removed.length + messages.changed.length;
  return here < all && html`<p class="cut">${count(here)} of ${counted(all, "changed message")} are shown.</p>`;
}

/**
 * @param {string} name
 * @param {unknown} one
 */
const value = (name, one) =>
  name.endsWith("At") && typeof one === "number" ? moment(one) : one === null || one === undefined ? html`<span class="muted">none</span>` : shown(typeof one === "string" ? one : pretty(one));

/** @param {{seq: number, then: import("./lib/api.js").Conversation}} props */
function Then({ seq, then }) {
  const { fields, total, first, messages } = then;
  return html`<section class="panel" aria-label="conversation at that moment">
    <h2>As of event ${count(seq)}: ${shown(String(fields.status ?? ""))}, ${counted(total, "message")} <a href=${`/session${query({ id, at: seq })}`}>Open</a></h2>
    ${first > 1 && html`<p class="cut">The newest ${count(messages.length)} are shown here.</p>`}
    ${[...messages].reverse().map((entry) => html`<${Message} key=${entry.n} entry=${entry} />`)}
  </section>`;
}

mount(History, { "[": () => step(-1), "]": () => step(1) });
