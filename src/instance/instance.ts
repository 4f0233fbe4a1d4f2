import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import getPort from 'get-port';
import type { EventBus, SupervisorEvent } from '../events/events.js';
import type { Logger } from '../observe/log.js';
import { ChildProcess, killGraceMs, type ChildExit } from './child-process.js';
import type { Survivor } from './descendants.js';
import type { OrphanGuard } from './orphan-guard.js';
import { childMarkerVariable, type ChildMessage } from './protocol.js';
import { healthy } from './readiness.js';
import { aborted, deadline } from './endings.js';
import type { HangWatch } from './hang/hang-watch.js';
import type { NvidiaSmi } from './hang/nvidia-evidence.js';
import { watchChild } from './hang/watch-child.js';
import { describeDeath, lostItsPort } from './how-it-ended.js';
import type { KernelKills, KillWatch } from './kernel-kills.js';
import { leaveBehind, type LeftBehind } from './left-behind.js';
import { wasKilled } from './out-of-memory.js';
import { statusWord, type InstanceState, type ModelInfo, type Outcome, type StopReason } from './state.js';
import { Upstream } from './upstream.js';

/** What is needed to run one model once. */
export interface LaunchSpec {
  readonly modelId: string;
  /** The full command line, binary first, for a child that listens on `port` of loopback. */
  readonly command: (port: number) => readonly string[];
  readonly environment: NodeJS.ProcessEnv;
  /** In front of all of the child's routes: its `--api-prefix`, or empty. */
  readonly apiPrefix: string;
  /** The child is started so long after it was asked for; 0 = at once. */
  readonly startDelayMs?: number;
  readonly loadTimeoutMs: number;
  /** How long a child may take to exit once it was asked to. */
  readonly stopTimeoutMs: number;
  /** Longest silence of the child before and within an answer; 0 = no bound. */
  readonly silenceTimeoutMs: number;
  /** How long a child with requests may show no progress; 0 = no bound. */
  readonly hangTimeoutMs: number;
}

export interface InstanceContext {
  readonly guard: OrphanGuard;
  readonly events: EventBus;
  readonly log: Logger;
  readonly kernelKills: KernelKills;
  readonly nvidiaSmi: NvidiaSmi;
  /** A port that was free just now. */
  readonly freePort?: () => Promise<number>;
}

/** A port can be taken between the asking and the child's bind: then one more attempt is made with another. */
const spawnAttempts = 2;

/** After the first healthy answer of a child that has not spoken the protocol, a last chance for it to do so. */
const protocolGraceMs = 200;

/**
 * llama-server says that it is ready before its loop begins, and a beginning loop forgets an exit command that came in
 * between (tools/server/server-queue.cpp, `start_loop`). It reads no second one: a child that was told so early, and
 * has not exited after so long, is told by SIGTERM, too. Otherwise who waits for its slot waits for its stop timeout.
 */
const forgetfulMs = 500;

type Ending =
  | { readonly how: 'ready' }
  | { readonly how: 'exited'; readonly exit: ChildExit }
  | { readonly how: 'deadline' }
  | { readonly how: 'stopped' };

/**
 * One run of one model: a child process from spawn to exit. The instance is the only writer of its state; others
 * ask for `stop`, listen to `onChange`, or await `ready` and `exited`, which never reject.
 */
export class Instance {
  readonly modelId: string;
  /** Settles when the first child was started, or could not be: a load that was asked for is on its way. */
  readonly spawned: Promise<void>;
  /** Settles once, when the child is gone (or was never there). */
  readonly exited: Promise<Outcome>;
  readonly startedAt = performance.now();

  readonly #spec: LaunchSpec;
  readonly #context: InstanceContext;
  readonly #onChange: (instance: Instance) => void;
  readonly #stopRequested = new AbortController();
  #state: InstanceState = { name: 'loading', progress: undefined };
  #child: ChildProcess | undefined;
  #upstream: Upstream | undefined;
  #port = 0;
  /** Belongs to one spawn attempt, as the port does: who has taken the port may have heard the key. */
  #apiKey = '';
  #readyInfo: ModelInfo | undefined;
  #readyAt = NaN;
  #killWatch: KillWatch | undefined;
  #hangWatch: HangWatch | undefined;
  /** How it hung, once it has been stopped for that. */
  #hung: string | undefined;
  readonly #leftBehind: LeftBehind[] = [];
  /** Belongs to one spawn attempt, too: the end of one child is none of the next. */
  #watchEnd = new AbortController();
  #speaksProtocol = false;
  #markReady: () => void = () => undefined;
  #markSpawned: () => void = () => undefined;

  /** Starts the child at once. `onChange` is called after every change of state. */
  constructor(spec: LaunchSpec, context: InstanceContext, onChange: (instance: Instance) => void) {
    this.modelId = spec.modelId;
    this.#spec = spec;
    this.#context = context;
    this.#onChange = onChange;
    this.spawned = new Promise((resolve) => (this.#markSpawned = resolve));
    const run = this.#run().catch((error: unknown) => this.#brokenRun(error));
    this.exited = run.then((outcome) => {
      this.#markSpawned();
      this.#upstream?.destroy();
      this.#transition({ name: 'exited', outcome });
      return outcome;
    });
  }

  get state(): InstanceState {
    return this.#state;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** The port of the current or last child; 0 before there is one. */
  get port(): number {
    return this.#port;
  }

  /** Connections to the child; there are some once the instance is ready. */
  get upstream(): Upstream | undefined {
    return this.#upstream;
  }

  /**
   * Asks the child to go: by the exit command, after half of `stopTimeoutMs` by SIGTERM, after all of it by SIGKILL, to its
   * group and to what it has started outside of that. A child that is still loading has nothing to lose and is killed at
   * once. The first reason is the one kept.
   */
  stop(reason: StopReason): void {
    const { state } = this;
    if (state.name === 'stopping' || state.name === 'exited') return;
    const word = statusWord(state);
    this.#transition({
      name: 'stopping',
      reason,
      was: word === 'unloaded' ? 'loading' : word,
      info: 'info' in state ? state.info : undefined,
    });
    this.#watchEnd.abort();
    this.#stopRequested.abort();
  }

  /** How it has failed, when it is being stopped for that; undefined otherwise. */
  get failureInProgress(): Outcome | undefined {
    if (this.#hung === undefined || this.#stopping() === undefined) return undefined;
    return { ...this.#failure('running', this.#hung, this.#child), cause: 'hung' };
  }

  /** Whether its child is gone; what that had started may be there still, and then it has not exited yet. */
  get hasDied(): boolean {
    return this.#child?.hasExited === true;
  }

  /** Those of its processes that could not be killed: the instance has exited all the same. */
  get leftBehind(): readonly LeftBehind[] {
    return this.#leftBehind;
  }

  /** Kills the child's whole group now. */
  kill(): void {
    this.stop('shutdown');
    this.#child?.signal('SIGKILL');
  }

  async #run(): Promise<Outcome> {
    for (let attempt = 1; ; attempt += 1) {
      const port = await this.#choosePort();
      await this.#startDelay();
      const stopping = this.#stopping();
      if (stopping) return this.#stopped(stopping.reason);
      this.#port = port;
      const child = this.#spawn(port);
      this.#child = child;
      const ending = await this.#untilReady(child, port);
      switch (ending.how) {
        case 'ready': {
          return await this.#whileReady(child);
        }
        case 'exited': {
          if (!lostItsPort(child.lastLines()) || attempt === spawnAttempts || this.#stopping())
            return this.#outcome(child, ending.exit);
          this.#context.log.warn(
            { model: this.modelId, port },
            'the port was taken meanwhile; trying another',
          );
          break;
        }
        case 'deadline': {
          // A stop in the same turn came first, and was asked for.
          if (this.#stopping()) return this.#outcome(child, await this.#end(child, { atOnce: true }));
          const seconds = this.#spec.loadTimeoutMs / 1000;
          this.stop('load deadline');
          const exit = await this.#end(child, { atOnce: true });
          return {
            ...this.#failure('loading', `was not ready within ${seconds} s (--load-timeout)`, child),
            exitCode: exitCode(exit),
          };
        }
        case 'stopped': {
          return this.#outcome(child, await this.#end(child, { atOnce: true }));
        }
      }
    }
  }

  async #startDelay(): Promise<void> {
    const { startDelayMs = 0 } = this.#spec;
    if (startDelayMs === 0) return;
    const race = new AbortController();
    const { signal } = race;
    await Promise.race([deadline(startDelayMs, signal), aborted(this.#stopRequested.signal, signal)]);
    race.abort();
  }

  async #choosePort(): Promise<number> {
    return (await this.#context.freePort?.()) ?? (await getPort({ host: '127.0.0.1' }));
  }

  #spawn(port: number): ChildProcess {
    const { modelId } = this;
    const { guard, events, log } = this.#context;
    this.#apiKey = randomBytes(24).toString('base64url');
    // First, because it may throw: what is watched from here on must also end.
    const command = this.#spec.command(port);
    const killWatch = this.#context.kernelKills.watch();
    this.#killWatch = killWatch;
    const watchEnd = new AbortController();
    this.#watchEnd = watchEnd;
    const child: ChildProcess = new ChildProcess({
      command,
      environment: {
        ...this.#spec.environment,
        [childMarkerVariable]: '1',
        LLAMA_API_KEY: this.#apiKey,
      },
      guard,
      onMessage: (message) => {
        if (child === this.#child) this.#onMessage(message);
      },
      // As a field, where control characters in it are escaped.
      onLine: (line) => log.debug({ model: modelId, pid: child.pid, line }, 'child'),
      // Its port may be a stranger's from now on.
      onExit: () => {
        watchEnd.abort();
        this.#upstream?.destroy();
      },
      onSurvivor: (survivor) => this.#leaveBehind(survivor, survivor.since),
    });
    void child.exited.then(() => killWatch.end());
    if (child.pid !== undefined) events.emit({ type: 'model.loading', model: modelId, pid: child.pid, port });
    this.#markSpawned();
    return child;
  }

  /** The start is a race of all the ways it can end; the losers are ended by one controller. */
  async #untilReady(child: ChildProcess, port: number): Promise<Ending> {
    const race = new AbortController();
    const { signal } = race;
    const saidReady = new Promise<void>((resolve) => (this.#markReady = resolve));
    const ending = await Promise.race<Ending>([
      child.exited.then((exit) => ({ how: 'exited', exit })),
      saidReady.then(() => ({ how: 'ready' })),
      this.#healthyWithoutProtocol(port, signal).then(() => ({ how: 'ready' })),
      aborted(this.#stopRequested.signal, signal).then(() => ({ how: 'stopped' })),
      deadline(this.#spec.loadTimeoutMs, signal).then(() => ({ how: 'deadline' })),
    ]);
    race.abort();
    // A child that died in the same turn as it said ready, or was told to stop then, is not ready.
    if (ending.how !== 'ready') return ending;
    if (child.hasExited) return { how: 'exited', exit: await child.exited };
    if (this.#stopping()) return { how: 'stopped' };
    this.#becomeReady(port);
    return ending;
  }

  /** Never settles for a child that speaks the protocol: its ready line is the truth then. */
  async #healthyWithoutProtocol(port: number, signal: AbortSignal): Promise<void> {
    try {
      await healthy(port, this.#spec.apiPrefix, this.#apiKey, signal, () => this.#warnOfKeyless(port));
      await delay(protocolGraceMs, undefined, { signal });
      if (!this.#speaksProtocol) return;
    } catch {
      // The race was decided otherwise.
    }
    await new Promise<never>(() => undefined);
  }

  /** Either the child ignores LLAMA_API_KEY, and must not be used, or another program has its port. */
  #warnOfKeyless(port: number): void {
    if (this.#speaksProtocol) return;
    const message =
      'what answers on the port does not ask for the key of this run (LLAMA_API_KEY); not using it';
    this.#context.log.warn({ model: this.modelId, port }, message);
  }

  #becomeReady(port: number): void {
    this.#hangWatch = this.#watch(port);
    this.#upstream = new Upstream(port, this.#apiKey, this.#spec.silenceTimeoutMs, this.#hangWatch);
    void this.#child?.look();
    this.#readyAt = performance.now();
    this.#transition(
      { name: 'ready', info: this.#readyInfo },
      {
        type: 'model.loaded',
        model: this.modelId,
        loadMs: Math.round(performance.now() - this.startedAt),
        info: this.#readyInfo,
      },
    );
  }

  #watch(port: number): HangWatch | undefined {
    const { hangTimeoutMs, apiPrefix } = this.#spec;
    const { pid } = this;
    if (hangTimeoutMs === 0 || pid === undefined) return undefined;
    return watchChild({
      pid,
      address: { port, apiKey: this.#apiKey, apiPrefix },
      hangTimeoutMs,
      isAwake: () => this.#state.name === 'ready',
      onHang: (reason) => {
        if (this.#stopping()) return;
        this.#context.log.warn({ model: this.modelId, pid, reason }, 'hangs; stopping it');
        this.#hung = reason;
        this.stop('hung');
      },
      signal: this.#watchEnd.signal,
      nvidiaSmi: this.#context.nvidiaSmi,
    });
  }

  async #whileReady(child: ChildProcess): Promise<Outcome> {
    const race = new AbortController();
    const stopped = aborted(this.#stopRequested.signal, race.signal).then(() => undefined);
    const exit = await Promise.race([child.exited, stopped]);
    race.abort();
    return this.#outcome(child, exit ?? (await this.#end(child, { atOnce: false })));
  }

  /** Ends the child politely or at once; settles when it is gone or cannot be killed. */
  async #end(child: ChildProcess, { atOnce }: { atOnce: boolean }): Promise<ChildExit> {
    const race = new AbortController();
    // Who is still being answered has had its time: a child that is generating for someone exits late or never.
    this.#upstream?.destroy();
    // What has left its group is known as its own only while it lives.
    await child.look();
    if (!atOnce) {
      if (!this.#speaksProtocol) child.signal('SIGTERM');
      else {
        child.sendExitCommand();
        const mayForget = performance.now() - this.#readyAt < forgetfulMs;
        // One that does not heed its command may heed a signal, and has half of its time for that.
        const patienceMs = mayForget ? forgetfulMs : this.#spec.stopTimeoutMs / 2;
        void deadline(patienceMs, race.signal).then(() => child.signal('SIGTERM'));
      }
      const exit = await Promise.race([
        child.exited,
        deadline(this.#spec.stopTimeoutMs, race.signal).then(() => undefined),
      ]);
      race.abort();
      if (exit) {
        // By the kernel, as far as we know: no other child is to be taken for the one that it has killed.
        if (wasKilled(exit)) this.#killWatch?.claim();
        return exit;
      }
      this.#context.log.warn(
        { model: this.modelId, pid: child.pid, stopTimeoutMs: this.#spec.stopTimeoutMs },
        'did not exit when asked to; killing it',
      );
      await child.look();
    }
    const since = new Date();
    child.signal('SIGKILL');
    const last = new AbortController();
    const exit = await Promise.race([child.exited, deadline(killGraceMs, last.signal).then(() => undefined)]);
    last.abort();
    if (exit) return exit;
    // Only what it has started is still there, which is waited for no longer either.
    if (child.hasExited) return await child.exited;
    this.#leaveBehind(child, since);
    return { code: null, signal: 'SIGKILL' };
  }

  #leaveBehind(survivor: ChildProcess | Survivor, since: Date): void {
    const left = leaveBehind(survivor, { model: this.modelId }, { since, log: this.#context.log });
    if (left) this.#leftBehind.push(left);
  }

  #onMessage(message: ChildMessage): void {
    // Who speaks is there, also where a wrapper has started it somewhere else.
    if (!this.#speaksProtocol) void this.#child?.look();
    this.#speaksProtocol = true;
    this.#hangWatch?.progressed();
    const { state, modelId: model } = this;
    const progress = message.kind === 'loading' ? message.progress : undefined;
    switch (message.kind) {
      case 'loading':
        if (state.name === 'loading') {
          this.#transition({ name: 'loading', progress }, { type: 'model.progress', model, progress });
        } else if (state.name === 'sleeping' || state.name === 'waking') {
          const { info } = state;
          this.#transition({ name: 'waking', info, progress }, { type: 'model.waking', model, progress });
        }
        return;
      case 'ready':
        if (state.name === 'loading') {
          this.#readyInfo = message.info;
          this.#markReady();
        } else if (state.name === 'sleeping' || state.name === 'waking') {
          const info = message.info ?? state.info;
          this.#transition({ name: 'ready', info }, { type: 'model.awake', model });
        }
        return;
      case 'sleeping':
        if (state.name === 'ready' || state.name === 'waking') {
          this.#transition({ name: 'sleeping', info: state.info }, { type: 'model.sleeping', model });
        }
        return;
    }
  }

  /** Asked anew after every await: a stop can come at any time. */
  #stopping(): { readonly reason: StopReason } | undefined {
    return this.#state.name === 'stopping' ? this.#state : undefined;
  }

  #outcome(child: ChildProcess, exit: ChildExit): Outcome {
    const stopping = this.#stopping();
    if (stopping) return this.failureInProgress ?? this.#stopped(stopping.reason, exit);
    const phase = this.#upstream === undefined ? 'loading' : 'running';
    const { message, cause } = describeDeath({
      exit,
      phase,
      lastLines: child.lastLines(),
      kernelKill: () => this.#killWatch?.claim(),
    });
    return { ...this.#failure(phase, message, child), exitCode: exitCode(exit), cause };
  }

  /**
   * A stop is no failure, however the child took it. But a load that was given up has not succeeded: clients that wait
   * for its end by events know that from the code.
   */
  #stopped(reason: StopReason, exit?: ChildExit): Outcome {
    const exitCode = this.#upstream === undefined ? 1 : (exit?.code ?? 0);
    return { kind: 'stopped', reason, exitCode };
  }

  /** What threw (no free port, a command line that cannot be made) is this model's failure and nobody else's. */
  #brokenRun(error: unknown): Outcome {
    this.#child?.signal('SIGKILL');
    const stopping = this.#stopping();
    if (stopping) return this.failureInProgress ?? this.#stopped(stopping.reason);
    const cause = error instanceof Error ? error.message : String(error);
    return this.#failure('loading', `could not be started: ${cause}`, this.#child);
  }

  #failure(
    phase: 'loading' | 'running',
    message: string,
    child: ChildProcess | undefined,
  ): Outcome & { kind: 'failed' } {
    const lastLines = child?.lastLines() ?? [];
    return { kind: 'failed', phase, message, exitCode: 1, lastLines, cause: 'other', at: new Date() };
  }

  /**
   * Says what has happened before the owner hears of it: the owner may act at once, and what comes of that must
   * be told after this.
   */
  #transition(next: InstanceState, event: SupervisorEvent | undefined = this.#eventFor(next)): void {
    this.#state = next;
    if (event) this.#context.events.emit(event);
    this.#onChange(this);
  }

  /** The event of a change that always means the same. */
  #eventFor(next: InstanceState): SupervisorEvent | undefined {
    const model = this.modelId;
    if (next.name === 'stopping') return { type: 'model.stopping', model, reason: next.reason };
    if (next.name !== 'exited') return undefined;
    const { outcome } = next;
    return {
      type: 'model.unloaded',
      model,
      reason: outcome.kind === 'failed' ? outcome.message : outcome.reason,
      failed: outcome.kind === 'failed',
      exitCode: outcome.exitCode,
      lastLines: outcome.kind === 'failed' ? outcome.lastLines : [],
    };
  }
}

/** The native router's exit code: that of the process, or 1 for a death by signal or a process that never was. */
function exitCode(exit: ChildExit): number {
  return exit.code ?? 1;
}
