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
/** What helps against the other codes. */
const REMEDIES: ReadonlyMap<string, string> = new Map([
  ['EACCES', 'let this user read them'],
  ['EPERM', 'let this user read them'],
]);
/** There are some hundred codes; an error without one brings its message instead, which may never be the same twice. */
const MAX_REMEMBERED_NOTICES = 200;
/** A problem is told again when it has grown to more than so many times what was told. */
const MUCH = 2;

/**
 * Sets traps; by polling, from when the system has no more watches to give. Gives each notice once, and one for all
 * paths that have the same problem.
 */
export class TrapSetter {
  readonly #onNotice: (text: string) => void;
  readonly #signal: AbortSignal;
  /** By what is wrong: on how many paths, as was told last. */
  readonly #noticed = new Map<string, number>();
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
      const text = `looking for changes on disk every ${POLL_MS / 1000} s, because ${limit} (then restart)`;
      this.#notice(text, 1, text);
      return await this.set(scope);
    }
    for (const [problem, paths] of byProblem(trap.problems)) {
      const [first = ''] = paths;
      const remedy = REMEDIES.get(problem);
      const subject =
        paths.length === 1
          ? `'${first}'`
          : `${paths.length.toLocaleString('en-US')} ${scope.kind} (first '${first}')`;
      this.#notice(
        `${scope.kind}: ${problem}`,
        paths.length,
        `changes in ${subject} are not noticed: ${problem}${remedy === undefined ? '' : `; ${remedy}`}`,
      );
    }
    if (trap.late) {
      const text = `going through the models took longer than ${SET_MS / 1000} s; some changes may not be noticed at once`;
      this.#notice(text, 1, text);
    }
    return trap;
  }

  #notice(what: string, count: number, text: string): void {
    const told = this.#noticed.get(what);
    if (told === undefined ? this.#noticed.size >= MAX_REMEMBERED_NOTICES : count <= MUCH * told) return;
    this.#noticed.set(what, count);
    this.#onNotice(text);
  }
}

/** The paths that have each problem. */
function byProblem(problems: ReadonlyMap<string, string>): Map<string, string[]> {
  const grouped = new Map<string, string[]>();
  for (const [path, problem] of problems) {
    const paths = grouped.get(problem) ?? [];
    paths.push(path);
    grouped.set(problem, paths);
  }
  return grouped;
}
