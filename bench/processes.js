/** Starting, measuring and ending the processes that are compared. */
/* global AbortSignal */
import { spawn } from 'node:child_process';
import { openSync, closeSync, readFileSync, readdirSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { BenchError } from './command.js';

const POLL_MS = 20;
const START_DEADLINE_MS = 60_000;
const STOP_DEADLINE_MS = 10_000;

/** The unit of CPU times in /proc; 100 on every Linux that Node runs on (`getconf CLK_TCK`). */
const TICKS_PER_SECOND = 100;

const running = new Set();

// The last resort, when this process ends before it has stopped them in order.
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

/**
 * Starts a program with its output in a file, and waits until it serves.
 *
 * @param {object} program
 * @param {string} program.name for messages
 * @param {string} program.command
 * @param {readonly string[]} program.args
 * @param {NodeJS.ProcessEnv} program.env
 * @param {string} program.logFile
 * @param {string} program.url answered with 200 once it serves
 * @returns {Promise<import('node:child_process').ChildProcess>}
 */
export async function startServer({ name, command, args, env, logFile, url }) {
  const log = openSync(logFile, 'w');
  // A process group of its own: Ctrl-C is for this process, which then ends the others in order.
  const child = spawn(command, args, { env, detached: true, stdio: ['ignore', log, log] });
  closeSync(log);
  running.add(child);
  child.once('exit', () => running.delete(child));
  let failure;
  child.once('error', (error) => (failure = error.message));
  child.once('exit', (code, signal) => (failure ??= `it ended with ${signal ?? `status ${code}`}`));

  const deadline = performance.now() + START_DEADLINE_MS;
  while (!(await answers(url))) {
    if (performance.now() > deadline) failure ??= `it did not serve within ${START_DEADLINE_MS / 1000} s`;
    if (failure !== undefined) {
      await stopServer(child);
      throw new BenchError(`${name} could not be started: ${failure}\n${lastLines(logFile)}`);
    }
    await delay(POLL_MS);
  }
  return child;
}

async function answers(url) {
  try {
    const { ok } = await fetch(url, { signal: AbortSignal.timeout(1000) });
    return ok;
  } catch {
    return false;
  }
}

/** Ends all that was started and still runs. */
export async function stopServers() {
  await Promise.all([...running].map(stopServer));
}

/**
 * Ends a process and all it started: asks first, kills what is still there when the time is over.
 *
 * @param {import('node:child_process').ChildProcess} child
 */
async function stopServer(child) {
  if (child.pid === undefined) return;
  const family = [child.pid, ...descendantsOf(child.pid)].map((pid) => ({ pid, born: birthOf(pid) }));
  const alive = () => family.filter(({ pid, born }) => born !== undefined && birthOf(pid) === born);
  child.kill('SIGTERM');
  const deadline = performance.now() + STOP_DEADLINE_MS;
  while (alive().length > 0 && performance.now() < deadline) await delay(POLL_MS);
  for (const { pid } of alive()) process.kill(pid, 'SIGKILL');
}

/** @param {number} pid @returns {number[]} its children, theirs, and so on */
export function descendantsOf(pid) {
  const children = childrenOf(pid);
  return [...children, ...children.flatMap(descendantsOf)];
}

function childrenOf(pid) {
  try {
    return readdirSync(`/proc/${pid}/task`).flatMap((task) =>
      readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8').split(' ').filter(Boolean).map(Number),
    );
  } catch {
    return []; // It has gone, or this system has no /proc.
  }
}

/**
 * The processor time of these processes so far, all their threads together, ended ones included, but none of
 * their children.
 *
 * @param {readonly number[]} pids
 * @returns {number} seconds, in steps of 1/100; NaN where the system has no /proc
 */
export function cpuSeconds(pids) {
  const ticks = pids.map((pid) => {
    const fields = statOf(pid);
    return fields === undefined ? Number.NaN : Number(fields[11]) + Number(fields[12]);
  });
  return ticks.reduce((sum, number) => sum + number, 0) / TICKS_PER_SECOND;
}

/** When a process was started: with it a process id names one process only. Undefined when it has gone. */
function birthOf(pid) {
  const fields = statOf(pid);
  return fields === undefined || fields[0] === 'Z' ? undefined : fields[19];
}

/** The fields of /proc/PID/stat from the third on: the second is a name in brackets and may hold spaces. */
function statOf(pid) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  } catch {
    return undefined;
  }
}

function lastLines(file) {
  return readFileSync(file, 'utf8').trimEnd().split('\n').slice(-15).join('\n');
}
