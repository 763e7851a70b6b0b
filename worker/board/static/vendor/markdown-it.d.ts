export type Token = {
  type: string;
  tag: string;
  nesting: -1 | 0 | 1;
  content: string;
  info: string;
  markup: string;
  hidden: boolean;
  children: Token[] | null;
  attrGet(name: string): string | null;
};
export default class MarkdownIt {
  constructor(options: object);
  disable(rules: string[]): this;
  parse(text: string, env: object): Token[];
}
