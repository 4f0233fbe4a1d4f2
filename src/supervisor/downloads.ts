import { appCommand } from '../config/app-command.js';
import type { LlamaServerFacts } from '../config/help.js';
import type { Settings } from '../config/settings.js';
import { RouterError, type ErrorCode } from '../errors.js';
import type { EventBus } from '../events/events.js';
import type {
  DownloadedBytes,
  Downloads as DownloadsApi,
  DownloadView,
  Hold,
  RemovedDownload,
} from '../http/download-routes.js';
import { childEnvironment } from '../instance/child-environment.js';
import {
  runDownloadWorker,
  type DownloadOutcome,
  type DownloadProgress,
} from '../instance/download-worker.js';
import { aborted, deadline } from '../instance/endings.js';
import type { OrphanGuard } from '../instance/orphan-guard.js';
import { planDownload, type DownloadPlan } from '../models/hub/download-plan.js';
import { joinPath } from '../models/disk/directory.js';
import { repoFolder } from '../models/disk/hub-repo.js';
import { listHubRepo, vetHubFile, type HubQuestion, type NoAnswer } from '../models/hub/hub-listing.js';
import { parseHubName } from '../models/hub/hub-name.js';
import {
  firstNotThere,
  freeBytes,
  makeResumable,
  missingBytes,
  removeUnfinished,
  unfinishedBytes,
} from '../models/hub/planned-files.js';
import type { LiveCatalog } from '../models/live-catalog.js';
import type { Model } from '../models/model.js';
import type { Logger } from '../observe/log.js';
import { failureByWords, failureOf, type DownloadFailure } from './download-failure.js';

export interface DownloadsOptions {
  /** The llama-server that downloads. */
  readonly binary: string;
  readonly facts: Pick<LlamaServerFacts, 'buildInfo'>;
  readonly env: NodeJS.ProcessEnv;
  readonly settings: Pick<Settings, 'offline' | 'hfToken'>;
  readonly catalog: Pick<LiveCatalog, 'current' | 'cacheDirectories' | 'reload'>;
  readonly guard: OrphanGuard;
  readonly events: EventBus;
  readonly log: Logger;
  /** How long the hub may take for each answer. */
  readonly askTimeoutMs?: number;
  /** How long neither words nor bytes may come from a worker. */
  readonly silenceTimeoutMs?: number;
}

/** Downloads at one time, those included that wait for another of the same repository. */
const maxDownloads = 4;
/** Failed downloads that are remembered. */
const maxFailed = 16;
/** Files of one download of which the progress is told; a model has some dozen parts at most. */
const maxFilesTold = 512;
/** How long the end of all downloads is waited for, beyond which only a file system that is gone can keep one. */
const closeMs = 10_000;

/** How long the disk may take to say what is there. */
const diskMs = 30_000;
const defaultAskTimeoutMs = 10_000;
/** The worker itself gives up a connection after five minutes without a byte, and tries three times. */
const defaultSilenceTimeoutMs = 600_000;

const codeOf: Readonly<Record<NoAnswer['why'], ErrorCode>> = {
  not_found: 'hub_not_found',
  refused: 'hub_refused',
  unreachable: 'hub_unreachable',
};

interface Running {
  readonly name: string;
  readonly plan: DownloadPlan;
  readonly cancel: AbortController;
  readonly progress: Map<string, DownloadedBytes>;
  /** Settles when it has ended and its end was told, with the model that it has brought; never rejects. */
  ended: Promise<RemovedDownload>;
}

/** How a download ends well. */
type Brought = Pick<DownloadPlan, 'modelId'>;

/** What a download waits for; nothing of it rejects. */
type Before = readonly Promise<unknown>[];

/**
 * Downloads of models into the hub cache: what the hub is asked first, llama-server's own worker, and what must be true
 * before a download has finished.
 */
export class Downloads implements DownloadsApi {
  readonly #options: DownloadsOptions;
  /** Names about which the hub is being asked, and what gives that up. */
  readonly #asking = new Map<string, AbortController>();
  readonly #running = new Map<string, Running>();
  /** The last work, by repository, that downloads of it and other work wait for. */
  readonly #keptOut = new Map<string, Promise<void>>();
  /** What holds the files of a repository after the work on them has ended. */
  readonly #held = new Map<string, Promise<void>>();
  readonly #failed = new Map<string, DownloadView & { readonly state: 'failed' }>();
  readonly #closing = new AbortController();

  constructor(options: DownloadsOptions) {
    this.#options = options;
  }

  async start(name: string, signal: AbortSignal): Promise<void> {
    // 1. What needs no network.
    parseHubName(name);
    if (this.#asking.has(name)) throw modelExists(name);
    this.#refuseKnown(name);
    if (this.#options.settings.offline) {
      const message = `'${name}' is not downloaded: nothing may be asked of the network (--offline)`;
      throw new RouterError('hub_offline', message, { model: name });
    }
    if (this.#asking.size + this.#running.size >= maxDownloads) {
      const message = `${maxDownloads} downloads go on already; try again when one of them has ended`;
      throw new RouterError('too_many_downloads', message, { model: name });
    }
    // 2. What the hub says. The name is taken meanwhile.
    const cancel = new AbortController();
    this.#asking.set(name, cancel);
    const refuseUnwanted = (): void => {
      if (this.#closing.signal.aborted) throw shuttingDown();
      if (cancel.signal.aborted) throw cancelledEarly(name);
      if (signal.aborted) throw clientGone();
    };
    try {
      const plan = await this.#plan(name, AbortSignal.any([signal, cancel.signal, this.#closing.signal]));
      await fromDisk(plan.folder, this.#refuseWhole(plan));
      await fromDisk(plan.folder, this.#refuseWithoutRoom(name, plan));
      // 3. In one turn, so that nothing can come between: is all of that still so?
      refuseUnwanted();
      this.#refuseKnown(name);
      this.#begin(name, plan);
    } catch (error) {
      refuseUnwanted();
      throw error;
    } finally {
      this.#asking.delete(name);
    }
  }

  cancel(id: string): boolean {
    const cancel = this.#asking.get(id) ?? this.#running.get(id)?.cancel;
    cancel?.abort();
    return cancel !== undefined;
  }

  list(): readonly DownloadView[] {
    const { current } = this.#options.catalog;
    const running = [...this.#running.values()].map(({ name, progress }): DownloadView => {
      return {
        id: name,
        state: 'downloading',
        progress: Object.fromEntries(progress),
        args: this.#args(name),
      };
    });
    // A model that can be served has come in another way, or is being replaced.
    return [...running, ...this.#failed.values()].filter(({ id }) => {
      const model = current.resolve(id);
      return model === undefined || model.problem !== undefined;
    });
  }

  async remove(id: string): Promise<RemovedDownload | undefined> {
    const running = this.#running.get(id);
    const isThere = this.cancel(id);
    const end = await running?.ended;
    const wasFailed = this.#failed.delete(id);
    return isThere || wasFailed ? { brought: end?.brought } : undefined;
  }

  async keepOut<T>(id: string, work: (hold: Hold) => Promise<T>): Promise<T> {
    const [repo = ''] = id.split(':', 1);
    const coming = [...this.#running.values()].find(({ plan }) => plan.repo === repo);
    if (coming !== undefined) {
      const message = `'${coming.name}' of the same repository is being downloaded; try again when that has ended`;
      throw new RouterError('model_downloading', message, { model: id });
    }
    const result = (this.#keptOut.get(repo) ?? Promise.resolve()).then(() => {
      if (this.#held.has(repo)) throw stillHeld(id);
      return work((until) => this.#hold(repo, until));
    });
    const ended = settled(result);
    this.#keptOut.set(repo, ended);
    try {
      return await result;
    } finally {
      if (this.#keptOut.get(repo) === ended) this.#keptOut.delete(repo);
    }
  }

  #hold(repo: string, until: Promise<unknown>): void {
    const held = settled(until).then(() => void this.#held.delete(repo));
    this.#held.set(repo, held);
  }

  /** Takes no new download and ends those that go on; what has come of them is kept. Settles within seconds. */
  async close(): Promise<void> {
    this.#closing.abort();
    const end = new AbortController();
    const ended = Promise.all([...this.#running.values()].map((running) => running.ended));
    await Promise.race([ended, deadline(closeMs, end.signal)]);
    end.abort();
  }

  /** @throws RouterError model_exists, also for a download that goes on, shutting_down */
  #refuseKnown(name: string): void {
    const { catalog } = this.#options;
    if (this.#closing.signal.aborted) throw shuttingDown();
    const model = catalog.current.resolve(name);
    const isThere = model !== undefined && !this.#couldMend(name, model);
    if (this.#running.has(name) || isThere) throw modelExists(name);
  }

  /** Whether a download could: `model` is of the repository in the hub cache, and at fault or of an older commit. */
  #couldMend(name: string, { file, problem, options }: Model): boolean {
    const { hub } = this.#options.catalog.cacheDirectories;
    if (hub === undefined || file === undefined) return false;
    const isInHub = file.startsWith(joinPath(hub, `${repoFolder(parseHubName(name).repo)}/`));
    // A child that is given the repository would not find what is of an older commit: it is given the file.
    const isOutdated = ![...options.keys()].some(({ key }) => key === 'hf-repo');
    return isInHub && (problem !== undefined || isOutdated);
  }

  /**
   * What is to be downloaded, as the hub says.
   *
   * @throws RouterError hub_not_found, hub_refused, hub_unreachable
   */
  async #plan(name: string, signal: AbortSignal): Promise<DownloadPlan> {
    const { env, facts, settings, catalog, askTimeoutMs = defaultAskTimeoutMs } = this.#options;
    const { repo, tag } = parseHubName(name);
    const { hub } = catalog.cacheDirectories;
    if (hub === undefined) throw new Error('no cache directory is known: set LLAMA_CACHE or HOME');
    const question: HubQuestion = {
      repo,
      env,
      token: settings.hfToken,
      userAgent: `llama-cpp/${facts.buildInfo}`,
      timeoutMs: askTimeoutMs,
      signal,
    };
    const listing = await listHubRepo(question);
    if (listing.kind === 'unknown') throw refusalOf(name, listing);
    const plan = planDownload({ repo, tag }, listing, hub);
    const [first] = plan.model;
    const denial = first && (await vetHubFile(question, { commit: plan.commit, path: first.path }));
    if (denial !== undefined) throw refusalOf(name, denial);
    return plan;
  }

  /** @throws RouterError model_exists, when the same model is there under its full name */
  async #refuseWhole({ modelId, model }: DownloadPlan): Promise<void> {
    const { catalog } = this.#options;
    if (modelId === undefined || catalog.current.resolve(modelId) === undefined) return;
    if ((await firstNotThere(model)) === undefined) throw modelExists(modelId);
  }

  /** @throws RouterError disk_full */
  async #refuseWithoutRoom(name: string, { files, folder }: DownloadPlan): Promise<void> {
    const ofOthers = [...this.#running.values()].map(({ plan }) => missingBytes(plan.files));
    const promisedBytes = (await Promise.all(ofOthers)).reduce((sum, bytes) => sum + bytes, 0);
    const neededBytes = await missingBytes(files);
    const free = await freeBytes(folder);
    if (neededBytes === 0 || neededBytes + promisedBytes <= free) return;
    const promised = promisedBytes === 0 ? '' : `, ${inUnits(promisedBytes)} of it for downloads that go on`;
    throw new RouterError(
      'disk_full',
      `'${name}' needs ${inUnits(neededBytes)} more; on the disk of '${folder}' ${inUnits(free)} are free${promised}`,
      { model: name },
    );
  }

  #begin(name: string, plan: DownloadPlan): void {
    const running: Running = {
      name,
      plan,
      cancel: new AbortController(),
      progress: new Map(),
      ended: Promise.resolve({ brought: undefined }),
    };
    this.#failed.delete(name);
    // Two workers would write into the same unfinished files.
    const others = [...this.#running.values()].filter((other) => other.plan.repo === plan.repo);
    const before = [this.#letIn(plan.repo), ...others.map(({ ended }) => ended)];
    this.#running.set(name, running);
    this.#options.events.emit({ type: 'download.started', model: name });
    running.ended = this.#run(running, before);
  }

  /** Settles when no work on the repository's files goes on any more, and nothing holds them. */
  async #letIn(repo: string): Promise<void> {
    await this.#keptOut.get(repo);
    await this.#held.get(repo);
  }

  async #run(running: Running, before: Before): Promise<RemovedDownload> {
    const { events, log } = this.#options;
    const { name } = running;
    let end: Brought | DownloadFailure;
    try {
      end = await this.#bring(running, before);
    } catch (error) {
      log.error({ err: error, model: name }, 'a download failed unexpectedly');
      const message = `the download of '${name}' failed: ${(error as Error).message}`;
      end = { reason: 'internal', message, lastLines: [] };
    }
    this.#running.delete(name);
    if ('modelId' in end) {
      events.emit({ type: 'download.finished', model: name });
      return { brought: end.modelId };
    }
    const { reason, message } = end;
    if (reason !== 'cancelled') this.#remember(running, end);
    events.emit({ type: 'download.failed', model: name, reason, message });
    return { brought: undefined };
  }

  /** Settles when the model is in the catalog, or with the reason why it will not be. */
  async #bring(running: Running, before: Before): Promise<Brought | DownloadFailure> {
    const { binary, env, settings, guard, log } = this.#options;
    const { silenceTimeoutMs = defaultSilenceTimeoutMs } = this.#options;
    const { name, plan, cancel } = running;
    const end = new AbortController();
    const ending = AbortSignal.any([cancel.signal, this.#closing.signal]);
    await Promise.race([Promise.all(before), aborted(ending, end.signal)]);
    end.abort();
    // Until then the unfinished files are another download's.
    const isItsTurn = !ending.aborted;
    if (isItsTurn) await fromDisk(plan.folder, makeResumable(plan.files));

    const outcome = await runDownloadWorker({
      binary,
      args: workerOptions(name),
      hfRepo: name,
      environment: childEnvironment(env),
      token: settings.hfToken,
      guard,
      silenceTimeoutMs,
      receivedBytes: () => unfinishedBytes(plan),
      signal: cancel.signal,
      interrupt: this.#closing.signal,
      onProgress: (progress) => this.#note(running, progress),
      onLine: (line) => log.debug({ model: name, line }, 'download'),
    });
    switch (outcome.kind) {
      case 'finished':
        return await this.#confirm(running, outcome);
      case 'failed':
        return failureOf(outcome);
      case 'cancelled':
        if (isItsTurn) await fromDisk(plan.folder, removeUnfinished(plan.files));
        return { ...outcome, reason: 'cancelled' };
      case 'interrupted':
        return { ...outcome, reason: 'shutting_down' };
    }
  }

  /** The worker says that it has finished also when it has found nothing: the files themselves are looked at. */
  async #confirm(running: Running, outcome: DownloadOutcome): Promise<Brought | DownloadFailure> {
    const { catalog } = this.#options;
    const { name } = running;
    const { lastLines } = outcome;
    let { plan } = running;
    let lack = await fromDisk(plan.folder, firstNotThere(plan.model));
    if (lack !== undefined) {
      // The repository may have got a new commit between our question and the worker's.
      plan = await this.#plan(name, this.#closing.signal).catch(() => plan);
      lack = await fromDisk(plan.folder, firstNotThere(plan.model));
      if (lack !== undefined && this.#closing.signal.aborted) {
        const message = `whether the download of '${name}' has brought all was not asked any more`;
        return { reason: 'shutting_down', message, lastLines };
      }
    }
    if (lack !== undefined) {
      const { path, sizeBytes = 0 } = lack.file;
      if (lack.bytes === undefined) {
        const message = `the download of '${name}' brought no '${path}'`;
        return failureByWords({ message, lastLines }, 'hub_not_found');
      }
      const message = `the download of '${name}' brought ${lack.bytes} of ${sizeBytes} bytes of '${path}'`;
      const isFull = (await fromDisk(plan.folder, freeBytes(plan.folder))) < sizeBytes - lack.bytes;
      return failureByWords({ message, lastLines }, isFull ? 'disk_full' : 'internal');
    }
    await catalog.reload();
    const { modelId } = plan;
    const isListed = modelId === undefined || catalog.current.resolve(modelId) !== undefined;
    // A catalog that is closed shows no more what comes.
    if (isListed || this.#closing.signal.aborted) return { modelId };
    const message = `the download of '${name}' is in the cache, and '${modelId}' is not found there`;
    return { reason: 'internal', message, lastLines };
  }

  #note({ name, progress }: Running, { url, downloadedBytes, totalBytes }: DownloadProgress): void {
    if (!progress.has(url) && progress.size >= maxFilesTold) return;
    progress.set(url, { done: downloadedBytes, total: totalBytes });
    this.#options.events.emit({
      type: 'download.progress',
      model: name,
      progress: Object.fromEntries(progress),
    });
  }

  #remember({ name, progress }: Running, { reason, message, lastLines }: DownloadFailure): void {
    this.#failed.set(name, {
      id: name,
      state: 'failed',
      progress: Object.fromEntries(progress),
      args: this.#args(name),
      error: { reason, message, lastLines, at: new Date() },
    });
    const [oldest] = this.#failed.keys();
    if (this.#failed.size > maxFailed && oldest !== undefined) this.#failed.delete(oldest);
  }

  #args(name: string): string[] {
    const { binary, env } = this.#options;
    return [binary, ...appCommand(env), ...workerOptions(name)];
  }
}

/** What the native router gives its worker (tools/server/server-models.cpp, `load`); it does not listen anywhere. */
function workerOptions(name: string): string[] {
  return ['--host', '127.0.0.1', '--port', '0', '--alias', name];
}

function refusalOf(name: string, { why, reason }: NoAnswer): RouterError {
  return new RouterError(codeOf[why], `'${name}' cannot be downloaded: ${reason}`, { model: name });
}

function modelExists(name: string): RouterError {
  return new RouterError('model_exists', `model '${name}' already exists`, { model: name });
}

function shuttingDown(): RouterError {
  return new RouterError('shutting_down', 'the server is shutting down');
}

function cancelledEarly(name: string): RouterError {
  const message = `the download of '${name}' was cancelled before it began`;
  return new RouterError('model_unloaded_meanwhile', message, { model: name });
}

function stillHeld(id: string): RouterError {
  const message =
    `model name=${id} cannot be removed: a removal of the same repository goes on, because the cache does not answer; ` +
    'try again when it does';
  return new RouterError('remove_failed', message, { model: id });
}

/** Settles when `work` does, and never rejects. */
async function settled(work: Promise<unknown>): Promise<void> {
  await work.catch(() => undefined);
}

function clientGone(): RouterError {
  return new RouterError('client_gone', 'the client left before the download began');
}

function inUnits(bytes: number): string {
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

/** What is found on disk; rejects when the file system, which may be a network's, does not answer. */
async function fromDisk<T>(directory: string, work: Promise<T>): Promise<T> {
  const end = new AbortController();
  const late = deadline(diskMs, end.signal).then(() => {
    throw new Error(`'${directory}' does not answer`);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    end.abort();
  }
}
