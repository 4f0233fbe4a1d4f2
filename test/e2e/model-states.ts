/**
 * Brings a model of a router, the native one or ours, into each of its states and keeps it there: a process that is
 * stopped by SIGSTOP neither ends its load nor exits. Needs /proc.
 */
import { eventually } from '../helpers/eventually.js';
import { descendants } from '../helpers/processes.js';
import { chat, modelEntry, post, untilStatus } from '../helpers/supervisor-client.js';
import type { Pair } from './http-oracle.js';

export type ModelState = 'unloaded' | 'loading' | 'loaded' | 'sleeping' | 'stopping' | 'failed';

/** The same done to both routers at once, and what came of it at each. */
export async function atBoth<T>(
  { native, ours }: Pick<Pair, 'native' | 'ours'>,
  what: (url: string) => Promise<T>,
): Promise<{ native: T; ours: T }> {
  const [theirs, own] = await Promise.all([what(native), what(ours)]);
  return { native: theirs, ours: own };
}

/** The process that runs a model at a router of this test; rejects when there is none within seconds. */
export function processOf(url: string, model: string): Promise<number> {
  return eventually(`${model} has a process`, async () => {
    const { args } = (await modelEntry(url, model)).status;
    const port = args[args.indexOf('--port') + 1];
    return descendants(process.pid).find(({ command }) => `${command} `.includes(` --port ${port} `))?.pid;
  });
}

/** Stops the model's process where it is. @returns lets it go on */
export async function freeze(url: string, model: string): Promise<() => void> {
  const pid = await processOf(url, model);
  process.kill(pid, 'SIGSTOP');
  return () => {
    try {
      process.kill(pid, 'SIGCONT');
    } catch (error) {
      // It has been killed meanwhile.
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
    }
  };
}

/** Rejects when the load is refused. */
export async function load(url: string, model: string): Promise<void> {
  const { status, text } = await post(url, '/models/load', { model });
  if (status !== 200) throw new Error(`the load of ${model} was answered with ${status}: ${text}`);
}

/** Loads the model, and waits until it has given an answer. */
export async function loadAndWait(url: string, model: string): Promise<void> {
  await load(url, model);
  await untilStatus(url, model, 'loaded');
  await untilSettled(url, model);
}

/**
 * llama-server forgets an exit command that comes after it has become ready and before its loop has begun, and the native
 * router then waits for its stop timeout. An answer shows that the loop has begun.
 */
export async function untilSettled(url: string, model: string): Promise<void> {
  await chat(url, model, { max_tokens: 1 });
}

/**
 * Brings an unloaded model into a state.
 *
 * @param model for `loading` one that takes its time, for `sleeping` one that falls asleep, for `failed` one that fails
 * @returns lets go of it: what it does in that state goes on
 */
export async function bringInto(state: ModelState, url: string, model: string): Promise<() => void> {
  const nothing = (): void => undefined;
  switch (state) {
    case 'unloaded':
      return nothing;
    case 'loading': {
      await load(url, model);
      const goOn = await freeze(url, model);
      const { value } = (await modelEntry(url, model)).status;
      if (value === 'loading') return goOn;
      goOn();
      throw new Error(`${model} is ${value} already: it has to take longer to load`);
    }
    case 'loaded':
      await loadAndWait(url, model);
      return nothing;
    case 'sleeping':
      await load(url, model);
      await untilStatus(url, model, 'sleeping');
      return nothing;
    case 'stopping': {
      await loadAndWait(url, model);
      const goOn = await freeze(url, model);
      await post(url, '/models/unload', { model });
      return goOn;
    }
    case 'failed':
      await load(url, model);
      await eventually(`${model} has failed`, async () => (await modelEntry(url, model)).status.failed);
      return nothing;
  }
}

/** Unloads the model, whatever it does. */
export async function bringBack(url: string, model: string): Promise<void> {
  const { value } = (await modelEntry(url, model)).status;
  if (value === 'loaded') await untilSettled(url, model);
  if (value !== 'unloaded') await post(url, '/models/unload', { model });
  await untilStatus(url, model, 'unloaded');
}

/** The words in which the list tells of a model, each once in a row, from the first to `last`. */
export async function wordsUntil(url: string, model: string, last: string): Promise<string[]> {
  const words: string[] = [];
  await eventually(
    `${model} is ${last}, after ${words.join(', ')}`,
    async () => {
      const { value } = (await modelEntry(url, model)).status;
      if (value !== words.at(-1)) words.push(value);
      return value === last;
    },
    { intervalMs: 5 },
  );
  return words;
}
