import type { Settings } from '../config/settings.js';
import type { LiveKeys } from '../http/live-keys.js';
import type { LiveCatalog } from '../models/live-catalog.js';
import { startWatching, type Watching } from '../models/watching/watcher.js';
import type { Logger } from '../observe/log.js';

export interface FollowDiskOptions {
  readonly settings: Pick<Settings, 'apiKeyFile' | 'watchPolling'>;
  readonly catalog: LiveCatalog;
  readonly keys: LiveKeys;
  readonly modelsDirs: readonly string[];
  readonly presetFiles: readonly string[];
  readonly log: Logger;
}

/** Has the catalog and the keys follow what changes on disk. */
export function followDisk(options: FollowDiskOptions): Watching {
  const { settings, catalog, keys, modelsDirs, presetFiles, log } = options;
  const { apiKeyFile, watchPolling } = settings;
  const { hub, flat } = catalog.cacheDirectories;
  const targets = {
    hubCaches: hub === undefined ? [] : [hub],
    flatCaches: flat,
    modelsDirs,
    files: apiKeyFile === undefined ? presetFiles : [...presetFiles, apiKeyFile],
  };
  const look = async (): Promise<void> => {
    try {
      await catalog.reload({ patient: true });
    } catch (error) {
      log.error({ err: error }, 'looking for models failed');
    }
  };
  const watching = startWatching(targets, {
    usePolling: watchPolling,
    onNotice: (text) => log.warn(text),
    onChange: async (changes) => {
      if (apiKeyFile !== undefined && changes.files.has(apiKeyFile)) await keys.reload();
      if (changes.catalog || presetFiles.some((file) => changes.files.has(file))) await look();
    },
  });
  // What has changed between the first look and this moment nobody tells.
  watching.ready.then(
    () => void Promise.all([keys.reload(), look()]),
    () => undefined,
  );
  return watching;
}
