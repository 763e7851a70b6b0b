// Values of the API as JSON text.

/**
 * Whether a string was too long to send: then its beginning came.
 * @param {unknown} value
 * @returns {value is {cut: number, text: string}}
 */
export const isCut = (value) =>
  typeof value === "object" && value !== null && "cut" in value && "text" in value &&
  typeof value.cut === "number" && typeof value.text === "string" && Object.keys(value).length === 2;

/**
 * A string, whether or not it was cut.
 * @param {unknown} value
 * @returns {{text: string, cut: number | null} | null}
 */
export function asText(value) {
  if (typeof value === "string") return { text: value, cut: null };
  return isCut(value) ? { text: value.text, cut: value.cut } : null;
}

/** @param {unknown} value */
const isWide = (value) =>
  typeof value === "object" && value !== null && "int" in value &&
  typeof value.int === "string" && /^-?\d+$/.test(value.int) && Object.keys(value).length === 1;

/**
 * Indented JSON; integers that JavaScript would round stand as they were written, and a string
 * that was cut says so.
 * @param {unknown} value
 * @returns {string}
 */
export function pretty(value) {
  return write(value, "");
}

/**
 * @param {unknown} value
 * @param {string} indent
 * @returns {string}
 */
function write(value, indent) {
  if (isWide(value)) return /** @type {{int: string}} */ (value).int;
  if (isCut(value)) return `${JSON.stringify(value.text)}… (${value.cut} bytes)`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value) ?? "null";
  const deeper = `${indent}  `;
  const [open, close, items] = Array.isArray(value)
    ? ["[", "]", value.map((one) => write(one, deeper))]
    : ["{", "}", Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${write(one, deeper)}`)];
  return items.length ? `${open}\n${deeper}${items.join(`,\n${deeper}`)}\n${indent}${close}` : open + close;
}

/**
 * Whether any string in a value was cut.
 * @param {unknown} value
 * @returns {boolean}
 */
export function hasCut(value) {
  if (isCut(value)) return true;
  return typeof value === "object" && value !== null && Object.values(value).some(hasCut);
}
