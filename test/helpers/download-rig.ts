import { join } from 'node:path';
import { pino } from 'pino';
import { EventBus, type SupervisorEvent } from '../../src/events/events.js';
import { OrphanGuard } from '../../src/instance/orphan-guard.js';
import { LiveCatalog } from '../../src/models/live-catalog.js';
import { Downloads, type DownloadsOptions } from '../../src/supervisor/downloads.js';
import { FakeFacts } from '../unit/models/live-catalog-rig.js';
import { table } from '../unit/models/help-table.js';
import { atEndOfTest } from './cleanup.js';
import { eventually, withDeadline } from './eventually.js';
import { runMarker } from './processes.js';
import { tempDir } from './temp-dir.js';

export interface DownloadRigOptions extends Partial<
  Pick<DownloadsOptions, 'askTimeoutMs' | 'silenceTimeoutMs'>
> {
  readonly binary: string;
  /** Where the hub is. */
  readonly endpoint: string;
  /** The hub cache. Default: an empty directory. */
  readonly cache?: string;
  /** On top of an environment with nothing of this user's own. */
  readonly env?: NodeJS.ProcessEnv;
  readonly settings?: Partial<DownloadsOptions['settings']>;
  readonly modelsDir?: string;
  readonly presets?: string;
}

type DownloadEvent = SupervisorEvent & { readonly type: `download.${string}` };

/** Downloads with a catalog, without a server before them. */
export interface DownloadRig {
  readonly downloads: Downloads;
  readonly catalog: LiveCatalog;
  readonly cache: string;
  readonly guard: OrphanGuard;
  readonly bus: EventBus;
  /** What happened so far, oldest first. */
  readonly events: readonly DownloadEvent[];
  /** Lines of the log so far, debugging included. */
  readonly log: readonly string[];
  /** `start`, for a client that stays. */
  start(name: string): Promise<void>;
  /** The end of the last download of that name, waited for. */
  ended(name: string, deadlineMs?: number): Promise<DownloadEvent>;
}

export async function downloadRig(options: DownloadRigOptions): Promise<DownloadRig> {
  const { binary, endpoint, cache = tempDir(), modelsDir, presets, settings = {} } = options;
  const env = { ...emptyEnv(cache), LLAMA_CACHE: cache, HF_ENDPOINT: endpoint, ...options.env };
  const catalog = await LiveCatalog.open({
    env,
    modelsDirs: modelsDir === undefined ? [] : [modelsDir],
    presetFiles: presets === undefined ? [] : [presets],
    base: new Map(),
    table,
    facts: new FakeFacts(),
    onChange: () => undefined,
    onError: (error) => log.push(`catalog: ${String(error)}`),
  });
  const log: string[] = [];
  const logger = pino({ level: 'trace' }, { write: (line: string) => void log.push(line) });
  const guard = new OrphanGuard(logger);
  const bus = new EventBus((error) => log.push(`listener: ${String(error)}`));
  const events: DownloadEvent[] = [];
  bus.subscribe((event) => {
    if (isDownloadEvent(event)) events.push(event);
  });
  const downloads = new Downloads({
    binary,
    facts: { buildInfo: 'b1-abc' },
    env,
    settings: { offline: false, hfToken: undefined, ...settings },
    catalog,
    guard,
    events: bus,
    log: logger,
    ...(options.askTimeoutMs === undefined ? {} : { askTimeoutMs: options.askTimeoutMs }),
    ...(options.silenceTimeoutMs === undefined ? {} : { silenceTimeoutMs: options.silenceTimeoutMs }),
  });
  atEndOfTest(async () => {
    await withDeadline('all downloads have ended', downloads.close(), 15_000);
    catalog.close();
    guard.close();
  });
  return {
    downloads,
    catalog,
    cache,
    guard,
    bus,
    events,
    log,
    start: (name) => downloads.start(name, new AbortController().signal),
    ended: (name, deadlineMs = 30_000) =>
      eventually(
        `the download of ${name} ends`,
        () => {
          const last = events.findLast(({ model }) => model === name);
          return last?.type === 'download.finished' || last?.type === 'download.failed' ? last : undefined;
        },
        { deadlineMs },
      ),
  };
}

function isDownloadEvent(event: SupervisorEvent): event is DownloadEvent {
  return event.type.startsWith('download.');
}

/** Nothing of this user's own: config files, models, tokens. The marker is what processes left behind are found by. */
function emptyEnv(home: string): NodeJS.ProcessEnv {
  const foreign = /^(?:LLAMA|HF|HUGGINGFACE|MODEL|AIP|XDG)_/;
  const kept = Object.entries(process.env).filter(([name]) => name === runMarker || !foreign.test(name));
  return { ...Object.fromEntries(kept), HOME: home, XDG_CONFIG_HOME: join(home, 'config') };
}
