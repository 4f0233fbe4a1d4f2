import type { WatchScope } from './watch-scope.js';
import { POLL_MS, SET_MS, setTrap, type Trap } from './watch-trap.js';

export interface TrapSetterOptions {
  readonly usePolling: boolean;
  readonly onNotice: (text: string) => void;
  readonly signal: AbortSignal;
}

/** What each of the system's codes says is used up, and how to raise it. */
const LIMITS: ReadonlyMap<string, string> = new Map([
  ['ENOSPC', `fs.inotify.max_user_watches is used up; 'sysctl fs.inotify.max_user_watches=524288' raises it`],
  [
    'EMFILE',
    `fs.inotify.max_user_instances is used up, or the number of open files ('ulimit -n'); ` +
      `'sysctl fs.inotify.max_user_instances=1024' raises the first`,
  ],
]);
const MAX_REMEMBERED_NOTICES = 1_000;

/** Sets traps; by polling, from when the system has no more watches to give. Gives each notice once. */
export class TrapSetter {
  readonly #onNotice: (text: string) => void;
  readonly #signal: AbortSignal;
  readonly #noticed = new Set<string>();
  #usePolling: boolean;

  constructor({ usePolling, onNotice, signal }: TrapSetterOptions) {
    this.#usePolling = usePolling;
    this.#onNotice = onNotice;
    this.#signal = signal;
  }

  async set(scope: WatchScope): Promise<Trap> {
    const usePolling = this.#usePolling;
    const trap = await setTrap(scope, { usePolling, signal: this.#signal });
    const limit = [...trap.problems.values()]
      .map((code) => LIMITS.get(code))
      .find((text) => text !== undefined);
    if (limit !== undefined && !usePolling) {
      await trap.close();
      this.#usePolling = true;
      this.#notice(`looking for changes on disk every ${POLL_MS / 1000} s, because ${limit} (then restart)`);
      return await this.set(scope);
    }
    for (const [path, problem] of trap.problems) {
      this.#notice(`changes in '${path}' are not noticed: ${problem}`);
    }
    if (trap.late) {
      this.#notice(
        `going through the models took longer than ${SET_MS / 1000} s; some changes may not be noticed`,
      );
    }
    return trap;
  }

  #notice(text: string): void {
    if (this.#noticed.has(text)) return;
    if (this.#noticed.size >= MAX_REMEMBERED_NOTICES) this.#noticed.clear();
    this.#noticed.add(text);
    this.#onNotice(text);
  }
}
