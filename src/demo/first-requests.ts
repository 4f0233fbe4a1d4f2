/** What a person can paste into a terminal next: one line that lists the models, and one that talks to one. */
export function firstRequests(
  endpoint: { readonly url: string; readonly socketPath?: string },
  models: readonly { readonly id: string; readonly problem: string | undefined }[],
  needsKey: boolean,
): string {
  const { url, socketPath } = endpoint;
  const where = socketPath === undefined ? url : `unix:${socketPath}`;
  const curl = socketPath === undefined ? 'curl' : `curl --unix-socket ${shellQuote(socketPath)}`;
  const key = needsKey ? ` -H 'Authorization: Bearer YOUR_API_KEY'` : '';
  const usable = models.filter(({ problem }) => problem === undefined);
  const model = usable.find(({ id }) => id === 'demo-hello') ?? usable[0];
  const lines = [
    ``,
    `llama-supervisor serves ${usable.length} ${usable.length === 1 ? 'model' : 'models'} at ${where}`,
    ``,
    `  ${curl} ${url}/v1/models${key}`,
  ];
  if (model) {
    const body = JSON.stringify({ model: model.id, messages: [{ role: 'user', content: 'Hello' }] });
    lines.push(
      `  ${curl} ${url}/v1/chat/completions${key} -H 'Content-Type: application/json' -d ${shellQuote(body)}`,
    );
  }
  return `${lines.join('\n')}\n\n`;
}

function shellQuote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
