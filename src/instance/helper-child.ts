import { randomBytes } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import getPort from 'get-port';
import { appCommand } from '../config/app-command.js';
import { RouterError } from '../errors.js';
import type { Logger } from '../observe/log.js';
import { helperEnvironment } from './child-environment.js';
import { ChildProcess, type ChildExit } from './child-process.js';
import { aborted, deadline } from './endings.js';
import { askChild } from './hang/ask-child.js';
import { HealthWatch } from './hang/health-watch.js';
import { WatchedHandler } from './hang/watched-handler.js';
import { describeDeath, describeExit, lostItsPort } from './how-it-ended.js';
import type { KernelKills, KillWatch } from './kernel-kills.js';
import { leaveBehind } from './left-behind.js';
import type { OrphanGuard } from './orphan-guard.js';
import { healthy } from './readiness.js';
import { withLastWords } from './telling-line.js';
import { Upstream } from './upstream.js';

export interface HelperChildOptions {
  readonly binary: string;
  /** What it is told besides where to listen. */
  readonly args: readonly string[];
  /** The supervisor's own environment. */
  readonly env: NodeJS.ProcessEnv;
  /** A directory that holds no model, made when it is not there. */
  readonly modelCache: string;
  readonly guard: OrphanGuard;
  readonly log: Logger;
  readonly kernelKills: KernelKills;
  readonly startTimeoutMs: number;
  /** How long it may take to exit once it was asked to. */
  readonly stopTimeoutMs: number;
  /** Its longest silence before and within an answer; 0 = no bound. */
  readonly silenceTimeoutMs: number;
  /** A port that was free just now. */
  readonly freePort?: () => Promise<number>;
}

/** How a helper ended, in words that continue a sentence which begins with it. */
export interface HelperEnd {
  readonly message: string;
  /** What it wrote last, oldest line first. */
  readonly lastLines: readonly string[];
}

/** One run of the helper that is ready. */
export interface RunningHelper {
  readonly upstream: Pick<Upstream, 'dispatch'>;
  /** Settles when its process is gone, or hangs and is being killed; never rejects. */
  readonly ended: Promise<HelperEnd>;
}

/** A port can be taken between the asking and the helper's bind: then one more attempt is made with another. */
const spawnAttempts = 2;

/** A helper that has served for so long was well: its end is no reason to wait before the next start. */
const wellAfterMs = 10_000;

/** An answer about its health comes at once, also from a machine that is busy. Milliseconds. */
const healthPatienceMs = 5_000;

/** Before the next start after one, two, three… failures in a row; the last for all that follow. Milliseconds. */
const pausesMs = [1_000, 2_000, 4_000, 8_000, 16_000, 30_000] as const;

/** A request waits for the end of a pause up to so long, and is refused when it is further away. */
const patienceMs = 1_000;

/** After SIGKILL a process is gone at once, unless the kernel cannot end it; it is not waited for longer. */
const killGraceMs = 5_000;

type Ending =
  | { readonly how: 'ready' }
  | { readonly how: 'exited'; readonly exit: ChildExit }
  | { readonly how: 'deadline' }
  | { readonly how: 'stopped' };

const shuttingDown = (): RouterError => new RouterError('shutting_down', 'the supervisor is shutting down');

/**
 * A llama-server without a model, which serves for us what the binary does well already: the web UI, tools, MCP servers
 * and the proxy to those. It is started when it is first needed, and again after a crash when it is needed next; it
 * takes no place of `--models-max`. One that fails again and again is not started for every request.
 */
export class HelperChild {
  readonly #options: HelperChildOptions;
  readonly #stopRequested = new AbortController();
  #child: ChildProcess | undefined;
  #killWatch: KillWatch | undefined;
  #running: RunningHelper | undefined;
  /** Those to the one that is running. */
  #connections: Upstream | undefined;
  #starting: Promise<RunningHelper> | undefined;
  #failures = 0;
  /** No start before this; monotonic, in ms. */
  #pausedUntil = 0;
  #lastEnd: HelperEnd | undefined;

  constructor(options: HelperChildOptions) {
    this.#options = options;
  }

  /** Of its current or last process. */
  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /**
   * The helper, started if need be; those who ask meanwhile share the start, which goes on without them.
   *
   * @param signal of one who waits no longer
   * @throws RouterError helper_failed, with its last lines; shutting_down; client_gone
   */
  async ready(signal: AbortSignal): Promise<RunningHelper> {
    if (this.#running) return this.#running;
    if (!this.#starting) {
      this.#starting = this.#start().finally(() => (this.#starting = undefined));
      // Nobody may be left to hear of it.
      this.#starting.catch(() => undefined);
    }
    const race = new AbortController();
    const running = await Promise.race([
      this.#starting,
      aborted(signal, race.signal).then(() => undefined),
    ]).finally(() => race.abort());
    if (!running) throw new RouterError('client_gone', 'the client left while the helper was starting');
    return running;
  }

  /** Number of requests that it works for; those that only look are not counted. */
  get inFlight(): number {
    return this.#connections?.posts ?? 0;
  }

  /** It is not started any more; who waits for its start is refused. */
  close(): void {
    this.#stopRequested.abort();
  }

  /** Settles when it has no more work to do, or after `ms`. */
  async idleWithin(ms: number): Promise<void> {
    const running = this.#running;
    if (!running) return;
    const race = new AbortController();
    await Promise.race([this.#connections?.workEnd(), running.ended, deadline(ms, race.signal)]);
    race.abort();
  }

  /** Ends it: SIGTERM, after `stopTimeoutMs` SIGKILL. It is not started again. Settles when it is gone. */
  async stop(): Promise<void> {
    this.#stopRequested.abort();
    // A start ends its own child.
    await this.#starting?.catch(() => undefined);
    const child = this.#child;
    if (!child || child.hasExited) return;
    this.#connections?.destroy();
    child.signal('SIGTERM');
    const grace = new AbortController();
    await Promise.race([child.exited, deadline(this.#options.stopTimeoutMs, grace.signal)]);
    grace.abort();
    await this.#kill(child);
  }

  /** Kills its whole group now. It is not started again. */
  kill(): void {
    this.#stopRequested.abort();
    this.#child?.signal('SIGKILL');
  }

  /** One start, made of one attempt, or two when a port was lost. */
  async #start(): Promise<RunningHelper> {
    await this.#pause();
    // Where it cannot be made there is no model in it either.
    await mkdir(this.#options.modelCache, { recursive: true, mode: 0o700 }).catch(() => undefined);
    for (let attempt = 1; ; attempt += 1) {
      const port = await this.#choosePort();
      if (this.#stopping()) throw shuttingDown();
      const apiKey = randomBytes(24).toString('base64url');
      const child = this.#spawn(port, apiKey);
      const ending = await this.#untilReady(child, port, apiKey);
      switch (ending.how) {
        case 'ready':
          return this.#serve(child, port, apiKey);
        case 'exited':
          if (attempt < spawnAttempts && lostItsPort(child.lastLines()) && !this.#stopping()) break;
          throw this.#failed(child, this.#howItEnded(child, ending.exit, 'loading'));
        case 'deadline': {
          await this.#kill(child);
          const seconds = this.#options.startTimeoutMs / 1000;
          throw this.#failed(child, `was not ready within ${seconds} s (--load-timeout)`);
        }
        case 'stopped':
          await this.#kill(child);
          throw shuttingDown();
      }
    }
  }

  /** @throws RouterError helper_failed when its next start is not near */
  async #pause(): Promise<void> {
    if (this.#stopping()) throw shuttingDown();
    // Why the last one ended is known once its last words are read.
    if (this.#child?.hasExited) await this.#child.exited;
    const leftMs = this.#pausedUntil - performance.now();
    if (leftMs > patienceMs && this.#lastEnd) throw this.#refusal(this.#lastEnd);
    if (leftMs <= 0) return;
    const race = new AbortController();
    await Promise.race([deadline(leftMs, race.signal), aborted(this.#stopRequested.signal, race.signal)]);
    race.abort();
  }

  async #choosePort(): Promise<number> {
    return (await this.#options.freePort?.()) ?? (await getPort({ host: '127.0.0.1' }));
  }

  #spawn(port: number, apiKey: string): ChildProcess {
    const { binary, args, env, modelCache, guard, log, kernelKills } = this.#options;
    const killWatch = kernelKills.watch();
    this.#killWatch = killWatch;
    const child: ChildProcess = new ChildProcess({
      command: [binary, ...appCommand(env), '--host', '127.0.0.1', '--port', String(port), ...args],
      environment: { ...helperEnvironment(env, modelCache), LLAMA_API_KEY: apiKey },
      guard,
      // What only a child with a model reports.
      onMessage: () => undefined,
      // As a field, where control characters in it are escaped.
      onLine: (line) => log.debug({ pid: child.pid, line }, 'helper'),
      onExit: () => this.#forget(child),
    });
    void child.exited.then(() => killWatch.end());
    this.#child = child;
    return child;
  }

  /** The start is a race of all the ways it can end; the losers are ended by one controller. */
  async #untilReady(child: ChildProcess, port: number, apiKey: string): Promise<Ending> {
    const race = new AbortController();
    const { signal } = race;
    const warnOfKeyless = (): void =>
      this.#options.log.warn({ port }, 'what answers on the port of the helper does not ask for its key');
    const ending = await Promise.race<Ending>([
      child.exited.then((exit) => ({ how: 'exited', exit })),
      healthy(port, '', apiKey, signal, warnOfKeyless).then(() => ({ how: 'ready' })),
      aborted(this.#stopRequested.signal, signal).then(() => ({ how: 'stopped' })),
      deadline(this.#options.startTimeoutMs, signal).then(() => ({ how: 'deadline' })),
    ]);
    race.abort();
    // One that died in the same turn as it answered, or was told to stop then, is not ready.
    if (ending.how !== 'ready') return ending;
    if (child.hasExited) return { how: 'exited', exit: await child.exited };
    return this.#stopping() ? { how: 'stopped' } : ending;
  }

  #serve(child: ChildProcess, port: number, apiKey: string): RunningHelper {
    const { log, silenceTimeoutMs } = this.#options;
    const wellAt = performance.now() + wellAfterMs;
    const { watch, hangs } = this.#watch(child, port, apiKey);
    const ended = Promise.race([hangs, child.exited]).then((how): HelperEnd => {
      watch.close();
      const message = typeof how === 'string' ? how : this.#howItEnded(child, how, 'running');
      const end = { message, lastLines: child.lastLines() };
      if (!this.#stopping()) {
        this.#note(end, { wasWell: performance.now() >= wellAt });
        log.warn({ pid: child.pid, ...end }, 'the helper has ended; it is started again when it is needed');
      }
      return end;
    });
    const connections = new Upstream(port, apiKey, silenceTimeoutMs);
    this.#connections = connections;
    this.#running = {
      upstream: {
        dispatch: (request, handler) => connections.dispatch(request, new WatchedHandler(handler, watch)),
      },
      ended,
    };
    log.info({ pid: child.pid, port }, 'the helper for web UI and tools is ready');
    return this.#running;
  }

  /** Kills it when it hangs, and cuts its requests; `hangs` settles then. */
  #watch(child: ChildProcess, port: number, apiKey: string): { watch: HealthWatch; hangs: Promise<string> } {
    const address = { port, apiKey, apiPrefix: '' };
    let hang!: (message: string) => void;
    const hangs = new Promise<string>((resolve) => (hang = resolve));
    const watch = new HealthWatch({
      isHealthy: async () => {
        const { signal } = new AbortController();
        const question = { method: 'GET', path: '/health', timeoutMs: healthPatienceMs, signal } as const;
        const answer = await askChild(address, question);
        return answer !== 'late' && answer !== 'broken';
      },
      onHang: () => {
        if (child.hasExited) return;
        hang('hung (its /health was not answered twice in a row) and was killed');
        this.#forget(child);
        // What has left its group is known as its own only while it lives.
        void child.look().then(() => this.#kill(child));
      },
    });
    return { watch, hangs };
  }

  /** Its process is gone, or going: its port may be a stranger's from now on. */
  #forget(child: ChildProcess): void {
    if (child !== this.#child) return;
    this.#connections?.destroy();
    this.#connections = undefined;
    this.#running = undefined;
  }

  #failed(child: ChildProcess, message: string): RouterError {
    if (this.#stopping()) return shuttingDown();
    const end = { message, lastLines: child.lastLines() };
    this.#note(end, { wasWell: false });
    this.#options.log.warn(end, 'the helper for web UI and tools could not be started');
    return this.#refusal(end);
  }

  /** A kill by the kernel is claimed for the helper, so that no other child is taken for the one that it ended. */
  #howItEnded(child: ChildProcess, exit: ChildExit, phase: 'loading' | 'running'): string {
    if (this.#stopping()) return describeExit(exit);
    const kernelKill = () => this.#killWatch?.claim();
    return describeDeath({ exit, phase, lastLines: child.lastLines(), kernelKill }).message;
  }

  #note(end: HelperEnd, { wasWell }: { wasWell: boolean }): void {
    this.#failures = wasWell ? 0 : this.#failures + 1;
    const pauseMs = wasWell ? 0 : pausesMs[Math.min(this.#failures, pausesMs.length) - 1];
    this.#pausedUntil = performance.now() + (pauseMs ?? 0);
    this.#lastEnd = end;
  }

  #refusal({ message, lastLines }: HelperEnd): RouterError {
    const retryAfterS = (this.#pausedUntil - performance.now()) / 1000;
    const text = `the llama-server that serves the web UI and tools ${withLastWords(message, lastLines)}`;
    return new RouterError('helper_failed', text, { lastLines, retryAfterS });
  }

  async #kill(child: ChildProcess): Promise<void> {
    const since = new Date();
    child.signal('SIGKILL');
    const race = new AbortController();
    await Promise.race([child.exited, deadline(killGraceMs, race.signal)]);
    race.abort();
    if (!child.hasExited) leaveBehind(child, { role: 'helper' }, { since, log: this.#options.log });
  }

  /** Asked anew after every await: a stop can come at any time. */
  #stopping(): boolean {
    return this.#stopRequested.signal.aborted;
  }
}
