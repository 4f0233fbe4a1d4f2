import { setTimeout as delay } from 'node:timers/promises';
import { appCommand } from '../config/app-command.js';
import { ChildProcess, type ChildExit } from './child-process.js';
import { aborted, deadline } from './endings.js';
import { LogTail } from './log-tail.js';
import type { OrphanGuard } from './orphan-guard.js';
import { childMarkerVariable, parseWorkerLine, type DownloadProgress } from './protocol.js';

export type { DownloadProgress } from './protocol.js';

/** How a download ended. */
export type DownloadOutcome = {
  /** One sentence: what happened. */
  readonly message: string;
  /** What the worker wrote last, oldest line first. */
  readonly lastLines: readonly string[];
} & (
  | {
      /** `finished` is the worker's own word: it says so of a repository or tag that does not exist, too. */
      readonly kind: 'finished' | 'cancelled' | 'interrupted';
    }
  | { readonly kind: 'failed'; readonly how: 'reported' | 'exited' | 'silent' }
);

export interface DownloadOptions {
  /** The llama-server that downloads. */
  readonly binary: string;
  /** More of its command line; nothing there changes what it does. */
  readonly args?: readonly string[];
  /** `user/repo` or `user/repo:TAG`; of a repository of presets only its preset.ini is downloaded. */
  readonly hfRepo: string;
  /** What children are started in (`childEnvironment`). */
  readonly environment: NodeJS.ProcessEnv;
  /** For the hub; undefined leaves it to the environment. */
  readonly token: string | undefined;
  readonly guard: OrphanGuard;
  /** How long nothing may be heard of it. Of a file in download, it tells each thousandth at most. */
  readonly silenceTimeoutMs: number;
  /**
   * How many bytes have come so far, asked for when nothing was heard: a number that has changed is a sign of life. A
   * thousandth of a large file takes its time on a slow link.
   */
  readonly receivedBytes?: () => Promise<number>;
  /** Cancels: what was downloaded of unfinished files is removed, if the worker still listens. */
  readonly signal: AbortSignal;
  /** Ends it at once: what was downloaded is kept for the next time. */
  readonly interrupt?: AbortSignal;
  readonly onProgress?: (progress: DownloadProgress) => void;
  /** Its log. */
  readonly onLine?: (line: string) => void;
}

/** Between the exit command and SIGKILL. The worker hears of it when the next bytes arrive. */
const exitGraceMs = 2_000;

/** After SIGKILL a process is gone at once, unless the kernel cannot end it; it is not waited for longer. */
const killGraceMs = 5_000;

/** How long the question what has come may take: on a file system that is gone, for ever. */
const lookMs = 5_000;

type Ending =
  | { readonly how: 'reported'; readonly ok: boolean }
  | { readonly how: 'exited'; readonly exit: ChildExit }
  | { readonly how: 'silent' }
  | { readonly how: 'cancelled' }
  | { readonly how: 'interrupted' };

/**
 * Has llama-server's own download worker (tools/server/server-models.cpp, `server_child::run_download`) bring a
 * repository into the hub cache. Settles when the worker is gone; never rejects. An unfinished file is gone on with
 * by the next download of it, unless this one was cancelled.
 *
 * The token is handed over in the environment, where only this user can read it, and like a password of the
 * endpoint it is struck out from what the worker writes.
 */
export async function runDownloadWorker(options: DownloadOptions): Promise<DownloadOutcome> {
  const { binary, args = [], environment, hfRepo, silenceTimeoutMs, signal } = options;
  const { interrupt = new AbortController().signal } = options;
  const cancelled = { kind: 'cancelled', message: `the download of '${hfRepo}' was cancelled` } as const;
  const interrupted = {
    kind: 'interrupted',
    message: `the download of '${hfRepo}' was interrupted`,
  } as const;
  if (signal.aborted) return { ...cancelled, lastLines: [] };
  if (interrupt.aborted) return { ...interrupted, lastLines: [] };

  const race = new AbortController();
  const tail = new LogTail();
  const clean = secretsRemover(options);
  let heardAt = performance.now();
  let markReported: (ending: Ending) => void;
  const reported = new Promise<Ending>((resolve) => (markReported = resolve));
  const worker = new ChildProcess({
    command: [binary, ...appCommand(environment), ...args],
    environment: workerEnvironment(options),
    guard: options.guard,
    // What only a child with a model reports.
    onMessage: () => undefined,
    onLine: (line) => {
      heardAt = performance.now();
      const message = parseWorkerLine(line);
      if (message?.kind === 'result') {
        markReported({ how: 'reported', ok: message.ok });
      } else if (message?.kind === 'progress') {
        options.onProgress?.({ ...message.progress, url: clean(message.progress.url) });
      } else {
        tail.add(clean(line));
        options.onLine?.(clean(line));
      }
    },
    onExit: () => undefined,
  });
  const silent = async (): Promise<Ending> => {
    let bytes: number | undefined;
    while (!race.signal.aborted) {
      const leftMs = heardAt + silenceTimeoutMs - performance.now();
      if (leftMs > 0) {
        // A long download waits here many times: each wait takes its listener off the signal.
        await delay(leftMs, undefined, { signal: race.signal }).catch(() => undefined);
        continue;
      }
      const bytesNow = await look(options);
      if (bytesNow === bytes) break;
      bytes = bytesNow;
      heardAt = performance.now();
    }
    return { how: 'silent' };
  };

  const ending = await Promise.race<Ending>([
    reported,
    worker.exited.then((exit) => ({ how: 'exited', exit })),
    silent(),
    aborted(signal, race.signal).then(() => ({ how: 'cancelled' })),
    aborted(interrupt, race.signal).then(() => ({ how: 'interrupted' })),
  ]);
  race.abort();
  // Asked to exit, a worker removes what the next download can go on with; a silent one would hardly listen, besides.
  await dismiss(worker, { atOnce: ending.how === 'silent' || ending.how === 'interrupted' });
  const lastLines = tail.lines();
  const failed = { kind: 'failed', lastLines } as const;
  switch (ending.how) {
    case 'reported':
      return ending.ok
        ? { kind: 'finished', message: `llama-server has downloaded '${hfRepo}'`, lastLines }
        : { ...failed, how: 'reported', message: `llama-server could not download '${hfRepo}'` };
    case 'exited':
      return { ...failed, how: 'exited', message: `the download of '${hfRepo}' ${manner(ending.exit)}` };
    case 'silent': {
      const seconds = silenceTimeoutMs / 1000;
      const message = `nothing was heard of the download of '${hfRepo}' for ${seconds} s`;
      return { ...failed, how: 'silent', message };
    }
    case 'cancelled':
      return { ...cancelled, lastLines };
    case 'interrupted':
      return { ...interrupted, lastLines };
  }
}

/** How many bytes have come; undefined if nobody can tell. */
async function look({ receivedBytes }: DownloadOptions): Promise<number | undefined> {
  const end = new AbortController();
  const late = deadline(lookMs, end.signal).then(() => undefined);
  const bytes = await Promise.race([receivedBytes?.().catch(() => undefined), late]);
  end.abort();
  return bytes;
}

/** Settles when it is gone, or cannot be ended. */
async function dismiss(worker: ChildProcess, { atOnce }: { atOnce: boolean }): Promise<void> {
  const end = new AbortController();
  if (!atOnce) {
    worker.sendExitCommand();
    await Promise.race([worker.exited, deadline(exitGraceMs, end.signal)]);
  }
  worker.signal('SIGKILL');
  await Promise.race([worker.exited, deadline(killGraceMs, end.signal)]);
  end.abort();
}

/** Options that say which companions of a model are downloaded with it. */
const companionOptions = new Set([
  'LLAMA_ARG_MMPROJ_AUTO',
  'LLAMA_ARG_NO_MMPROJ_AUTO',
  'LLAMA_ARG_SPEC_TYPE',
]);

/**
 * Of the options in the environment only those count that say what to download: others name further files, or make
 * the worker start MCP servers first.
 */
function workerEnvironment({ environment, hfRepo, token }: DownloadOptions): NodeJS.ProcessEnv {
  const kept = Object.entries(environment).filter(
    ([name]) => !name.startsWith('LLAMA_ARG_') || companionOptions.has(name),
  );
  return {
    ...Object.fromEntries(kept),
    ...(token === undefined ? {} : { HF_TOKEN: token }),
    [childMarkerVariable]: '1',
    LLAMA_SERVER_CHILD_MODE: 'download',
    LLAMA_ARG_HF_REPO: hfRepo,
  };
}

/** Strikes out of a text what nobody else may read: the token, and user and password of the endpoint. */
function secretsRemover({ token, environment }: DownloadOptions): (text: string) => string {
  const logins = [environment['MODEL_ENDPOINT'], environment['HF_ENDPOINT']].flatMap(
    (endpoint) => /^https?(:\/\/[^@]+@)/.exec(endpoint ?? '')?.[1] ?? [],
  );
  const tokens = [token, environment['HF_TOKEN']].filter((text) => text !== undefined && text !== '');
  return (text) => {
    const noLogin = logins.reduce((rest, login) => rest.replaceAll(login, '://***@'), text);
    return tokens.reduce((rest: string, secret) => rest.replaceAll(secret ?? '', '***'), noLogin);
  };
}

function manner({ code, signal, spawnError }: ChildExit): string {
  if (spawnError) return `could not be started: ${spawnError.message}`;
  if (signal) return `was ended by ${signal}`;
  return `ended without a result, with exit code ${code ?? 'unknown'}`;
}
