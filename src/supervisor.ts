/** The composition root: builds every part, starts them in order, ends them in order. It decides nothing. */
import type { Server } from 'node:http';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { cacheDirectory, runtimeDirectory } from './config/directories.js';
import type { LlamaServerFacts } from './config/help.js';
import type { OptionValues } from './config/option-table.js';
import type { Settings } from './config/settings.js';
import { ensureDemoModels } from './demo/demo-models.js';
import { asRouterError, type RouterError } from './errors.js';
import { EventBus } from './events/events.js';
import { createApp } from './http/app.js';
import { BodyBudget } from './http/body-budget.js';
import { findModel, unknownModel } from './http/find-model.js';
import { RequestTracer } from './http/request-trace.js';
import { LiveKeys } from './http/live-keys.js';
import { routerProps } from './http/router-props.js';
import { createServer, listen } from './http/server.js';
import { readTls } from './http/tls-files.js';
import { childEnvironment } from './instance/child-environment.js';
import { Instance } from './instance/instance.js';
import { OrphanGuard } from './instance/orphan-guard.js';
import { modelArgs, modelPreset, withoutSecrets } from './models/argv.js';
import type { Catalog } from './models/catalog.js';
import type { CatalogDiff } from './models/catalog-diff.js';
import { FactsStore } from './models/gguf/facts-store.js';
import { LiveCatalog } from './models/live-catalog.js';
import type { Model } from './models/model.js';
import { sameLaunch } from './models/same-launch.js';
import { startWatching, type Watching } from './models/watching/watcher.js';
import { Counters } from './observe/counters.js';
import { logEvents } from './observe/log-events.js';
import type { Logger } from './observe/log.js';
import { writeRunFile } from './observe/run-file.js';
import { Scheduler } from './scheduler/scheduler.js';

export interface SupervisorOptions {
  readonly settings: Settings;
  /** Options of the command line that every model inherits. */
  readonly childOptions: OptionValues;
  /** Path of the llama-server that runs the models. */
  readonly binary: string;
  readonly facts: LlamaServerFacts;
  readonly env: NodeJS.ProcessEnv;
  readonly log: Logger;
  /** Id of a model to load at the start, as if its section said so. */
  readonly loadFirst?: string | undefined;
}

/** How long clients get to read the last of their answers when everything else has ended. */
const lastAnswersMs = 1_000;

/** The parts that live as long as the supervisor does. */
interface Parts {
  readonly settings: Settings;
  readonly log: Logger;
  readonly url: string;
  readonly catalog: LiveCatalog;
  readonly facts: FactsStore;
  readonly keys: LiveKeys;
  readonly server: Server;
  readonly scheduler: Scheduler;
  readonly guard: OrphanGuard;
  readonly watching: Watching | undefined;
  readonly removeRunFile: () => void;
}

export class Supervisor {
  readonly #parts: Parts;

  private constructor(parts: Parts) {
    this.#parts = parts;
  }

  /** Where it listens. */
  get url(): string {
    return this.#parts.url;
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
  static async start({
    settings,
    childOptions,
    binary,
    facts: server,
    env,
    log,
    loadFirst,
  }: SupervisorOptions): Promise<Supervisor> {
    // 1. What is served.
    const cache = cacheDirectory(env);
    const demo = settings.demo ? await ensureDemoModels(join(cache, 'demo-models')) : undefined;
    const modelsDirs = [settings.modelsDir, demo?.directory].filter((directory) => directory !== undefined);
    const presetFiles = [demo?.presetFile, settings.modelsPreset].filter((file) => file !== undefined);
    const facts = new FactsStore({ cacheFile: join(cache, 'gguf-facts.json') });
    const catalog = await LiveCatalog.open({
      env,
      modelsDirs,
      presetFiles,
      base: childOptions,
      table: server.table,
      linksDirectory: join(cache, 'links'),
      facts,
      onChange: (diff) => followCatalog(diff, scheduler, events),
      onError: (error) => log.error({ err: error }, 'looking for models failed'),
    });
    reportCatalog(catalog.current, log);

    // 2. Who runs it.
    const guard = new OrphanGuard(log);
    const events = new EventBus((error) => log.error({ err: error }, 'an event listener failed'));
    const counters = new Counters();
    counters.listenTo(events);
    logEvents(events, log);
    const environment = childEnvironment(env);
    const launched = new WeakMap<Instance, Model>();
    const scheduler = new Scheduler(settings, {
      events,
      launch: (id, onChange) => {
        const model = modelOf(catalog.current, id);
        const spec = {
          modelId: id,
          command: (port: number) => modelArgs(model, binary, server.table, port, env),
          environment,
          apiPrefix: settings.apiPrefix,
          loadTimeoutMs: settings.loadTimeoutMs,
          stopTimeoutMs: model.stopTimeoutMs,
          silenceTimeoutMs: settings.timeoutMs,
        };
        const instance = new Instance(spec, { guard, events, log }, onChange);
        launched.set(instance, model);
        return instance;
      },
      standing: (instance) => {
        const was = launched.get(instance);
        const now = catalog.current.resolve(instance.modelId);
        if (now?.id !== instance.modelId || now.problem !== undefined) return 'removed';
        return was !== undefined && sameLaunch(was, now) ? 'current' : 'changed';
      },
      refusal: (id) => refusalOf(catalog.current, id),
    });

    // 3. Who asks.
    const keys = new LiveKeys(settings, log);
    const app = createApp({
      catalog: () => catalog.current,
      vet: (model) => catalog.vet(model),
      facts: (model) => catalog.facts(model),
      reload: () => catalog.reload(),
      scheduler,
      bodyLimits: { maxBytes: settings.bodyMaxBytes, budget: new BodyBudget(settings.bodyMemoryMaxBytes) },
      autoload: settings.modelsAutoload,
      slowReaderMs: settings.timeoutMs,
      apiPrefix: settings.apiPrefix,
      keys: keys.ring,
      describeLaunch: launchDescriber(binary, server, env),
      props: routerProps(settings, server),
    });
    const httpServer = createServer({
      app,
      tracer: new RequestTracer(log, counters),
      tls: await readTls(settings),
      onAcceptError: (error) => log.error({ err: error }, 'a connection could not be accepted'),
    });
    const address = await listen(httpServer, settings.host, settings.port);
    const url = urlOf(settings, address.port);

    // 4. Say so.
    const content = {
      pid: process.pid,
      url,
      ...(keys.ofThisRun === undefined ? {} : { apiKey: keys.ofThisRun }),
    };
    const removeRunFile = await writeRunFile(runtimeDirectory(env), address.port, content).catch(
      (error: unknown) => {
        log.warn({ err: error }, 'the run file could not be written; commands will need --url');
        return () => undefined;
      },
    );
    log.info({ url, models: catalog.current.listed.length }, 'listening');
    loadAtStart(wantedAtStart(catalog.current, loadFirst), { catalog, scheduler, settings, log });

    // 5. Follow the disk.
    catalog.learn();
    const watching = settings.watch
      ? followDisk({ settings, catalog, keys, modelsDirs, presetFiles, log })
      : undefined;
    return new Supervisor({
      settings,
      log,
      url,
      catalog,
      facts,
      keys,
      server: httpServer,
      scheduler,
      guard,
      watching,
      removeRunFile,
    });
  }

  /** Reads everything on disk again: models, presets, keys. */
  async reload(): Promise<void> {
    const { catalog, keys, log } = this.#parts;
    keys.reload();
    await catalog.reload();
    log.info({ models: catalog.current.listed.length }, 'reloaded');
  }

  /** Takes no new request, gives those in flight `drainTimeoutMs`, then stops every child; settles when all is gone. */
  async shutdown(): Promise<void> {
    const { scheduler, server, settings, log } = this.#parts;
    const { inFlight, waiting } = scheduler;
    const { drainTimeoutMs } = settings;
    log.info({ inFlight, waiting, drainTimeoutMs }, 'shutting down');
    const following = this.#stopFollowing();
    const closed = new Promise<void>((resolve) => server.close(() => resolve()));
    server.closeIdleConnections();
    scheduler.close();
    await scheduler.idleWithin(drainTimeoutMs);
    await scheduler.stopAll();
    await following;
    // Those whose answers were cut are still to read why.
    await Promise.race([closed, delay(lastAnswersMs, undefined, { ref: false })]);
    server.closeAllConnections();
    this.#parts.guard.close();
    this.#parts.removeRunFile();
    log.info('stopped');
  }

  /** Kills every child now. */
  killAll(): void {
    const { scheduler, guard, removeRunFile } = this.#parts;
    scheduler.killAll();
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

function reportCatalog(catalog: Catalog, log: Logger): void {
  for (const warning of catalog.warnings) log.warn(warning);
  for (const { id, problem } of catalog.models) {
    if (problem !== undefined) log.warn({ model: id, problem }, 'model cannot be served');
  }
}

/** Has the catalog and the keys follow what changes on disk. */
function followDisk(parts: {
  settings: Settings;
  catalog: LiveCatalog;
  keys: LiveKeys;
  modelsDirs: readonly string[];
  presetFiles: readonly string[];
  log: Logger;
}): Watching {
  const { settings, catalog, keys, modelsDirs, presetFiles, log } = parts;
  const { apiKeyFile, watchPolling } = settings;
  const { hub, flat } = catalog.cacheDirectories;
  const targets = {
    hubCaches: hub === undefined ? [] : [hub],
    flatCaches: flat,
    modelsDirs,
    files: apiKeyFile === undefined ? presetFiles : [...presetFiles, apiKeyFile],
  };
  const reload = (): void => {
    catalog.reload().catch((error: unknown) => log.error({ err: error }, 'looking for models failed'));
  };
  const watching = startWatching(targets, {
    usePolling: watchPolling,
    onNotice: (text) => log.warn(text),
    onChange: (changes) => {
      if (apiKeyFile !== undefined && changes.files.has(apiKeyFile)) keys.reload();
      if (changes.catalog || presetFiles.some((file) => changes.files.has(file))) {
        reload();
      }
    },
  });
  // What has changed between the first scan and this moment nobody tells.
  watching.ready.then(reload, () => undefined);
  return watching;
}

function followCatalog(diff: CatalogDiff, scheduler: Scheduler, events: EventBus): void {
  const { added, removed, changed, broken, warnings } = diff;
  scheduler.reconcile(new Set(changed));
  events.emit({
    type: 'catalog.changed',
    added,
    removed,
    changed,
    broken: broken.map(({ id, problem, stale }) => ({ model: id, problem, stale })),
    warnings,
  });
}

/**
 * The model of that id, which is no other model's alias by now.
 *
 * @throws RouterError model_unknown; model_invalid, with the reason, when the model cannot be served
 */
function modelOf(catalog: Catalog, id: string): Model {
  const model = findModel(catalog, id);
  if (model.id !== id) throw unknownModel(id);
  return model;
}

/** Why a request for the model is refused, whatever runs; undefined when it is served. */
function refusalOf(catalog: Catalog, id: string): RouterError | undefined {
  try {
    modelOf(catalog, id);
    return undefined;
  } catch (error) {
    return asRouterError(error);
  }
}

/** Renders each model's command line once per port: lists are asked for often. */
function launchDescriber(binary: string, { table }: LlamaServerFacts, env: NodeJS.ProcessEnv) {
  const cache = new WeakMap<Model, { port: number; args: readonly string[]; preset: string }>();
  return (model: Model, port: number) => {
    let description = cache.get(model);
    if (description?.port !== port) {
      const shown = withoutSecrets(model);
      description = {
        port,
        args: modelArgs(shown, binary, table, port, env),
        preset: modelPreset(shown, table),
      };
      cache.set(model, description);
    }
    return description;
  };
}

function urlOf({ host, sslKeyFile, apiPrefix }: Settings, port: number): string {
  const scheme = sslKeyFile === undefined ? 'http' : 'https';
  return `${scheme}://${host.includes(':') ? `[${host}]` : host}:${port}${apiPrefix}`;
}

/** The models to load at the start, in the order in which slots are given to them. */
function wantedAtStart({ models }: Catalog, first: string | undefined): Model[] {
  const wanted = models.filter(
    ({ id, loadOnStartup, problem }) => (loadOnStartup || id === first) && problem === undefined,
  );
  return wanted.sort((a, b) => Number(b.id === first) - Number(a.id === first));
}

/** More models than slots would only evict each other: the first of them are loaded. */
function loadAtStart(
  wanted: readonly Model[],
  { catalog, scheduler, settings, log }: Pick<Parts, 'catalog' | 'scheduler' | 'settings' | 'log'>,
): void {
  const { modelsMax } = settings;
  const loaded = modelsMax === 0 ? wanted : wanted.slice(0, modelsMax);
  const left = wanted.slice(loaded.length).map(({ id }) => id);
  if (left.length > 0)
    log.warn({ models: left, modelsMax }, 'not loaded at start-up: --models-max is too small');
  const load = async (model: Model): Promise<void> => {
    const problem = await catalog.vet(model);
    if (problem === undefined) await scheduler.load(model.id, new AbortController().signal);
  };
  for (const model of loaded) {
    load(model).catch((error: unknown) => {
      log.error({ model: model.id, err: error }, 'could not be loaded at start-up');
    });
  }
}
