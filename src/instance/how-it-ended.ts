/** What a child's end and its last lines say. */
import type { ChildExit } from './child-process.js';
import type { FailureCause } from './state.js';
import { describeOutOfMemory, outOfMemory, signalOf, type Death } from './out-of-memory.js';

const portTaken = /couldn't bind|address already in use|bind\(\) failed|failed to bind/i;

/** Whether it ended because somebody else had taken its port meanwhile. */
export function lostItsPort(lastLines: readonly string[]): boolean {
  return lastLines.some((line) => portTaken.test(line));
}

/** Continues a sentence that begins with the child. */
export function describeExit({ code, signal, spawnError }: ChildExit): string {
  if (spawnError) return `could not be started: ${spawnError.message}`;
  if (signal) return `was ended by ${signal}`;
  return `exited with code ${code ?? 'unknown'}`;
}

/** The same of a child that we have not killed ourselves, and what made it end. */
export function describeDeath(death: Death): { readonly message: string; readonly cause: FailureCause } {
  const lack = outOfMemory(death);
  const because = lack === undefined ? '' : ` because it ${describeOutOfMemory(lack)}`;
  const otherwise = signalOf(death.exit) === undefined ? 'other' : 'signal';
  return {
    message: describeExit(death.exit) + because,
    cause: lack === undefined ? otherwise : 'out of memory',
  };
}
