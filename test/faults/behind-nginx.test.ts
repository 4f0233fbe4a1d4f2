/** The real nginx in front, with an idle limit that the load of a model exceeds. */
import { describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { counting, endless, piecesOf, writeModels } from '../helpers/known-answer-models.js';
import { nginxObstacle, startNginx } from '../helpers/nginx.js';
import { jsonPost, rawExchange, rawRequest, type RawExchange } from '../helpers/raw-http.js';
import { childrenOf } from '../helpers/real-llama-server.js';
import { startSupervisor, type SupervisorProcess } from '../helpers/supervisor-process.js';
import { gatedLlamaServer, type GatedLlamaServer } from './gated-llama-server.js';

const counter = counting(50);

interface Behind {
  readonly gated: GatedLlamaServer;
  readonly supervisor: SupervisorProcess;
  /** Of nginx. */
  readonly url: string;
}

/** What nginx takes for a dead server: two seconds without a byte. */
async function serveBehindNginx(...args: readonly string[]): Promise<Behind> {
  const gated = gatedLlamaServer();
  const dir = await writeModels({ slow: counter, talker: endless() });
  const supervisor = await startSupervisor({
    llamaServer: gated.path,
    args: ['--models-dir', dir, '--stream-ping-interval', '0.5', ...args],
  });
  return { gated, supervisor, url: await startNginx(supervisor.url, 'proxy_read_timeout 2s;') };
}

function completes(url: string, model: string): RawExchange {
  return rawExchange(
    `${url}/completion`,
    jsonPost({ model, prompt: 'Count.', stream: true, n_predict: model === 'slow' ? 500 : -1 }),
  );
}

async function waitingFor(url: string, model: string): Promise<number> {
  const { data } = JSON.parse((await rawRequest(`${url}/models`)).body.toString()) as {
    data: { id: string; waiting: number }[];
  };
  return data.find(({ id }) => id === model)?.waiting ?? NaN;
}

const commentsIn = (exchange: RawExchange): number =>
  exchange.received().toString().match(/^: /gm)?.length ?? 0;

const textIn = (body: Buffer): string[] =>
  Array.from(
    body.toString().matchAll(/^data: (\{.*\})$/gm),
    ([, json = '']) => (JSON.parse(json) as { content: string }).content,
  ).filter((text) => text !== '');

describe.skipIf(nginxObstacle !== '')(`behind nginx${nginxObstacle && ` (${nginxObstacle})`}`, () => {
  it('a stream outlasts a load that is longer than proxy_read_timeout, and arrives piece by piece', async () => {
    const { gated, url } = await serveBehindNginx('--stream-ping-after', '0.5');
    const exchange = completes(url, 'slow');
    // Half a second lies between two of them: that is more than nginx waits for one byte.
    await eventually('comments come for more than two seconds', () => commentsIn(exchange) >= 6);
    gated.open('slow');
    const { status, headers, body, complete } = await exchange.ended;
    expect({ status, complete, type: headers['content-type'] }).toEqual({
      status: 200,
      complete: true,
      type: 'text/event-stream',
    });
    expect(textIn(body)).toEqual(piecesOf(counter));
  });

  it('one that is not begun early is given up by nginx, and its load is not', async () => {
    const { gated, supervisor, url } = await serveBehindNginx('--stream-ping-after', '0');
    const { status } = await completes(url, 'slow').ended;
    expect(status).toBe(504);
    await eventually('nobody waits', async () => (await waitingFor(supervisor.url, 'slow')) === 0);
    gated.open('slow');
    const { body, complete } = await completes(url, 'slow').ended;
    expect(complete).toBe(true);
    expect(textIn(body)).toEqual(piecesOf(counter));
  });

  it('a load that fails after the stream was begun is an error event, and no whole end', async () => {
    const { gated, url } = await serveBehindNginx('--stream-ping-after', '0.5');
    const exchange = completes(url, 'slow');
    await eventually('the stream is begun', () => commentsIn(exchange) >= 1);
    gated.fail('slow', 'error: the weights are of rubber');
    const { status, body, complete } = await exchange.ended;
    expect({ status, complete }).toEqual({ status: 200, complete: false });
    expect(body.toString()).toMatch(/^event: error\ndata: \{.*the weights are of rubber.*\}\n\n$/m);
  });

  it('a client that leaves nginx waits no longer, and a process that dies in its answer is seen', async () => {
    const { gated, supervisor, url } = await serveBehindNginx('--stream-ping-after', '0.5');
    const waiting = completes(url, 'slow');
    await eventually('it waits', async () => (await waitingFor(supervisor.url, 'slow')) === 1);
    waiting.abort();
    await eventually('nobody waits', async () => (await waitingFor(supervisor.url, 'slow')) === 0);

    gated.open('talker');
    const stream = completes(url, 'talker');
    await eventually('it talks', () => stream.received().includes('lap-3'));
    const [talker] = childrenOf(supervisor).filter(({ command }) => command.includes('talker'));
    if (!talker) throw new Error('there is no process of the talker');
    process.kill(talker.pid, 'SIGKILL');
    const { body, complete } = await stream.ended;
    expect(complete).toBe(false);
    expect(body.toString()).toMatch(/^event: error\ndata: \{.*SIGKILL.*\}\n\n$/m);
  });
});
