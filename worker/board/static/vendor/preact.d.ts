export type VNode = { type: unknown; props: unknown; key: unknown };
export type Child = VNode | string | number | boolean | null | undefined | Child[];
export const Fragment: unknown;
export class Component<P = {}, S = {}> {
  constructor(props: P);
  props: P & { children?: Child };
  state: S;
  setState(state: Partial<S>): void;
  render(props: P, state: S): Child;
}
export function h(type: unknown, props: unknown, ...children: Child[]): VNode;
export function render(node: Child, parent: Element): void;
export function html(strings: TemplateStringsArray, ...values: unknown[]): VNode;
export function useCallback<F>(f: F, inputs: unknown[]): F;
export function useEffect(effect: () => void | (() => void), inputs?: unknown[]): void;
export function useLayoutEffect(effect: () => void | (() => void), inputs?: unknown[]): void;
export function useMemo<T>(make: () => T, inputs: unknown[]): T;
export function useRef<T>(value: T): { current: T };
export function useState<T>(value: T | (() => T)): [T, (next: T | ((old: T) => T)) => void];
