import { readFileSync } from 'node:fs';
import type { Dispatcher } from 'undici';
import { NvidiaSmi } from '../../src/instance/hang/nvidia-evidence.js';
import { watchChild } from '../../src/instance/hang/watch-child.js';
import { WatchedHandler } from '../../src/instance/hang/watched-handler.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import type { InstanceRun } from '../process/run-instance.js';

/** A request of a watched child, so far. */
export interface WatchedExchange {
  status: number | undefined;
  body: string;
  ended: 'whole' | 'broken' | undefined;
  /** Does not read, or reads on. */
  pause: () => void;
  resume: () => void;
  /** Gives it up. */
  leave: () => void;
}

export interface WatchedRun {
  readonly pid: number;
  /** Why it was said to hang, so far. */
  readonly reasons: readonly string[];
  post: (path: string, body: unknown) => WatchedExchange;
  /** Waits for the verdict. */
  hangs: (deadlineMs?: number) => Promise<string>;
}

/** Watches the child of an instance that is ready. Linux only: the child's key is read from its environment. */
export async function watchRun(
  run: InstanceRun,
  { hangTimeoutMs }: { hangTimeoutMs: number },
): Promise<WatchedRun> {
  await run.reaches('ready');
  const { pid, port, upstream } = run.instance;
  if (pid === undefined || !upstream) throw new Error('the child is not there');
  const environment = readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0');
  const apiKey = environment.find((line) => line.startsWith('LLAMA_API_KEY='))?.slice(14) ?? '';
  const end = new AbortController();
  atEndOfTest(() => end.abort());
  const reasons: string[] = [];
  const watch = watchChild({
    pid,
    address: { port, apiKey, apiPrefix: '' },
    hangTimeoutMs,
    isAwake: () => run.instance.state.name === 'ready',
    onHang: (reason) => reasons.push(reason),
    signal: end.signal,
    nvidiaSmi: new NvidiaSmi(),
  });
  return {
    pid,
    reasons,
    post: (path, body) => {
      const text = Buffer.from(JSON.stringify(body));
      const headers = ['content-type', 'application/json', 'content-length', String(text.length)];
      let controller: Dispatcher.DispatchController | undefined;
      const exchange: WatchedExchange = {
        status: undefined,
        body: '',
        ended: undefined,
        pause: () => controller?.pause(),
        resume: () => controller?.resume(),
        leave: () => controller?.abort(new Error('the client left')),
      };
      const handler = new WatchedHandler(
        {
          onRequestStart: (given) => (controller = given),
          onResponseStart: (_controller, status) => (exchange.status = status),
          onResponseData: (_controller, chunk) => (exchange.body += chunk.toString()),
          onResponseEnd: () => (exchange.ended = 'whole'),
          onResponseError: () => (exchange.ended = 'broken'),
        },
        watch,
      );
      upstream.dispatch({ method: 'POST', path, headers, body: text }, handler);
      return exchange;
    },
    hangs: async (deadlineMs = 15_000) =>
      await eventually('the child is said to hang', () => reasons[0], { deadlineMs }),
  };
}
