/** What a child's end and its last lines say. */
import type { ChildExit } from './child-process.js';

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
