import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import getPort from 'get-port';
import { describe, expect, test } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { endless, writeModels } from '../helpers/known-answer-models.js';
import { rawRequest } from '../helpers/raw-http.js';
import { realLlamaServer } from '../helpers/real-llama-server.js';
import { runInstance, type InstanceRun } from './run-instance.js';

/** A port of loopback that a stranger listens on until the end of the test. */
async function takenPort(): Promise<number> {
  const stranger = createServer((socket) => socket.destroy()).listen(0, '127.0.0.1');
  await once(stranger, 'listening');
  atEndOfTest(() => void stranger.close());
  return (stranger.address() as AddressInfo).port;
}

/** Gives these ports in turn, and notes how many were asked for. */
function portsInTurn(...ports: number[]) {
  const given: number[] = [];
  const freePort = (): Promise<number> => {
    const port = ports[given.length];
    if (port === undefined) return Promise.reject(new Error('one port too many was asked for'));
    given.push(port);
    return Promise.resolve(port);
  };
  return { given, freePort };
}

/** Sends a request as the proxy does; resolves with the status when the answer has ended. */
function post({ instance }: InstanceRun, path: string): Promise<number> {
  return new Promise((resolve, reject) => {
    let status = 0;
    const { upstream } = instance;
    if (!upstream) throw new Error('the child is not ready');
    const body = Buffer.from('{}');
    const headers = ['content-type', 'application/json', 'content-length', String(body.length)];
    const finish = upstream.dispatch(
      { method: 'POST', path, headers, body },
      {
        onRequestStart: () => undefined,
        onResponseStart: (_controller, statusCode) => (status = statusCode),
        onResponseData: () => undefined,
        onResponseEnd: () => {
          finish(false);
          resolve(status);
        },
        onResponseError: (_controller, error) => reject(error),
      },
    );
  });
}

describe('a child whose port was taken meanwhile', () => {
  test('is started once more with another port', async () => {
    const ports = portsInTurn(await takenPort(), await getPort());
    const run = runInstance({ freePort: ports.freePort });
    await run.reaches('ready');

    expect(run.journal.of('start').map(({ port }) => port)).toEqual(ports.given);
    expect(run.instance.port).toBe(ports.given[1]);
    expect(run.log).toContain('the port was taken meanwhile; trying another');
    // For those who wait it is one load: nothing has failed.
    expect(run.states).not.toContain('exited');
    expect(run.events.map(({ type }) => type)).not.toContain('model.unloaded');
  });

  test('has another key in its second attempt: who took the port may have heard the first', async () => {
    const { freePort } = portsInTurn(await takenPort(), await getPort());
    const run = runInstance({ freePort });
    await run.reaches('ready');
    const keys = run.journal.of('start').map(({ env }) => env['LLAMA_API_KEY']);
    expect(new Set(keys).size).toBe(2);
  });

  // The first child's end once ended the watch of the second, whose probe then said "no answer" without being sent.
  test('is watched for hangs in its second attempt, and not taken for hung by the end of the first', async () => {
    const { freePort } = portsInTurn(await takenPort(), await getPort());
    const run = runInstance({ freePort, hangTimeoutMs: 600_000, behaviour: { echo: { status: 500 } } });
    await run.reaches('ready');
    for (let n = 0; n < 3; n += 1) expect(await post(run, '/infill')).toBe(500);
    await eventually('the child was probed', () =>
      run.journal.of('answered').some(({ url, status }) => url === '/completion' && status === 200),
    );
    expect(run.instance.state.name).toBe('ready');
    expect(run.log).not.toContain('hangs; stopping it');
  });

  test('has failed when that happens twice, with what it said', async () => {
    const { freePort, given } = portsInTurn(await takenPort(), await takenPort());
    const run = runInstance({ freePort });
    const outcome = await run.outcome();
    expect(outcome).toMatchObject({
      kind: 'failed',
      phase: 'loading',
      message: 'exited with code 1',
      exitCode: 1,
    });
    expect(outcome).toHaveProperty(
      'lastLines',
      expect.arrayContaining([expect.stringContaining(`port: ${given[1] ?? 0}`)]),
    );
    expect(run.journal.of('start')).toHaveLength(2);
  });

  test('is not started again when it was told to stop meanwhile', async () => {
    const first = await takenPort();
    let attempts = 0;
    const run = runInstance({
      freePort: async () => {
        attempts += 1;
        if (attempts === 1) return first;
        run.instance.stop('unloaded');
        return getPort();
      },
    });
    expect(await run.outcome()).toMatchObject({ kind: 'stopped', reason: 'unloaded' });
    expect(run.journal.of('start')).toHaveLength(1);
  });

  test('is started once more also when it is the real llama-server', async () => {
    const model = join(await writeModels({ lap: endless() }), 'lap.gguf');
    const ports = portsInTurn(await takenPort(), await getPort());
    const binary = realLlamaServer();
    const run = runInstance({
      command: (port) => [
        binary,
        ...['--host', '127.0.0.1', '--port', String(port), '--alias', 'lap'],
        ...['--model', model, '--threads', '1', '--ctx-size', '512'],
      ],
      freePort: ports.freePort,
    });
    await run.reaches('ready');
    expect(run.instance.port).toBe(ports.given[1]);
    expect(run.instance.state).toMatchObject({ info: { id: 'lap' } });
    expect((await rawRequest(`http://127.0.0.1:${run.instance.port}/health`)).status).toBe(200);
    expect(run.events.filter(({ type }) => type === 'model.loading')).toHaveLength(2);
    run.instance.stop('evicted');
    expect(await run.outcome()).toEqual({ kind: 'stopped', reason: 'evicted', exitCode: 0 });
  });
});

test('a child that exits for another reason is not started again', async () => {
  const { freePort, given } = portsInTurn(await getPort());
  const run = runInstance({ freePort, behaviour: { exitWhileLoading: { lines: ['out of memory'] } } });
  expect(await run.outcome()).toMatchObject({ kind: 'failed', phase: 'loading' });
  expect(given).toHaveLength(1);
});
