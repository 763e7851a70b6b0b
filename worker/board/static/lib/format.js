// Times, numbers and sizes as people read them.

const NUMBER = new Intl.NumberFormat("en-US");
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const YEAR = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });

/** @param {number} value */
export const count = (value) => NUMBER.format(value);

/**
 * "1 message", "2 messages".
 * @param {number} value
 * @param {string} one
 * @param {string} [many]
 */
export const counted = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/** @param {number} value */
export function bytes(value) {
  if (value < 1024) return `${value} B`;
  for (const unit of ["KiB", "MiB"]) {
    value /= 1024;
    if (value < 1024) return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${unit}`;
  }
  return `${(value / 1024).toFixed(1)} GiB`;
}

/**
 * How long ago, in one unit.
 * @param {number} time milliseconds since the epoch
 * @param {number} [now]
 */
export function age(time, now = Date.now()) {
  const seconds = Math.floor((now - time) / 1000);
  if (!Number.isFinite(seconds)) return "?";
  if (seconds < 10) return "now";
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${count(Math.floor(seconds / 86400))} d`;
}

/** @param {number} time */
const valid = (time) => typeof time === "number" && Math.abs(time) <= 8.64e15;

/**
 * A moment in the reader's time zone: the clock today, the day before it on other days.
 * @param {number} time
 * @param {number} [now]
 */
export function moment(time, now = Date.now()) {
  if (!valid(time)) return String(time);
  const date = new Date(time);
  const today = new Date(now);
  if (date.toDateString() === today.toDateString()) return CLOCK.format(date);
  const day = date.getFullYear() === today.getFullYear() ? DAY : YEAR;
  return `${day.format(date)} ${CLOCK.format(date)}`;
}

/** The reader's time zone, such as "Europe/Berlin (GMT+1)". */
export function zone() {
  const format = new Intl.DateTimeFormat("en-GB", { timeZoneName: "longOffset" });
  const offset = format.formatToParts(new Date()).find(({ type }) => type === "timeZoneName")?.value ?? "";
  const name = format.resolvedOptions().timeZone;
  return name === "UTC" ? name : `${name} (${offset})`;
}

/**
 * A text that another sentence can follow.
 * @param {string} text
 */
export const sentence = (text) => (/[.!?:]$/.test(text.trimEnd()) ? text : `${text}.`);

/** @param {number} time */
export const iso = (time) => (valid(time) ? new Date(time).toISOString() : String(time));

/**
 * A word that a shell takes as it is.
 * @param {string} text
 */
export const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);
