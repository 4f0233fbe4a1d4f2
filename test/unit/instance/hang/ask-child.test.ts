import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { describe, expect, test } from 'vitest';
import { askChild, type ChildAddress } from '../../../../src/instance/hang/ask-child.js';
import { probeOneToken } from '../../../../src/instance/hang/one-token-probe.js';
import { SlotsEvidence } from '../../../../src/instance/hang/slots-evidence.js';
import { atEndOfTest } from '../../../helpers/cleanup.js';
import { eventually, withDeadline } from '../../../helpers/eventually.js';

type Answer = (req: IncomingMessage, res: ServerResponse) => void;

/** Something that listens where a child would, and notes what it is asked. */
async function listen(answers: Record<string, Answer>) {
  const asked: { path: string; key: string | undefined; body: string }[] = [];
  const server = createServer((req, res) => {
    let body = '';
    req.setEncoding('utf8').on('data', (text: string) => (body += text));
    req.on('end', () => {
      const path = req.url ?? '';
      asked.push({ path, key: req.headers.authorization, body });
      (answers[path] ?? status(404))(req, res);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  atEndOfTest(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  const address: ChildAddress = { port, apiKey: 'secret', apiPrefix: '/p' };
  const connections = () =>
    new Promise<number>((resolve, reject) =>
      server.getConnections((error, count) => (error ? reject(error) : resolve(count))),
    );
  return { address, asked, connections };
}

const status =
  (code: number, body = ''): Answer =>
  (_req, res) =>
    res.writeHead(code).end(body);
const silence: Answer = () => undefined;
const never = new AbortController().signal;
const patient = { timeoutMs: 10_000, signal: never };
const impatient = { timeoutMs: 200, signal: never };

describe('askChild', () => {
  test('asks under the prefix, with the key, on a connection that does not stay', async () => {
    const { address, asked, connections } = await listen({ '/p/x': status(200, 'yes') });
    const answer = await askChild(address, { method: 'POST', path: '/x', body: '{}', ...patient });
    expect(answer).toMatchObject({ status: 200 });
    expect(asked).toEqual([{ path: '/p/x', key: 'Bearer secret', body: '{}' }]);
    await eventually('the connection is closed', async () => (await connections()) === 0);
  });

  test('tells answers apart by their bodies', async () => {
    const { address } = await listen({
      '/p/a': status(200, 'a'),
      '/p/b': status(200, 'b'),
    });
    const digest = async (path: string) => {
      const answer = await askChild(address, { method: 'GET', path, ...patient });
      return typeof answer === 'object' ? answer.digest : expect.unreachable();
    };
    expect(await digest('/a')).toBe(await digest('/a'));
    expect(await digest('/a')).not.toBe(await digest('/b'));
  });

  test.each<[string, Answer]>([
    ['never answers', silence],
    ['answers with a head only', (_req, res) => res.writeHead(200).flushHeaders()],
    [
      'never ends its answer',
      (_req, res) => {
        const timer = setInterval(() => res.write('x'), 20);
        res.once('close', () => clearInterval(timer));
      },
    ],
  ])('has no answer, in time, from one that %s', async (_how, answer) => {
    const { address, connections } = await listen({ '/p/x': answer });
    const asked = askChild(address, { method: 'GET', path: '/x', ...impatient });
    expect(await withDeadline('it gives up', asked, 5_000)).toBe('late');
    await eventually('the connection is closed', async () => (await connections()) === 0);
  });

  test('knows a connection as broken where nobody listens, or the answer is broken off or too long', async () => {
    const { address } = await listen({
      '/p/broken': (_req, res) => {
        res.writeHead(200, { 'content-length': '10' });
        res.write('half', () => res.destroy());
      },
      '/p/long': (_req, res) => res.end(Buffer.alloc(17 * 1024 * 1024)),
    });
    for (const path of ['/broken', '/long']) {
      expect(await askChild(address, { method: 'GET', path, ...patient }), path).toBe('broken');
    }
    // Port 9 (discard) is served nowhere any more.
    expect(await askChild({ ...address, port: 9 }, { method: 'GET', path: '/', ...patient })).toBe('broken');
  });

  // What AbortSignal.any() and AbortSignal.timeout() make together was once collected, and then nothing gave up.
  test('gives up in time also when the garbage collector runs meanwhile', async () => {
    const { address } = await listen({ '/p/x': silence });
    setFlagsFromString('--expose-gc');
    const collectGarbage = runInNewContext('gc') as () => void;
    const asked = askChild(address, { method: 'GET', path: '/x', timeoutMs: 500, signal: never });
    for (let n = 0; n < 4; n += 1) {
      await delay(50);
      collectGarbage();
    }
    expect(await withDeadline('it gives up', asked, 5_000)).toBe('late');
  });

  test('gives up at once when it is not wanted any more', async () => {
    const { address } = await listen({ '/p/x': silence });
    const end = new AbortController();
    const asked = askChild(address, { method: 'GET', path: '/x', timeoutMs: 60_000, signal: end.signal });
    end.abort();
    expect(await withDeadline('it gives up', asked, 5_000)).toBe('not asked');
  });
});

describe('a one-token probe', () => {
  test('asks for one token', async () => {
    const { address, asked } = await listen({ '/p/completion': status(200, '{}') });
    expect(await probeOneToken(address, patient)).toBe('alive');
    expect(asked.map(({ path }) => path)).toEqual(['/p/completion']);
    expect(JSON.parse(asked[0]?.body ?? '')).toMatchObject({ n_predict: 1 });
  });

  test.each([400, 401, 404, 501])(
    'takes a refusal with %i as that of a child that is alive',
    async (code) => {
      const { address } = await listen({ '/p/completion': status(code) });
      expect(await probeOneToken(address, patient)).toBe('alive');
    },
  );

  // An encoder (BERT) has no logits: llama-server says so with 500.
  test('of an embedding model that has no tokens to give takes an embedding', async () => {
    const { address, asked } = await listen({
      '/p/completion': status(500),
      '/p/embedding': status(200, '[]'),
    });
    expect(await probeOneToken(address, patient)).toBe('alive');
    expect(JSON.parse(asked[1]?.body ?? '')).toEqual({ content: 'Hello' });
  });

  test.each([500, 501, 404])('that fails, has failed when embeddings give %i', async (code) => {
    const { address } = await listen({ '/p/completion': status(503), '/p/embedding': status(code) });
    expect(await probeOneToken(address, patient)).toEqual({ failedWith: 503 });
  });

  test('of which the connection breaks is broken', async () => {
    const cut: Answer = (req) => req.socket.resetAndDestroy();
    const { address } = await listen({ '/p/completion': cut });
    expect(await probeOneToken(address, patient)).toBe('broken');
    const { address: half } = await listen({ '/p/completion': status(500), '/p/embedding': cut });
    expect(await probeOneToken(half, patient)).toBe('broken');
  });

  test('that is not answered in time is none', async () => {
    const { address } = await listen({ '/p/completion': silence });
    expect(await probeOneToken(address, impatient)).toBe('no answer');
    const { address: half } = await listen({ '/p/completion': status(500), '/p/embedding': silence });
    expect(await probeOneToken(half, impatient)).toBe('no answer');
  });

  test.each<[string, Record<string, Answer>]>([
    ['a token', { '/p/completion': silence }],
    ['an embedding', { '/p/completion': status(500), '/p/embedding': silence }],
  ])(
    'that nobody wants any more while it waits for %s is called off, not unanswered',
    async (_for, answers) => {
      const { address, asked } = await listen(answers);
      const end = new AbortController();
      const probe = probeOneToken(address, { timeoutMs: 60_000, signal: end.signal });
      const questions = Object.keys(answers).length;
      await eventually('it is asked', () => asked.length === questions);
      end.abort();
      expect(await withDeadline('it gives up', probe, 5_000)).toBe('called off');
    },
  );
});

describe('slots', () => {
  async function look(answer: Answer, { isAwake = true, signal = never } = {}) {
    const child = await listen({ '/p/slots': (req, res) => answer(req, res) });
    const { address } = child;
    const evidence = new SlotsEvidence({ address, isAwake: () => isAwake, ...impatient, signal });
    return { ...child, evidence };
  }

  test('that change are progress, and that do not are none', async () => {
    let tokens = 1;
    const { evidence } = await look((req, res) => status(200, `[{"n_decoded":${tokens}}]`)(req, res));
    expect(await evidence.look()).toEqual({ kind: 'first' });
    expect(await evidence.look()).toEqual({ kind: 'none', said: '/slots did not change' });
    tokens = 2;
    expect(await evidence.look()).toEqual({ kind: 'progress' });
    expect(await evidence.look()).toMatchObject({ kind: 'none' });
  });

  test('that are not told in time are none, said so', async () => {
    const { evidence } = await look(silence);
    expect(await evidence.look()).toEqual({ kind: 'none', said: '/slots was not answered within 0.2 s' });
  });

  test('that nobody asks for any more tell nothing', async () => {
    const { evidence } = await look(silence, { signal: AbortSignal.abort() });
    expect(await evidence.look()).toEqual({ kind: 'unknown' });
  });

  test.each([501, 404])('that there are none of (%i) are not asked for again', async (code) => {
    const { evidence, asked } = await look(status(code));
    expect(await evidence.look()).toEqual({ kind: 'unknown' });
    expect(await evidence.look()).toEqual({ kind: 'unknown' });
    expect(asked).toHaveLength(1);
  });

  test('answered with another error tell nothing', async () => {
    const { evidence, asked } = await look(status(503));
    expect(await evidence.look()).toEqual({ kind: 'unknown' });
    expect(await evidence.look()).toEqual({ kind: 'unknown' });
    expect(asked).toHaveLength(2);
  });

  test('of a model that sleeps are not asked for: that would wake it', async () => {
    const { evidence, asked } = await look(status(200), { isAwake: false });
    expect(await evidence.look()).toEqual({ kind: 'unknown' });
    expect(asked).toEqual([]);
  });
});
