/** The composition root: builds every part, starts them in order, ends them in order. It decides nothing. */
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { cacheDirectory, runtimeDirectory } from './config/directories.js';
import type { LlamaServerFacts } from './config/help.js';
import type { OptionValues } from './config/option-table.js';
import type { Settings } from './config/settings.js';
import type { VertexSettings } from './config/vertex-settings.js';
import { ensureDemoModels } from './demo/demo-models.js';
import { RouterError } from './errors.js';
import { EventBus } from './events/events.js';
import { AllowedHosts } from './http/allowed-hosts.js';
import { createApp } from './http/app.js';
import { BodyBudget } from './http/body-budget.js';
import { spoolingFor } from './http/body-spool.js';
import { limitConnections } from './http/connection-limit.js';
import { Conversations } from './http/conversations.js';
import { corsPolicy } from './http/cors.js';
import { defaultModelOf } from './http/default-model.js';
import { EventFeed } from './http/event-stream.js';
import { helperFeatures } from './http/helper-routes.js';
import { RequestTracer } from './http/request-trace.js';
import { LiveKeys } from './http/live-keys.js';
import { routerProps } from './http/router-props.js';
import { endpointName, Listeners, type Endpoint } from './http/listening.js';
import { seldom } from './http/seldom.js';
import { createServer } from './http/server.js';
import { readWebUiSettings } from './http/web-ui-settings.js';
import { TlsFiles } from './http/tls-files.js';
import { NvidiaSmi } from './instance/hang/nvidia-evidence.js';
import { HelperChild } from './instance/helper-child.js';
import { killAccount, KernelKills } from './instance/kernel-kills.js';
import { OrphanGuard } from './instance/orphan-guard.js';
import { ProcessMemory } from './instance/process-memory.js';
import type { Catalog } from './models/catalog.js';
import type { CatalogDiff } from './models/catalog-diff.js';
import { planRemoval } from './models/disk/remove-cached.js';
import { FactsStore } from './models/gguf/facts-store.js';
import { LiveCatalog } from './models/live-catalog.js';
import type { Watching } from './models/watching/watcher.js';
import { Counters } from './observe/counters.js';
import { logEvents, logFaults } from './observe/log-events.js';
import type { Logger } from './observe/log.js';
import { runFileName, writeRunFile } from './observe/run-file.js';
import { Scheduler } from './scheduler/scheduler.js';
import { comeBack } from './supervisor/come-back.js';
import { Downloads } from './supervisor/downloads.js';
import { followDisk } from './supervisor/follow-disk.js';
import { Launcher } from './supervisor/launcher.js';
import { loadAtStart } from './supervisor/load-at-start.js';
import type { LoadedModels } from './supervisor/loaded-models.js';
import { OwnLoads } from './supervisor/own-loads.js';
import { warnIfOpenToOthers } from './supervisor/open-to-others.js';
import { keepLoaded } from './supervisor/restore.js';

export interface SupervisorOptions {
  readonly settings: Settings;
  /** Options of the command line that every model inherits. */
  readonly childOptions: OptionValues;
  /** Arguments of the llama-server that serves the web UI and tools. */
  readonly helperArgs: readonly string[];
  /** Path of the llama-server that runs the models. */
  readonly binary: string;
  readonly facts: LlamaServerFacts;
  readonly env: NodeJS.ProcessEnv;
  readonly log: Logger;
  /** Id of a model to load at the start, as if its section said so. */
  readonly loadFirst?: string | undefined;
  /** Set when Vertex AI runs this. */
  readonly vertex?: VertexSettings | undefined;
  /** Whether loads and requests are delayed, as upstream's own tests want it (LLAMA_SERVER_DEBUG_FAKE_TIMING). */
  readonly fakeTiming?: boolean;
  /** Called once when a client asks for an end in order, for which `shutdown` is to be called. */
  readonly onDrain: () => void;
}

/** As long as the native router delays a load, and a request that it passes on. */
const fakeDelayMs = 2_000;

/** How long clients get to read the last of their answers when everything else has ended. */
const lastAnswersMs = 1_000;

/** Of the answers that a drain cuts so many are named. */
const namedCuts = 20;

/** How long the helper may take to exit, which has nothing to finish by then. */
const helperStopMs = 5_000;

/** Out of file handles, every client that knocks is an error. */
const acceptErrorEveryMs = 60_000;

/** The parts that live as long as the supervisor does. */
interface Parts {
  readonly settings: Settings;
  readonly log: Logger;
  readonly catalog: LiveCatalog;
  readonly facts: FactsStore;
  readonly keys: LiveKeys;
  readonly tls: TlsFiles | undefined;
  readonly feed: EventFeed;
  readonly listeners: Listeners;
  readonly tracer: RequestTracer;
  readonly scheduler: Scheduler;
  readonly conversations: Conversations;
  readonly downloads: Downloads;
  readonly helper: HelperChild;
  readonly guard: OrphanGuard;
  readonly watching: Watching | undefined;
  /** Set when the models that are loaded now are to be loaded at the next start. */
  readonly loaded: LoadedModels | undefined;
  readonly removeRunFile: () => void;
}

export class Supervisor {
  readonly #parts: Parts;

  private constructor(parts: Parts) {
    this.#parts = parts;
  }

  /** Where it listens; of several addresses the one to name. */
  get endpoint(): Endpoint {
    return this.#parts.listeners.main;
  }

  /** What it serves now. */
  get catalog(): Catalog {
    return this.#parts.catalog.current;
  }

  /**
   * Starts everything; settles when requests are taken.
   *
   * @throws with a message for the user when a directory, file or address that was named cannot be used
   */
  static async start(options: SupervisorOptions): Promise<Supervisor> {
    const undo: (() => unknown)[] = [];
    try {
      return await Supervisor.#start(options, (end) => undo.push(end));
    } catch (error) {
      // What runs by then must neither go on nor keep this process.
      for (const end of undo.reverse()) await end();
      throw error;
    }
  }

  /** @param onFailure takes what ends a part again when a later one cannot be started; called in reverse order */
  static async #start(
    {
      settings,
      childOptions,
      helperArgs,
      binary,
      facts: server,
      env,
      log,
      loadFirst,
      vertex,
      fakeTiming = false,
      onDrain,
    }: SupervisorOptions,
    onFailure: (end: () => unknown) => void,
  ): Promise<Supervisor> {
    // 1. What is served.
    const uiSettings = await readWebUiSettings(settings);
    const cache = cacheDirectory(env);
    const demo = settings.demo ? await ensureDemoModels(join(cache, 'demo-models')) : undefined;
    const modelsDirs = [settings.modelsDir, demo?.directory].filter((directory) => directory !== undefined);
    const presetFiles = [demo?.presetFile, settings.modelsPreset].filter((file) => file !== undefined);
    const facts = new FactsStore({ cacheFile: join(cache, 'gguf-facts.json') });
    onFailure(() => facts.close());
    const catalog = await LiveCatalog.open({
      env,
      modelsDirs,
      presetFiles,
      base: childOptions,
      table: server.table,
      linksDirectory: join(cache, 'links'),
      facts,
      onChange: (diff) => followCatalog(diff, { scheduler, launcher, events }),
      onError: (error) => log.error({ err: error }, 'looking for models failed'),
    });
    onFailure(() => catalog.close());
    reportCatalog(catalog.current, catalog.cacheDirectories, modelsDirs, log);
    reportDefaultModel(catalog.current, settings, log);

    // 2. Who runs it.
    const guard = new OrphanGuard(log);
    onFailure(() => guard.close());
    const events = new EventBus((error) => log.error({ err: error }, 'an event listener failed'));
    const feed = new EventFeed({ events, log });
    const counters = new Counters();
    counters.listenTo(events);
    logEvents(events, log);
    const kernelKills = new KernelKills(killAccount());
    const launcher: Launcher = new Launcher({
      binary,
      facts: server,
      env,
      settings,
      catalog: () => catalog.current,
      startDelayMs: fakeTiming ? fakeDelayMs : 0,
      guard,
      events,
      log,
      kernelKills,
      nvidiaSmi: new NvidiaSmi(),
    });
    const scheduler = new Scheduler(settings, {
      events,
      launch: (id, onChange) => launcher.launch(id, onChange),
      standing: (instance) => launcher.standing(instance),
      refusal: (id) => launcher.refusal(id),
    });
    const helper = new HelperChild({
      binary,
      args: helperArgs,
      env,
      modelCache: join(cache, 'no-models'),
      guard,
      log,
      kernelKills,
      startTimeoutMs: settings.loadTimeoutMs,
      stopTimeoutMs: helperStopMs,
      silenceTimeoutMs: settings.timeoutMs,
    });
    onFailure(() => helper.stop());
    // What is wrong with its tools and MCP servers is to be known at once, as by the native router.
    if (helperFeatures(settings).tools) await helper.ready(new AbortController().signal);
    const downloads = new Downloads({ binary, facts: server, env, settings, catalog, guard, events, log });
    onFailure(() => downloads.close());

    const { modelsMax } = settings;
    const loads = new OwnLoads({ catalog, scheduler, modelsMax });
    let loaded: LoadedModels | undefined;
    const comingBack = comeBack({ events, catalog: () => catalog.current, scheduler, log });

    // 3. Who asks.
    const keys = new LiveKeys(settings, log);
    const memory = new ProcessMemory();
    const conversations = new Conversations();
    const tls = await TlsFiles.open(settings, log);
    const app = createApp({
      catalog: () => catalog.current,
      vet: (model) => catalog.vet(model),
      facts: (model) => catalog.facts(model),
      reload: () => reloadAll(keys, tls, catalog),
      scheduler,
      callOff: (model) => {
        const wasLeftOut = loaded?.callOff(model) ?? false;
        return comingBack.callOff(model) || wasLeftOut;
      },
      bodyLimits: {
        maxBytes: settings.bodyMaxBytes,
        budget: new BodyBudget(settings.bodyMemoryMaxBytes),
        spooling: spoolingFor(settings.bodyMaxBytes),
      },
      conversations,
      defaultModel: settings.defaultModel,
      fakeDelayMs: fakeTiming ? fakeDelayMs : 0,
      autoload: settings.modelsAutoload,
      slowReaderMs: settings.timeoutMs,
      streamPings: { afterMs: settings.streamPingAfterMs, intervalMs: settings.streamPingIntervalMs },
      apiPrefix: settings.apiPrefix,
      keys: keys.ring,
      hosts: new AllowedHosts(settings),
      cors: corsPolicy(settings),
      feed,
      downloads,
      withdraw: (id) => scheduler.withdraw(id, beingDeleted(id)),
      planRemoval: (model) => planRemoval(model, catalog.cacheDirectories, catalog.current.models),
      onLateRemovalFailure: (model, error) =>
        log.error({ err: error, model }, 'a removal failed that had been answered as going on'),
      events,
      memoryOf: (pids) => memory.of(pids),
      describeLaunch: (model, status) => launcher.describe(model, status),
      props: routerProps(settings, server, uiSettings),
      helper,
      features: helperFeatures(settings),
      ui: settings.ui,
      vertex,
      staticPath: settings.staticPath,
      isDraining: () => scheduler.isClosed,
      drain: once(onDrain),
    });
    const tracer = new RequestTracer(log, counters);
    const connections = limitConnections(settings.connectionsMax, log);
    const onAcceptError = seldom(acceptErrorEveryMs, (times, error: Error) =>
      log.error({ err: error, times }, 'a connection could not be accepted'),
    );
    const listeners = await Listeners.open({
      settings,
      scheme: tls === undefined ? 'http' : 'https',
      createServer: () =>
        createServer({
          app,
          tracer,
          tls,
          connections,
          isDraining: () => scheduler.isClosed,
          onAcceptError,
          onRefused: (refusal) => log.info(refusal, 'request refused'),
        }),
    });
    onFailure(() => {
      scheduler.killAll();
      void listeners.close();
      listeners.closeAllConnections();
    });

    // 4. Say so.
    const { main, others } = listeners;
    const content = {
      pid: process.pid,
      url: main.url,
      ...('socketPath' in main ? { socketPath: main.socketPath } : {}),
      ...(keys.ofThisRun === undefined ? {} : { apiKey: keys.ofThisRun }),
    };
    const removeRunFile = await writeRunFile(runtimeDirectory(env), runFileName(main), content).catch(
      (error: unknown) => {
        log.warn({ err: error }, 'the run file could not be written; commands will need --url');
        return () => undefined;
      },
    );
    const also = others.length === 0 ? undefined : others.map(endpointName);
    log.info({ url: endpointName(main), also, models: catalog.current.listed.length }, 'listening');
    warnIfOpenToOthers({ listeners, hasKeys: !keys.ring.isEmpty, isVertex: vertex !== undefined, log });
    if (settings.restore) {
      loaded = await keepLoaded({ env, settings, main, launcher, scheduler, loads, log });
      onFailure(() => loaded?.close());
      // Requests have been taken since it listens.
      loaded.listenTo(events, scheduler.loaded);
    }
    loadAtStart({ catalog, loads, modelsMax, first: loadFirst, restored: loaded?.models ?? [], log });

    // 5. Follow the disk.
    catalog.learn();
    const watching = settings.watch
      ? followDisk({ settings, catalog, keys, modelsDirs, presetFiles, log })
      : undefined;
    return new Supervisor({
      settings,
      log,
      catalog,
      facts,
      keys,
      tls,
      feed,
      listeners,
      tracer,
      scheduler,
      conversations,
      downloads,
      helper,
      guard,
      watching,
      loaded,
      removeRunFile,
    });
  }

  /** Reads everything on disk again: models, presets, keys, the TLS certificate. */
  async reload(): Promise<void> {
    const { catalog, keys, tls, log } = this.#parts;
    await reloadAll(keys, tls, catalog);
    log.info({ models: catalog.current.listed.length }, 'reloaded');
  }

  /** Takes no new request, gives those in flight `drainTimeoutMs`, then stops every child; settles when all is gone. */
  async shutdown(): Promise<void> {
    const { scheduler, helper, listeners, feed, tracer, settings, log } = this.#parts;
    const { inFlight, waiting } = scheduler;
    const { drainTimeoutMs } = settings;
    log.info({ inFlight, waiting, drainTimeoutMs }, 'shutting down');
    const listKept = this.#parts.loaded?.close();
    const following = this.#stopFollowing();
    const downloadsEnded = this.#parts.downloads.close();
    this.#parts.conversations.close();
    feed.close();
    scheduler.close();
    helper.close();
    const beganAt = performance.now();
    // Who asks for something meanwhile is told to ask elsewhere, which a closed port does not say.
    await Promise.all([scheduler.idleWithin(drainTimeoutMs), helper.idleWithin(drainTimeoutMs)]);
    const helpers = helper.inFlight === 0 ? [] : [{ process: 'helper', inFlight: helper.inFlight }];
    for (const cut of [...scheduler.busy, ...helpers]) {
      log.warn(cut, 'not finished within --drain-timeout; cutting it');
    }
    const closed = listeners.close();
    await Promise.all([scheduler.stopAll(), helper.stop()]);
    await Promise.all([following, downloadsEnded, listKept]);
    const answersRead = async (): Promise<void> => {
      // Those whose answers were cut are still to read why.
      await delay(lastAnswersMs, undefined, { ref: false });
      await tracer.readWithin(beganAt + drainTimeoutMs - performance.now());
    };
    await Promise.race([closed, answersRead()]);
    const { unread } = tracer;
    for (const cut of unread.slice(0, namedCuts)) {
      log.warn({ ...cut, of: unread.length }, 'not read within --drain-timeout; cutting it');
    }
    listeners.closeAllConnections();
    this.#parts.guard.close();
    this.#parts.removeRunFile();
    log.info('stopped');
  }

  /** Kills every child now. */
  killAll(): void {
    const { scheduler, helper, listeners, guard, removeRunFile } = this.#parts;
    scheduler.killAll();
    helper.kill();
    void listeners.close();
    guard.close();
    removeRunFile();
  }

  /** Settles when what is known of files is kept for the next start. */
  async #stopFollowing(): Promise<void> {
    const { watching, catalog, facts, log } = this.#parts;
    catalog.close();
    try {
      await Promise.all([watching?.close(), facts.close()]);
    } catch (error) {
      log.error({ err: error }, 'the watcher did not close');
    }
  }
}

function reportCatalog(
  catalog: Catalog,
  { hub, flat }: LiveCatalog['cacheDirectories'],
  modelsDirs: readonly string[],
  log: Logger,
): void {
  log.info(
    { caches: [...new Set([hub, ...flat])].filter((directory) => directory !== undefined), modelsDirs },
    'looking for models in',
  );
  if (catalog.models.length === 0) {
    log.warn(
      'no model was found: put GGUF files into one of these directories, or name another with --models-dir',
    );
  }
  const broken = catalog.models.map(({ id, problem, stale }) => ({ model: id, problem, stale }));
  logFaults(
    { warnings: catalog.warnings, broken: broken.filter(({ problem }) => problem !== undefined) },
    log,
  );
}

/** It may appear later. */
function reportDefaultModel(catalog: Catalog, { defaultModel }: Settings, log: Logger): void {
  if (defaultModel === undefined || defaultModelOf(catalog, defaultModel) !== undefined) return;
  const models = catalog.listed.length;
  log.warn(
    { defaultModel, models },
    '--default-model: there is no such model; requests must name theirs until there is',
  );
}

function once(what: () => void): () => void {
  let isDone = false;
  return () => {
    if (isDone) return;
    isDone = true;
    what();
  };
}

async function reloadAll(keys: LiveKeys, tls: TlsFiles | undefined, catalog: LiveCatalog): Promise<void> {
  await Promise.all([keys.reload(), tls?.reload(), catalog.reload()]);
}

function beingDeleted(model: string): RouterError {
  return new RouterError('model_unloaded_meanwhile', `model name=${model} is being deleted`, { model });
}

function followCatalog(
  diff: CatalogDiff,
  { scheduler, launcher, events }: { scheduler: Scheduler; launcher: Launcher; events: EventBus },
): void {
  const { added, removed, changed, broken, warnings } = diff;
  scheduler.reconcile(new Set(changed));
  launcher.forget(removed);
  events.emit({
    type: 'catalog.changed',
    added,
    removed,
    changed,
    broken: broken.map(({ id, problem, stale }) => ({ model: id, problem, stale })),
    warnings,
  });
}
