// How the daemon, its projections and the database are.
import { html, useEffect, useState } from "./vendor/preact.js";
import { get, query } from "./lib/api.js";
import { bytes, count, counted, moment, quoted } from "./lib/format.js";
import { Command, Failure, Frame, Hint, mount, useFollow, useStatus } from "./lib/frame.js";
import { watchNotifications } from "./lib/notify.js";
import { shown } from "./lib/text.js";

/** @typedef {import("./vendor/preact.js").Child} Child */

function Health() {
  useFollow();
  useEffect(watchNotifications, []);
  const { status, error } = useStatus();
  return html`<${Frame} page="Health" title="Health">
    <h1 class="unseen">Health</h1>
    ${!status && (error ? html`<${Failure} error=${error} />` : html`<p class="loading">Loading…</p>`)}
    ${status && html`<${Daemons} status=${status} /><${Projections} status=${status} /><${Sizes} status=${status} /><${Doctor} />`}
  <//>`;
}

/** @param {{status: any}} props */
function Daemons({ status }) {
  return html`<section class="panel" aria-label="daemon"><h2>Daemon</h2>
    ${!status.daemons.length && html`<p>None is running. <${Command} text=${`projector run -d ${quoted(status.database)}`} /></p>`}
    ${status.daemons.map((/** @type {any} */ one) => html`<p><b>${one.stopped ? "suspended" : "running"}</b>${one.pid ? `, process ${one.pid}` : ""}${one.host && ` on ${one.host}`}: ${shown(one.running.join(", "))}</p>`)}
  </section>`;
}

/** @param {{status: any}} props */
function Projections({ status }) {
  return html`<section class="panel" aria-label="projections"><h2>Projections</h2>
    <div class="wide" tabindex="0" role="group" aria-label="projections"><table class="stack"><thead><tr>${["name", "state"].map((one) => html`<th scope="col">${one}</th>`)}
      ${["version", "position", "behind", "rows", "quarantined", "skipped"].map((one) => html`<th scope="col" class="figure">${one}</th>`)}</tr></thead>
    <tbody>${status.projections.map((/** @type {any} */ one) => html`<tr key=${one.name}><th scope="row">${shown(one.name)}</th><td class="state" data-label="state">${state(one, status)}</td>
      <td class="figure" data-label="version">${one.version === null ? "–" : Math.abs(one.version)}</td><td class="figure" data-label="position">${count(one.position)}</td>
      <td class="figure" data-label="behind">${one.lag_events ? html`${counted(one.lag_events, "event")}${one.lag_seconds === null ? "" : `, ${one.lag_seconds.toFixed(1)} s`}` : "0"}</td>
      <td class="figure" data-label="rows">${count(one.views)}</td>
      <td class="figure" data-label="quarantined">${one.quarantined ? html`<a href=${`/quarantine${query({ projection: one.name })}`}>${count(one.quarantined)}</a>${one.dismissed ? html`, ${one.dismissed === one.quarantined ? "all" : count(one.dismissed)} of them dismissed` : ""}` : "0"}</td>
      <td class="figure" data-label="skipped">${count(one.skipped)}</td></tr>`)}</tbody></table></div>
    ${status.projections.flatMap((/** @type {any} */ one) => one.deferred).slice(0, 5).map((/** @type {any} */ view) => html`<p class="cut">${shown(view.key)} is written every ${view.delay_s} s, as it has ${bytes(view.bytes)} and a write takes ${view.cost_ms} ms.</p>`)}
  </section>`;
}

/**
 * @param {any} one
 * @param {any} status
 * @returns {Child}
 */
function state(one, status) {
  const report = one.state ?? {};
  if (!one.fits_log) return html`<b class="bad">does not fit the log</b>`;
  if (report.state === "failed") return html`<b class="bad">failing since ${moment(report.since)}</b>: ${shown(report.why)}`;
  if (report.state === "rebuilding") {
    if (!status.daemon.alive) return "a rebuild was interrupted; the next run does it again";
    return html`being rebuilt as version ${report.version}: ${count(report.events)} of about ${count(report.total)} events
      <progress max=${report.total || 1} value=${report.events} aria-label=${`rebuild of ${one.name}`}></progress>`;
  }
  if (report.state === "old") return "outdated; the next daemon rebuilds it";
  if (status.daemon.alive && !status.daemon.running.includes(one.name)) return "the daemon does not run it";
  return status.daemon.alive ? (one.lag_events ? "catching up" : "up to date") : "stands still";
}

/** @param {{status: any}} props */
function Sizes({ status }) {
  /** @type {[string, Child][]} */
  const facts = [
    ["database", shown(status.database)],
    ["schema", shown(status.schema)],
    ["newest event", count(status.newest)],
    ["events", count(status.events)],
    [status.wal_warning_bytes ? "file" : "size", bytes(status.file_bytes)],
  ];
  if (status.wal_warning_bytes)
    facts.push(["write-ahead log", html`${bytes(status.wal_bytes)}${status.wal_bytes > status.wal_warning_bytes ? html` <b class="bad">large</b>` : ""}${status.wal_readers.length ? `, read all the time by process ${status.wal_readers.join(", ")}` : ""}`]);
  facts.push(["board", `version ${status.board?.version}, ${status.board?.actions ? "actions allowed" : "read-only"}`]);
  return html`<section class="panel sheet" aria-label="database"><h2>Database</h2><dl>${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl></section>`;
}

function Doctor() {
  const [state, setState] = useState(/** @type {{busy: boolean, checks: any[] | null, error: unknown}} */ ({ busy: false, checks: null, error: null }));
  const ask = async () => {
    setState({ busy: true, checks: null, error: null });
    try {
      setState({ busy: false, checks: (await get("doctor")).checks, error: null });
    } catch (error) {
      setState({ busy: false, checks: null, error });
    }
  };
  return html`<section class="panel" aria-label="doctor"><h2>Doctor</h2>
    <p><button type="button" onClick=${ask} disabled=${state.busy}>${state.busy ? "Examining…" : state.checks ? "Examine again" : "Examine the database"}</button>
      ${" "}<span class="muted">as <code>projector doctor</code> does, where the board runs</span></p>
    ${state.error && html`<${Failure} error=${state.error} />`}
    ${state.checks && html`<table class="stack"><thead><tr><th scope="col">level</th><th scope="col">check</th><th scope="col">found</th></tr></thead>
      <tbody>${state.checks.map((one) => html`<tr><td data-label="level" class=${one.level === "fail" ? "bad" : one.level === "warn" ? "warned" : "muted"}>${one.level}</td><th scope="row">${shown(one.name)}</th>
        <td data-label="found">${shown(one.found)}${one.fix && html`<p><${Hint} text=${one.fix} /></p>`}</td></tr>`)}</tbody></table>`}
  </section>`;
}

mount(Health);
