import type { Instance } from '../instance/instance.js';
import type { InstanceView } from './decide.js';

/** What the scheduler notes about one instance. */
export interface Running {
  readonly instance: Instance;
  /** Milliseconds, monotonic. */
  readonly startedAt: number;
  leases: number;
  /** How many of them only look, and count for nothing in `--in-flight-max`. */
  looks: number;
  /** End of its last request, or its becoming ready. Milliseconds, monotonic. */
  lastUsed: number;
  /** Undefined until it is ready. */
  readySince: number | undefined;
  draining: Draining | undefined;
  /** Whether it was started for somebody who asked for the load itself. */
  readonly isAskedFor: boolean;
}

/** Takes no new leases, and stops when the last one has ended; an explicit unload gives them a time for that. */
type Draining =
  | { readonly reason: 'unloaded'; readonly timer: NodeJS.Timeout }
  | { readonly reason: 'changed' | 'removed'; readonly since: number };

export function stopIfDrained(running: Running): void {
  if (running.draining === undefined || running.leases > 0) return;
  stopTimer(running);
  running.instance.stop(running.draining.reason);
}

export function stopTimer({ draining }: Running): void {
  if (draining?.reason === 'unloaded') clearTimeout(draining.timer);
}

/** When it was used last, by the clock on the wall; undefined while it has not been ready. */
export function wallTimeOf({ readySince, lastUsed }: Running): Date | undefined {
  return readySince === undefined ? undefined : new Date(performance.timeOrigin + lastUsed);
}

export function view(model: string, running: Running): InstanceView {
  const { leases, lastUsed } = running;
  const readySince = running.readySince ?? Number.POSITIVE_INFINITY;
  return { model, phase: phaseOf(running), leases, lastUsed, readySince };
}

function phaseOf({ instance, draining }: Running): InstanceView['phase'] {
  switch (instance.state.name) {
    case 'loading':
      return 'loading';
    case 'ready':
    case 'sleeping':
    case 'waking':
      return draining === undefined ? 'ready' : 'draining';
    case 'stopping':
    case 'exited':
      return 'stopping';
  }
}

/** Loading, or not loaded in time: then those who wait hear why when its last words are known. */
export function isLoading({ instance: { state } }: Running): boolean {
  return state.name === 'loading' || (state.name === 'stopping' && state.reason === 'load deadline');
}

export function isStopping(running: Running): boolean {
  return running.draining !== undefined || isStopped(running);
}

export function isStopped({ instance: { state } }: Running): boolean {
  return state.name === 'stopping' || state.name === 'exited';
}
