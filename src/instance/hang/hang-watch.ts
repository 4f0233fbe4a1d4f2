import { systemClock, type Clock } from './clock.js';
import type { Evidence, Finding } from './evidence.js';
import type { ProbeAnswer } from './one-token-probe.js';

export interface HangWatchOptions {
  /** No progress for so long, with requests in flight, is a hang. Above 0. */
  readonly hangTimeoutMs: number;
  /** What is looked at when no bytes come, in this order; what costs more comes later and is asked only if need be. */
  readonly evidence: readonly Evidence[];
  /** Asks for one token, on a connection of its own, within a bound. Must not reject. */
  readonly probe: () => Promise<ProbeAnswer>;
  /** Whether the model is loaded now: one that sleeps must not be woken by a probe, one that wakes cannot answer it. */
  readonly isAwake: () => boolean;
  /** Called once, when the child hangs; `reason` continues a sentence that begins with it. Nothing is watched after. */
  readonly onHang: (reason: string) => void;
  readonly clock?: Clock;
}

/** One request in flight, as its connection to the child sees it. */
export interface WatchedRequest {
  /** A byte of its answer has come that is no comment. Called for every chunk, so it only counts. */
  readonly progressed: () => void;
  /**
   * The head of its answer has come. A refusal (4xx, 501) is given by the part of the child that reads requests, in one
   * that is wedged, too: it says nothing for the child and nothing against it. Another 5xx may be either's.
   */
  readonly answered: (statusCode: number) => void;
  /**
   * The child has refused or broken its connection: that is held against it like a 5xx.
   *
   * @param why the words of the error
   */
  readonly broken: (why: string) => void;
  /** Its answer has ended, or nobody wants it any more; more than once is the same as once. */
  readonly ended: () => void;
}

/** Looks come so often within the time-out: what may be late is then an eighth of it … */
const looksPerTimeout = 8;
/** … but neither so often that looking is work for the child, nor so seldom that an operator wonders. Milliseconds. */
const minIntervalMs = 1_000;
const maxIntervalMs = 30_000;

/** A look at one evidence that takes longer has found nothing out. Milliseconds. */
const lookPatienceMs = 10_000;

/** So many failures in a row, a 5xx or a broken connection, and nothing good in between, and the child itself is asked. */
const failuresForProbe = 3;
/** A probe costs a slot its cached prompt: a client that provokes 500s must not make us do that all the time. */
const betweenProbesMs = 30_000;

/**
 * One probe that failed may have shared the error of others: what is decoded together when the cache is full fails
 * together. After so long those are gone, and it is tried once more. Milliseconds.
 */
const secondProbeMs = 1_000;

/** After a probe that failed, the child is watched for so long when it may have been at work on something else. */
const afterProbeMs = 2_000;
/** Who has waited for so long waits for something else than an error. */
const longWaitMs = 5_000;

const unknown: Finding = { kind: 'unknown' };

interface InFlight {
  readonly isPaused: () => boolean;
  /** Milliseconds, monotonic. */
  readonly since: number;
}

/** How the last of several requests failed. */
type Failure = { readonly statusCode: number } | { readonly why: string };

interface Probe {
  readonly answer: ProbeAnswer;
  readonly tookMs: number;
}

/** The outcome of one look at all the evidence. */
interface Round {
  readonly progressed: boolean;
  /** What was seen; empty when nothing could be told. */
  readonly seen: readonly string[];
}

/**
 * Sees whether a ready child is wedged: whether requests are in flight and none of them, nor anything else that can be
 * seen of the child, has got any further for the time-out. It is the child that is judged, not a request: one answer
 * that goes on vouches for all.
 *
 * Time counts only while requests wait. It is counted in looks: an interval without a byte counts when the evidence
 * has been looked at after it and says the same. So a machine, or a container, that was suspended is not taken for a hung child,
 * and neither is one whose only clients left early; yet requests that give up one after the other add up.
 *
 * A child that answers only with 5xx, or with no answer at all, is asked for one token itself, and is judged by that.
 */
export class HangWatch {
  readonly #options: HangWatchOptions;
  readonly #clock: Clock;
  readonly #intervalMs: number;
  readonly #inFlight = new Set<InFlight>();
  /** Looks that have not come back: who does not answer is not asked again meanwhile. */
  readonly #stuck = new Set<Evidence>();
  /** Signs of life by bytes; counted, because a clock would cost every chunk of every stream something. */
  #bytes = 0;
  #bytesAtLook = 0;
  #bytesAtFailure = 0;
  #failures = 0;
  /** How long nothing has been seen, up to the last look. */
  #quietMs = 0;
  /** Of the interval that goes on, what had passed when the child last became idle. */
  #passedMs = 0;
  /** Since when `#passedMs` grows; undefined while the child is idle. */
  #waitedSince: number | undefined;
  #cancelTimer: (() => void) | undefined;
  /** One at a time: the evidence compares with its last look. */
  #inspecting = false;
  #noProbeBefore = Number.NEGATIVE_INFINITY;
  #closed = false;

  constructor(options: HangWatchOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#intervalMs = lookIntervalMs(options.hangTimeoutMs);
  }

  /**
   * A request is on its way to the child.
   *
   * @param isPaused whether its answer is not read just now because its client does not take what has come: it then
   *   does not wait for the child. Asked at a look only
   */
  begin(isPaused: () => boolean): WatchedRequest {
    const request: InFlight = { isPaused, since: this.#clock.now() };
    this.#inFlight.add(request);
    this.#startWaiting(request.since);
    let isError = false;
    return {
      progressed: () => {
        if (!isError) this.#bytes += 1;
      },
      answered: (statusCode) => {
        isError = statusCode >= 400;
        if (!isError) this.#bytes += 1;
        else this.#refused(request, statusCode);
      },
      broken: (why) => {
        if (!this.#inFlight.has(request)) return;
        this.#leaves(request);
        this.#afterFailure({ why });
      },
      ended: () => this.#ended(request),
    };
  }

  /** The child has said something by itself, such as how far it has come in waking up. */
  progressed(): void {
    this.#bytes += 1;
  }

  /** Ends it: nothing is looked at and nothing is said any more. */
  close(): void {
    this.#closed = true;
    this.#stopWaiting();
  }

  #refused(request: InFlight, statusCode: number): void {
    this.#leaves(request);
    if (isServerFailure(statusCode)) this.#afterFailure({ statusCode });
  }

  /** It waits no more, and has not waited for a child that is wedged: its time is not to add up with that of others. */
  #leaves(request: InFlight): void {
    if (this.#inFlight.size === 1 && this.#waitedSince !== undefined) this.#waitedSince = this.#clock.now();
    this.#ended(request);
  }

  #ended(request: InFlight): void {
    if (this.#inFlight.delete(request) && this.#inFlight.size === 0) this.#stopWaiting();
  }

  #startWaiting(now: number): void {
    if (this.#closed || this.#waitedSince !== undefined) return;
    this.#waitedSince = now;
    this.#setTimer();
  }

  #stopWaiting(): void {
    if (this.#waitedSince === undefined) return;
    this.#passedMs += this.#clock.now() - this.#waitedSince;
    this.#waitedSince = undefined;
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
  }

  #setTimer(): void {
    if (this.#inspecting || this.#waitedSince === undefined) return;
    const passedMs = this.#passedMs + this.#clock.now() - this.#waitedSince;
    const leftMs = Math.max(0, this.#intervalMs - passedMs);
    this.#cancelTimer?.();
    this.#cancelTimer = this.#clock.after(leftMs, () => void this.#alone(() => this.#look()));
  }

  async #alone(inspect: () => Promise<void>): Promise<void> {
    this.#inspecting = true;
    this.#cancelTimer?.();
    try {
      await inspect();
    } finally {
      this.#inspecting = false;
      this.#setTimer();
    }
  }

  async #look(): Promise<void> {
    this.#passedMs = 0;
    this.#waitedSince = this.#clock.now();
    if (this.#bytes !== this.#bytesAtLook) {
      this.#sawProgress();
      return;
    }
    if (!this.#isWaitedFor()) return;
    this.#quietMs += this.#intervalMs;
    const { progressed, seen } = await this.#inspect(this.#quietMs, 'until progress is seen');
    if (progressed || this.#bytes !== this.#bytesAtLook) {
      this.#sawProgress();
      return;
    }
    const { hangTimeoutMs } = this.#options;
    // Bytes alone do not tell a hang from a long prompt.
    if (this.#quietMs < hangTimeoutMs || seen.length === 0 || !this.#isWaitedFor()) return;
    this.#hangs(
      `made no progress for ${seconds(this.#quietMs)} with ${requests(this.#inFlight.size)} in flight ` +
        `(--hang-timeout ${seconds(hangTimeoutMs)}): it sent nothing but comments, ${seen.join(', ')}`,
    );
  }

  /** Whether a request is in flight whose client would read an answer. */
  #isWaitedFor(): boolean {
    for (const { isPaused } of this.#inFlight) if (!isPaused()) return true;
    return false;
  }

  /** Whether a request has been in flight for so long that the child may be at work on something long. */
  #hasPatientRequest(): boolean {
    const latest = this.#clock.now() - longWaitMs;
    for (const { since } of this.#inFlight) if (since <= latest) return true;
    return false;
  }

  #sawProgress(): void {
    this.#bytesAtLook = this.#bytes;
    this.#quietMs = 0;
  }

  async #inspect(quietMs: number, extent: 'all' | 'until progress is seen'): Promise<Round> {
    let progressed = false;
    const seen: string[] = [];
    for (const evidence of this.#options.evidence) {
      const finding = await this.#ask(evidence, quietMs);
      if (finding.kind === 'progress' && extent !== 'all') return { progressed: true, seen: [] };
      // Of a time before the first look nothing is known: the benefit of the doubt is the child's.
      if (finding.kind === 'progress' || finding.kind === 'first') progressed = true;
      if (finding.kind === 'none') seen.push(finding.said);
    }
    return { progressed, seen };
  }

  async #ask(evidence: Evidence, quietMs: number): Promise<Finding> {
    if (this.#stuck.has(evidence)) return unknown;
    this.#stuck.add(evidence);
    let isLate = false;
    const look = evidence.look(quietMs).finally(() => this.#stuck.delete(evidence));
    let forget: () => void = () => undefined;
    const patience = new Promise<Finding>((resolve) => {
      forget = this.#clock.after(lookPatienceMs, () => {
        isLate = true;
        resolve(unknown);
      });
    });
    // The next look compares with this one: progress that it has seen would be seen by nobody else.
    const heed = ({ kind }: Finding): void => {
      if (isLate && kind === 'progress') this.progressed();
    };
    look.then(heed, () => undefined);
    return await Promise.race([look, patience])
      .catch(() => unknown)
      .finally(forget);
  }

  #afterFailure(failure: Failure): void {
    if (this.#bytes !== this.#bytesAtFailure) this.#failures = 0;
    this.#bytesAtFailure = this.#bytes;
    this.#failures += 1;
    if (this.#failures < failuresForProbe || this.#closed || this.#inspecting) return;
    if (this.#clock.now() < this.#noProbeBefore || !this.#options.isAwake()) return;
    void this.#alone(() => this.#probe(failure));
  }

  async #probe(failure: Failure): Promise<void> {
    const bytesBefore = this.#bytes;
    // Something good may have come meanwhile, or the model may have gone to sleep; then a probe would wake it.
    const isObsolete = (): boolean => this.#closed || this.#bytes !== bytesBefore || !this.#options.isAwake();
    const failures =
      'why' in failure
        ? `broke off the last ${this.#failures} requests (${failure.why})`
        : `answered the last ${this.#failures} requests with a 5xx (${failure.statusCode})`;
    // What comes after it is compared with this.
    await this.#inspect(0, 'all');
    const { answer, tookMs } = await this.#askForTokens(isObsolete);
    if (answer === 'called off') return;
    if (answer === 'alive') {
      this.#failures = 0;
      return;
    }
    const isSilent = answer === 'no answer';
    // A child that works on something long may have no time, or no memory, for a probe. Otherwise an answer is enough:
    // what it cost the child to fail would look like work.
    const seen: string[] = [];
    if (isSilent || this.#hasPatientRequest()) {
      const round = isSilent ? await this.#inspect(tookMs, 'all') : await this.#inspectFor(afterProbeMs);
      if (round.progressed || round.seen.length === 0) return;
      seen.push(...round.seen);
    }
    if (isObsolete()) return;
    this.#hangs([`${failures} and ${describe(answer, tookMs)}`, ...seen].join(', '));
  }

  /** Asks for one token, and a moment after a failure for another. */
  async #askForTokens(isObsolete: () => boolean): Promise<Probe> {
    const first = await this.#askForToken();
    if (first.answer !== 'broken' && typeof first.answer !== 'object') return first;
    await this.#pause(secondProbeMs);
    return isObsolete() ? { answer: 'called off', tookMs: 0 } : await this.#askForToken();
  }

  async #askForToken(): Promise<Probe> {
    const askedAt = this.#clock.now();
    const answer = await this.#options.probe();
    const now = this.#clock.now();
    this.#noProbeBefore = now + betweenProbesMs;
    return { answer, tookMs: now - askedAt };
  }

  /** What happens in so much time. */
  async #inspectFor(ms: number): Promise<Round> {
    await this.#inspect(0, 'all');
    await this.#pause(ms);
    return await this.#inspect(ms, 'all');
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => this.#clock.after(ms, resolve));
  }

  #hangs(reason: string): void {
    // Closed while it was looked at: the child is being stopped for another reason, which is the one kept.
    if (this.#closed) return;
    this.close();
    this.#options.onHang(reason);
  }
}

/** How often is looked whether the child gets on. Milliseconds. */
export function lookIntervalMs(hangTimeoutMs: number): number {
  return Math.min(maxIntervalMs, Math.max(minIntervalMs, hangTimeoutMs / looksPerTimeout));
}

/** What cannot be done (501) was not asked of a server that fails. */
function isServerFailure(statusCode: number): boolean {
  return statusCode >= 500 && statusCode !== 501;
}

/** Continues a sentence about what the child has done to the requests of clients. */
function describe(answer: Exclude<ProbeAnswer, 'alive' | 'called off'>, tookMs: number): string {
  if (answer === 'no answer') return `did not answer a one-token completion within ${seconds(tookMs)}`;
  if (answer === 'broken') return 'broke off two one-token completions, too';
  return `answered two one-token completions with ${answer.failedWith}, too`;
}

function seconds(ms: number): string {
  return `${Math.round(ms / 100) / 10} s`;
}

function requests(count: number): string {
  return count === 1 ? '1 request' : `${count} requests`;
}
