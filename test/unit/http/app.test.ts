import { describe, expect, it } from 'vitest';
import { createApp, type AppOptions } from '../../../src/http/app.js';
import { KeyRing } from '../../../src/http/auth.js';

describe.each(['', '/llama'])('createApp with the prefix "%s"', (apiPrefix) => {
  const cors = { origins: '*', methods: '*', headers: '*', credentials: true };
  const app = createApp({
    apiPrefix,
    keys: new KeyRing([]),
    cors,
    features: {},
    props: {},
  } as unknown as AppOptions);

  /** The route that a request is counted under. Its client has left already, so that handlers have nothing to do. */
  async function countedAs(method: string, path: string): Promise<string> {
    const env = {
      incoming: { url: path, method, headers: { 'content-encoding': 'gzip' } },
      outgoing: { destroyed: true, destroy: () => undefined },
      trace: { route: 'other', fail: () => undefined },
    };
    await app.request(path, { method }, env);
    return env.trace.route;
  }

  it.each([
    ['GET', '/health', '/health'],
    ['HEAD', '/v1/health', '/v1/health'],
    ['GET', '/props', '/props'],
    ['POST', '/v1/chat/completions', '/v1/chat/completions'],
    ['POST', '/slots/7?action=erase', '/slots/:id_slot'],
    ['POST', '/slots/anything', '/slots/:id_slot'],
    ['POST', '/infil%6C', '/infill'],
    ['GET', '/nope', 'other'],
    ['DELETE', '/infill', 'other'],
  ])('counts %s %s under %s', async (method, path, route) => {
    expect(await countedAs(method, `${apiPrefix}${path}`)).toBe(route);
  });
});
