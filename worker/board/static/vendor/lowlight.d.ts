export type Hast = {
  type: string;
  value?: string;
  properties?: { className?: string[] };
  children?: Hast[];
};
export const lowlight: {
  highlight(language: string, text: string): Hast;
  registered(language: string): boolean;
};
