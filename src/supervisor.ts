/** The composition root: builds every part, starts them in order, ends them in order. It decides nothing. */
import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { Server } from 'node:http';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { createSecureContext } from 'node:tls';
import { cacheDirectory, runtimeDirectory } from './config/directories.js';
import type { LlamaServerFacts } from './config/help.js';
import type { OptionValues } from './config/option-table.js';
import type { Settings } from './config/settings.js';
import { ensureDemoModels } from './demo/demo-models.js';
import { EventBus } from './events/events.js';
import { createApp } from './http/app.js';
import { BodyBudget } from './http/body-budget.js';
import { RequestTracer } from './http/request-trace.js';
import { createServer, listen } from './http/server.js';
import { childEnvironment } from './instance/child-environment.js';
import { Instance } from './instance/instance.js';
import { OrphanGuard } from './instance/orphan-guard.js';
import { modelArgs, modelPreset } from './models/argv.js';
import type { Catalog } from './models/catalog.js';
import { discoverCatalog } from './models/discover.js';
import type { Model } from './models/model.js';
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
}

/** How long clients get to read the last of their answers when everything else has ended. */
const lastAnswersMs = 1_000;

export class Supervisor {
  /** Where it listens. */
  readonly url: string;
  readonly catalog: Catalog;
  readonly #server: Server;
  readonly #scheduler: Scheduler;
  readonly #guard: OrphanGuard;
  readonly #log: Logger;
  readonly #drainTimeoutMs: number;
  readonly #removeRunFile: () => void;

  private constructor(parts: {
    url: string;
    catalog: Catalog;
    server: Server;
    scheduler: Scheduler;
    guard: OrphanGuard;
    log: Logger;
    drainTimeoutMs: number;
    removeRunFile: () => void;
  }) {
    this.url = parts.url;
    this.catalog = parts.catalog;
    this.#server = parts.server;
    this.#scheduler = parts.scheduler;
    this.#guard = parts.guard;
    this.#log = parts.log;
    this.#drainTimeoutMs = parts.drainTimeoutMs;
    this.#removeRunFile = parts.removeRunFile;
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
    facts,
    env,
    log,
  }: SupervisorOptions): Promise<Supervisor> {
    // 1. What is served.
    const demoDirectory = settings.demo ? join(cacheDirectory(env), 'demo-models') : undefined;
    const demo = demoDirectory === undefined ? undefined : await ensureDemoModels(demoDirectory);
    const catalog = await discoverCatalog({
      env,
      modelsDirs: [settings.modelsDir, demo?.directory].filter((directory) => directory !== undefined),
      presetFiles: [demo?.presetFile, settings.modelsPreset].filter((file) => file !== undefined),
      base: childOptions,
      table: facts.table,
    });
    reportCatalog(catalog, log);

    // 2. Who runs it.
    const guard = new OrphanGuard(log);
    const events = new EventBus((error) => log.error({ err: error }, 'an event listener failed'));
    const counters = new Counters();
    counters.listenTo(events);
    logEvents(events, log);
    const environment = childEnvironment(env);
    const modelsById = new Map(catalog.models.map((model) => [model.id, model]));
    const scheduler = new Scheduler(settings, {
      events,
      launch: (id, onChange) => {
        const model = modelsById.get(id);
        if (!model) throw new Error(`'${id}' is not in the catalog`);
        const spec = {
          modelId: id,
          command: (port: number) => modelArgs(model, binary, facts.table, port),
          environment,
          apiPrefix: settings.apiPrefix,
          loadTimeoutMs: settings.loadTimeoutMs,
          stopTimeoutMs: model.stopTimeoutMs,
          silenceTimeoutMs: settings.timeoutMs,
        };
        return new Instance(spec, { guard, events, log }, onChange);
      },
    });

    // 3. Who asks.
    const runKey = settings.apiKeys.length === 0 ? undefined : randomBytes(24).toString('base64url');
    const app = createApp({
      catalog: () => catalog,
      scheduler,
      bodyLimits: { maxBytes: settings.bodyMaxBytes, budget: new BodyBudget(settings.bodyMemoryMaxBytes) },
      autoload: settings.modelsAutoload,
      slowReaderMs: settings.timeoutMs,
      apiPrefix: settings.apiPrefix,
      apiKeys: runKey === undefined ? [] : [...settings.apiKeys, runKey],
      describeLaunch: launchDescriber(binary, facts),
      props: routerProps(settings, facts),
    });
    const server = createServer({
      app,
      tracer: new RequestTracer(log, counters),
      tls: await readTls(settings),
      onAcceptError: (error) => log.error({ err: error }, 'a connection could not be accepted'),
    });
    const address = await listen(server, settings.host, settings.port);
    const url = urlOf(settings, address.port);

    // 4. Say so.
    const directory = runtimeDirectory(env);
    const content = { pid: process.pid, url, ...(runKey === undefined ? {} : { apiKey: runKey }) };
    const removeRunFile = await writeRunFile(directory, address.port, content).catch((error: unknown) => {
      log.warn({ err: error }, 'the run file could not be written; commands will need --url');
      return () => undefined;
    });
    log.info({ url, models: catalog.models.length }, 'listening');
    loadOnStartup(catalog, scheduler, settings.modelsMax, log);
    return new Supervisor({
      url,
      catalog,
      server,
      scheduler,
      guard,
      log,
      drainTimeoutMs: settings.drainTimeoutMs,
      removeRunFile,
    });
  }

  /** Takes no new request, gives those in flight `drainTimeoutMs`, then stops every child; settles when all is gone. */
  async shutdown(): Promise<void> {
    const { inFlight, waiting } = this.#scheduler;
    this.#log.info({ inFlight, waiting, drainTimeoutMs: this.#drainTimeoutMs }, 'shutting down');
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeIdleConnections();
    this.#scheduler.close();
    await this.#scheduler.idleWithin(this.#drainTimeoutMs);
    await this.#scheduler.stopAll();
    // Those whose answers were cut are still to read why.
    await Promise.race([closed, delay(lastAnswersMs, undefined, { ref: false })]);
    this.#server.closeAllConnections();
    this.#guard.close();
    this.#removeRunFile();
    this.#log.info('stopped');
  }

  /** Kills every child now. */
  killAll(): void {
    this.#scheduler.killAll();
    this.#guard.close();
    this.#removeRunFile();
  }
}

function reportCatalog(catalog: Catalog, log: Logger): void {
  for (const warning of catalog.warnings) log.warn(warning);
  for (const { id, problem } of catalog.models) {
    if (problem !== undefined) log.warn({ model: id, problem }, 'model cannot be served');
  }
}

/** Renders each model's command line once per port: lists are asked for often. */
function launchDescriber(binary: string, { table }: LlamaServerFacts) {
  const cache = new WeakMap<Model, { port: number; args: readonly string[]; preset: string }>();
  return (model: Model, port: number) => {
    let description = cache.get(model);
    if (description?.port !== port) {
      description = { port, args: modelArgs(model, binary, table, port), preset: modelPreset(model, table) };
      cache.set(model, description);
    }
    return description;
  };
}

/** The router form of `/props` (llama-server, tools/server/server-models.cpp). */
function routerProps(settings: Settings, facts: LlamaServerFacts): Record<string, unknown> {
  return {
    role: 'router',
    max_instances: settings.modelsMax,
    models_autoload: settings.modelsAutoload,
    model_alias: 'llama-server',
    model_path: 'none',
    default_generation_settings: { params: null, n_ctx: 0 },
    ui_settings: {},
    build_info: facts.buildInfo,
    cors_proxy_enabled: false,
  };
}

async function readTls({
  sslKeyFile,
  sslCertFile,
}: Settings): Promise<{ key: Buffer; cert: Buffer } | undefined> {
  if (sslKeyFile === undefined || sslCertFile === undefined) return undefined;
  const read = async (option: string, file: string): Promise<Buffer> => {
    try {
      return await readFile(file);
    } catch (cause) {
      const reason = cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause);
      throw new Error(`${option}: '${file}' cannot be read (${reason}); name a PEM file`, { cause });
    }
  };
  const files = {
    key: await read('--ssl-key-file', sslKeyFile),
    cert: await read('--ssl-cert-file', sslCertFile),
  };
  try {
    createSecureContext(files);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new Error(
      `--ssl-key-file '${sslKeyFile}' and --ssl-cert-file '${sslCertFile}' are not a key and a certificate in PEM ` +
        `that belong together (${reason})`,
      { cause },
    );
  }
  return files;
}

function urlOf({ host, sslKeyFile, apiPrefix }: Settings, port: number): string {
  const scheme = sslKeyFile === undefined ? 'http' : 'https';
  return `${scheme}://${host.includes(':') ? `[${host}]` : host}:${port}${apiPrefix}`;
}

/** More models than slots would only evict each other: the first in the order of their ids are loaded. */
function loadOnStartup({ models }: Catalog, scheduler: Scheduler, modelsMax: number, log: Logger): void {
  const wanted = models.filter(({ loadOnStartup, problem }) => loadOnStartup && problem === undefined);
  const loaded = modelsMax === 0 ? wanted : wanted.slice(0, modelsMax);
  const left = wanted.slice(loaded.length).map(({ id }) => id);
  if (left.length > 0)
    log.warn({ models: left, modelsMax }, 'not loaded at start-up: --models-max is too small');
  for (const { id } of loaded) {
    scheduler.load(id, new AbortController().signal).catch((error: unknown) => {
      log.error({ model: id, err: error }, 'could not be loaded at start-up');
    });
  }
}
