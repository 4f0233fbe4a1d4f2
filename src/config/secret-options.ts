/**
 * Canonical keys of options whose values are of no use to whoever may ask for a model: the key to everything its owner
 * has on the hub, and definitions of MCP servers, which hold the keys to those.
 */
const secretKeys: ReadonlySet<string> = new Set(['hf-token', 'mcp-servers-json']);

/** User and password in a URL. */
const login = /(?<=:\/\/)[^\s/?#@]*@/g;

/** The names of those options and of API keys, their variables' among them, and what follows them. */
const namedSecret =
  /(?<![a-z0-9])(hft|hf[-_]token|(?:llama_)?api[-_]key|(?:llama_arg_)?mcp[-_]servers[-_]json)(?![\w.-]).*/is;

/** Whether what a file gives under this name is secret. */
export function namesSecret(name: string): boolean {
  return namedSecret.test(name);
}

/** Whether the text that an option has been given holds a secret, or is one. */
export function isSecret(key: string, text: string): boolean {
  return secretKeys.has(key) || text.search(login) !== -1;
}

/** The text of an option as a list can show it: `***` stands for what is secret. */
export function withoutSecret(key: string, text: string): string {
  return secretKeys.has(key) ? '***' : text.replace(login, '***@');
}

/** A line that somebody has written wrongly, as a message can quote it. */
export function withoutSecretsIn(line: string): string {
  return line.replace(namedSecret, '$1 ***').replace(login, '***@');
}
