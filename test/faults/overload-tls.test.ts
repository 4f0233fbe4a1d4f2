/** More clients than may be connected, over TLS: most of them never say a word. */
import { Agent, request } from 'node:https';
import { readFileSync } from 'node:fs';
import { expect, it, vi } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { hasOpenssl, makeCertificate, tlsArgs } from '../helpers/certificate.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { openSocket } from '../http/raw-socket.js';
import { serveFakes } from '../http/serve-fakes.js';

vi.setConfig({ testTimeout: 120_000 });
const patience = { deadlineMs: 60_000 };
const max = 8;

it.skipIf(!hasOpenssl)(
  'connections that never get to the end of their handshake give way at --connections-max; those in use do not (skipped without openssl)',
  async () => {
    const certificate = makeCertificate();
    const service = await serveFakes({
      models: { paced: { tokenIntervalMs: 20 } },
      args: ['--connections-max', String(max), ...tlsArgs(certificate)],
    });
    const agent = (): Agent => {
      const made = new Agent({ ca: readFileSync(certificate.cert), keepAlive: true });
      atEndOfTest(() => made.destroy());
      return made;
    };

    let words = 0;
    let isCut = false;
    const body = JSON.stringify({ model: 'paced', stream: true, max_tokens: -1 });
    const streaming = request(
      `${service.url}/v1/completions`,
      { method: 'POST', agent: agent() },
      (answer) => {
        answer.on('data', () => (words += 1)).on('close', () => (isCut = true));
        answer.on('error', () => undefined);
      },
    );
    atEndOfTest(() => void streaming.destroy());
    streaming.on('error', () => undefined).end(body);
    await eventually('the stream runs', () => words > 0, patience);

    const silent = Array.from({ length: max - 1 }, () => openSocket(service.supervisor.port));
    await eventually('all are connected', () => silent.every(({ socket }) => !socket.connecting), patience);

    const health = (): Promise<number | undefined> =>
      withDeadline(
        'an answer, or a connection that is cut',
        new Promise((resolve) => {
          request(`${service.url}/health`, { agent: agent() }, (answer) => {
            answer.resume();
            resolve(answer.statusCode);
          })
            .once('error', () => resolve(undefined))
            .end();
        }),
        60_000,
      );
    // As many as there are silent ones, and more: those who were served give way in their turn.
    for (let client = 0; client < 2 * max; client += 1) {
      await eventually('another client is served', async () => (await health()) === 200, patience);
    }
    for (const client of silent) await client.closed('a silent connection has given way');

    const before = words;
    await eventually('the stream goes on', () => words > before, patience);
    expect(isCut).toBe(false);
  },
);
