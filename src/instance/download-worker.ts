import { ChildProcess, type ChildExit } from './child-process.js';
import { aborted, deadline } from './endings.js';
import { LogTail } from './log-tail.js';
import type { OrphanGuard } from './orphan-guard.js';
import { childMarkerVariable } from './protocol.js';

/** How far the download of one file is; a repository may have several under way. */
export interface DownloadProgress {
  readonly url: string;
  readonly downloadedBytes: number;
  /** 0 while it is not known. */
  readonly totalBytes: number;
}

/** How a download ended. */
export interface DownloadOutcome {
  /** `finished` is the worker's own word: it says so of a repository or tag that does not exist, too. */
  readonly kind: 'finished' | 'failed' | 'cancelled';
  /** One sentence: what happened. */
  readonly message: string;
  /** What the worker wrote last, oldest line first. */
  readonly lastLines: readonly string[];
}

export interface DownloadOptions {
  /** The llama-server that downloads. */
  readonly binary: string;
  /** `user/repo` or `user/repo:TAG`; of a repository of presets only its preset.ini is downloaded. */
  readonly hfRepo: string;
  /** What children are started in (`childEnvironment`). */
  readonly environment: NodeJS.ProcessEnv;
  /** For the hub; undefined leaves it to the environment. */
  readonly token: string | undefined;
  readonly guard: OrphanGuard;
  /** How long nothing may be heard of it. Of a file in download, it tells each thousandth at most. */
  readonly silenceTimeoutMs: number;
  /** Cancels: what was downloaded of unfinished files is removed, if the worker still listens. */
  readonly signal: AbortSignal;
  readonly onProgress?: (progress: DownloadProgress) => void;
  /** Its log. */
  readonly onLine?: (line: string) => void;
}

/** Between the exit command and SIGKILL. The worker hears of it when the next bytes arrive. */
const exitGraceMs = 2_000;

/** After SIGKILL a process is gone at once, unless the kernel cannot end it; it is not waited for longer. */
const killGraceMs = 5_000;

type WorkerMessage =
  | { readonly kind: 'progress'; readonly progress: DownloadProgress }
  | { readonly kind: 'result'; readonly ok: boolean };

type Ending =
  | { readonly how: 'reported'; readonly ok: boolean }
  | { readonly how: 'exited'; readonly exit: ChildExit }
  | { readonly how: 'silent' }
  | { readonly how: 'cancelled' };

/**
 * Has llama-server's own download worker (tools/server/server-models.cpp, `server_child::run_download`) bring a
 * repository into the hub cache. Settles when the worker is gone; never rejects. An unfinished file is gone on with
 * by the next download of it, unless this one was cancelled.
 *
 * The token is handed over in the environment, where only this user can read it, and like a password of the
 * endpoint it is struck out from what the worker writes.
 */
export async function runDownloadWorker(options: DownloadOptions): Promise<DownloadOutcome> {
  const { hfRepo, silenceTimeoutMs, signal } = options;
  const cancelled = `the download of '${hfRepo}' was cancelled`;
  if (signal.aborted) return { kind: 'cancelled', message: cancelled, lastLines: [] };

  const race = new AbortController();
  const tail = new LogTail();
  const clean = secretsRemover(options);
  let heardAt = performance.now();
  let markReported: (ending: Ending) => void;
  const reported = new Promise<Ending>((resolve) => (markReported = resolve));
  const worker = new ChildProcess({
    command: [options.binary],
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
    for (;;) {
      const leftMs = heardAt + silenceTimeoutMs - performance.now();
      if (leftMs <= 0) return { how: 'silent' };
      await deadline(leftMs, race.signal);
    }
  };

  const ending = await Promise.race<Ending>([
    reported,
    worker.exited.then((exit) => ({ how: 'exited', exit })),
    silent(),
    aborted(signal, race.signal).then(() => ({ how: 'cancelled' })),
  ]);
  race.abort();
  // A silent worker does not listen, and asked to exit it might remove what the next download can go on with.
  await dismiss(worker, { atOnce: ending.how === 'silent' });
  const lastLines = tail.lines();
  switch (ending.how) {
    case 'reported':
      return ending.ok
        ? { kind: 'finished', message: `llama-server has downloaded '${hfRepo}'`, lastLines }
        : { kind: 'failed', message: `llama-server could not download '${hfRepo}'`, lastLines };
    case 'exited':
      return { kind: 'failed', message: `the download of '${hfRepo}' ${how(ending.exit)}`, lastLines };
    case 'silent': {
      const seconds = silenceTimeoutMs / 1000;
      const message = `nothing was heard of the download of '${hfRepo}' for ${seconds} s`;
      return { kind: 'failed', message, lastLines };
    }
    case 'cancelled':
      return { kind: 'cancelled', message: cancelled, lastLines };
  }
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

/** The state line of a download; undefined for every other line, also for one that is broken. */
function parseWorkerLine(line: string): WorkerMessage | undefined {
  const text = /^cmd_child_to_router:state:(\{.*\})$/s.exec(line)?.[1];
  if (text === undefined) return undefined;
  let message: unknown;
  try {
    message = JSON.parse(text);
  } catch {
    return undefined;
  }
  const { state, payload } = message as Record<string, unknown>;
  if (state !== 'downloading' || typeof payload !== 'object' || payload === null) return undefined;
  const { result, url, downloaded, total } = payload as Record<string, unknown>;
  if (result === 'download_finished' || result === 'download_failed') {
    return { kind: 'result', ok: result === 'download_finished' };
  }
  if (typeof url !== 'string' || typeof downloaded !== 'number' || typeof total !== 'number')
    return undefined;
  return { kind: 'progress', progress: { url, downloadedBytes: downloaded, totalBytes: total } };
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

function how({ code, signal, spawnError }: ChildExit): string {
  if (spawnError) return `could not be started: ${spawnError.message}`;
  if (signal) return `was ended by ${signal}`;
  return `ended without a result, with exit code ${code ?? 'unknown'}`;
}
