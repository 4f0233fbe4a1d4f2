import { isUtf8 } from 'node:buffer';
import { realpath, stat } from 'node:fs/promises';
import { failureCode } from '../disk/directory.js';

/** A state of one file, by its real path, or by that of a link to it where the real one is not UTF-8 (odd-names.ts). */
export interface FileIdentity {
  readonly path: string;
  readonly sizeBytes: number;
  readonly mtimeMs: number;
}

export type IdentityOutcome =
  | { readonly kind: 'identity'; readonly identity: FileIdentity }
  /** The system's code, or other words on the cause. */
  | { readonly kind: 'failed'; readonly code: string };

/** Asks the file system for identities, and does not wait for ever for one that hangs. */
export class FileIdentities {
  readonly #timeoutMs: number;
  /** Each holds one of the few threads that the process has for files, so none is asked for twice. */
  readonly #unanswered = new Set<string>();

  constructor({ timeoutMs }: { readonly timeoutMs: number }) {
    this.#timeoutMs = timeoutMs;
  }

  /** The identity of the file `path`, links followed. Never rejects. */
  async of(path: string): Promise<IdentityOutcome> {
    if (this.#unanswered.has(path)) return { kind: 'failed', code: 'an earlier attempt has still no answer' };
    this.#unanswered.add(path);
    let timer: NodeJS.Timeout | undefined;
    const answer = identify(path).finally(() => {
      this.#unanswered.delete(path);
      clearTimeout(timer);
    });
    const deadline = new Promise<IdentityOutcome>((resolve) => {
      const code = `no answer within ${this.#timeoutMs / 1000} s`;
      timer = setTimeout(() => resolve({ kind: 'failed', code }), this.#timeoutMs).unref();
    });
    return await Promise.race([answer, deadline]);
  }
}

async function identify(path: string): Promise<IdentityOutcome> {
  try {
    const real = await realpath(path, { encoding: 'buffer' });
    const readable = isUtf8(real) ? real.toString() : path;
    const { size, mtimeMs } = await stat(readable);
    return { kind: 'identity', identity: { path: readable, sizeBytes: size, mtimeMs } };
  } catch (error) {
    return { kind: 'failed', code: failureCode(error) };
  }
}
