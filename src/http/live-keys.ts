import { randomBytes } from 'node:crypto';
import { readKeyFile } from '../config/key-file.js';
import type { Settings } from '../config/settings.js';
import type { Logger } from '../observe/log.js';
import { KeyRing } from './auth.js';

type KeySettings = Pick<Settings, 'apiKeys' | 'fixedApiKeys' | 'apiKeyFile'>;

/** The valid keys: those given, those of the key file as it is now, and one of this run for our own commands. */
export class LiveKeys {
  readonly ring: KeyRing;
  /** Undefined when no key is asked for. */
  readonly ofThisRun: string | undefined;
  readonly #settings: KeySettings;
  readonly #log: Logger;

  constructor(settings: KeySettings, log: Logger) {
    this.#settings = settings;
    this.#log = log;
    const isOpen = settings.apiKeys.length === 0;
    this.ofThisRun = isOpen ? undefined : randomBytes(24).toString('base64url');
    this.ring = new KeyRing(this.#with(settings.apiKeys));
  }

  /** Reads the key file again; one that cannot be read, or holds no key, changes nothing. */
  reload(): void {
    const { apiKeyFile, fixedApiKeys } = this.#settings;
    if (apiKeyFile === undefined) return;
    try {
      const keys = readKeyFile(apiKeyFile);
      this.ring.replace(this.#with([...fixedApiKeys, ...keys]));
      this.#log.info({ file: apiKeyFile, keys: keys.length }, 'API keys read again');
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      this.#log.warn({ reason }, 'the API keys stay as they were');
    }
  }

  #with(keys: readonly string[]): readonly string[] {
    return this.ofThisRun === undefined ? keys : [...keys, this.ofThisRun];
  }
}
