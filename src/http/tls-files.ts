import { X509Certificate } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { createSecureContext } from 'node:tls';
import { readPipe } from '../config/pipe-file.js';
import type { Settings } from '../config/settings.js';
import { Source } from '../models/source.js';
import type { Logger } from '../observe/log.js';

/** A private key and the certificate that belongs to it, as PEM. */
export interface TlsPair {
  readonly key: Buffer;
  readonly cert: Buffer;
}

/** How long the files may take to answer. */
const patienceMs = 10_000;

/** Key and certificate for HTTPS, as they are on disk: a certificate is renewed more often than a server is restarted. */
export class TlsFiles {
  readonly #log: Logger;
  readonly #source: Source<TlsPair>;
  readonly #onRenewed: ((pair: TlsPair) => void)[] = [];
  #pair: TlsPair;
  #reloading: Promise<void> = Promise.resolve();

  private constructor(pair: TlsPair, source: Source<TlsPair>, log: Logger) {
    this.#pair = pair;
    this.#source = source;
    this.#log = log;
  }

  /**
   * Reads both files; undefined for plain HTTP.
   *
   * @throws with a message for the user when they cannot be read or do not belong together
   */
  static async open(
    { sslKeyFile, sslCertFile }: Pick<Settings, 'sslKeyFile' | 'sslCertFile'>,
    log: Logger,
  ): Promise<TlsFiles | undefined> {
    if (sslKeyFile === undefined || sslCertFile === undefined) return undefined;
    const source = new Source<TlsPair>((earlier) => readPair(sslKeyFile, sslCertFile, earlier), patienceMs);
    const { value } = await source.read();
    if (value === undefined) throw new Error(`'${sslKeyFile}' or '${sslCertFile}' does not answer`);
    return new TlsFiles(value, source, log);
  }

  get pair(): TlsPair {
    return this.#pair;
  }

  /** Tells of every pair that takes the place of the one before. */
  onRenewed(listener: (pair: TlsPair) => void): void {
    this.#onRenewed.push(listener);
  }

  /** Reads the files again; what cannot be used changes nothing. Never rejects. */
  reload(): Promise<void> {
    // One after the other: the last word is the newest.
    this.#reloading = this.#reloading.then(() => this.#renew());
    return this.#reloading;
  }

  async #renew(): Promise<void> {
    try {
      const { value: pair, late } = await this.#source.read();
      if (pair === undefined || late) throw new Error('the files do not answer');
      if (pair.key.equals(this.#pair.key) && pair.cert.equals(this.#pair.cert)) return;
      this.#pair = pair;
      for (const listener of this.#onRenewed) listener(pair);
      this.#log.info({ validUntil: new X509Certificate(pair.cert).validTo }, 'TLS certificate read again');
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      this.#log.warn({ reason }, 'the TLS certificate stays as it was');
    }
  }
}

async function readPair(keyFile: string, certFile: string, earlier: TlsPair | undefined): Promise<TlsPair> {
  const key = await readPem('--ssl-key-file', keyFile, earlier?.key);
  const cert = await readPem('--ssl-cert-file', certFile, earlier?.cert);
  // One after the other, because OpenSSL's words do not say which of them it means.
  check({ key }, `--ssl-key-file: '${keyFile}' is no private key in PEM, or one with a passphrase`);
  check({ cert }, `--ssl-cert-file: '${certFile}' is no certificate in PEM`);
  check(
    { key, cert },
    `--ssl-key-file '${keyFile}' is not the key of --ssl-cert-file '${certFile}'; name the two that were made together`,
  );
  return { key, cert };
}

async function readPem(option: string, file: string, earlier: Buffer | undefined): Promise<Buffer> {
  try {
    const stats = await stat(file);
    // A pipe gives its text once.
    if (!stats.isFile() && !stats.isDirectory()) return earlier ?? readPipe(file);
    return await readFile(file);
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    const reason = code ?? message;
    throw new Error(
      `${option}: '${file}' cannot be read (${reason}); name a PEM file that this user may read`,
      {
        cause,
      },
    );
  }
}

function check(parts: Partial<TlsPair>, complaint: string): void {
  try {
    createSecureContext(parts);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`${complaint} (${reason})`, { cause });
  }
}
