import { randomBytes } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { rereadKeyFile } from '../config/key-file.js';
import type { Settings } from '../config/settings.js';
import { Source } from '../models/source.js';
import type { Logger } from '../observe/log.js';
import { KeyRing } from './auth.js';

type KeySettings = Pick<Settings, 'apiKeys' | 'fixedApiKeys' | 'apiKeyFile'>;

/** How long the key file may take to answer. */
const patienceMs = 10_000;

/** The valid keys: those given, those of the key file as it is now, and one of this run for our own commands. */
export class LiveKeys {
  readonly ring: KeyRing;
  /** Undefined when no key is asked for. */
  readonly ofThisRun: string | undefined;
  readonly #settings: KeySettings;
  readonly #log: Logger;
  readonly #file: Source<readonly string[] | undefined>;
  #ofFile: readonly string[] | undefined;
  #reloading: Promise<void> = Promise.resolve();

  constructor(settings: KeySettings, log: Logger) {
    this.#settings = settings;
    this.#log = log;
    this.#file = new Source(() => rereadKeyFile(settings.apiKeyFile ?? ''), patienceMs);
    const isOpen = settings.apiKeys.length === 0;
    this.ofThisRun = isOpen ? undefined : randomBytes(24).toString('base64url');
    const fixed = new Set(settings.fixedApiKeys);
    this.#ofFile = settings.apiKeys.filter((key) => !fixed.has(key));
    this.ring = new KeyRing(this.#with(settings.apiKeys));
  }

  /** Reads the key file again; one that cannot be read, or holds no key, changes nothing. Never rejects. */
  reload(): Promise<void> {
    // One after the other: the last word is the newest.
    this.#reloading = this.#reloading.then(() => this.#read());
    return this.#reloading;
  }

  async #read(): Promise<void> {
    const { apiKeyFile, fixedApiKeys } = this.#settings;
    if (apiKeyFile === undefined) return;
    try {
      const { value: keys, late } = await this.#file.read();
      if (late) throw new Error(`the key file '${apiKeyFile}' does not answer`);
      if (keys === undefined || isDeepStrictEqual(keys, this.#ofFile)) return;
      // Who empties the file takes its keys back; only the last key of all cannot be, which would let in everybody.
      if (keys.length + fixedApiKeys.length === 0)
        throw new Error(`${apiKeyFile} holds no key; write one per line`);
      this.#ofFile = keys;
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
