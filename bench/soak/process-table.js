/** What /proc says of the processes of a run: who is there, what they hold, and what is left when all should have gone. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { descendantsOf } from '../processes.js';

/**
 * @typedef {object} Identity a process id names one process only together with the time of its start
 * @property {number} pid
 * @property {string} born
 * @property {number} group
 * @property {string} command
 */

/** @param {number} pid @returns {Identity | undefined} undefined when it has gone; one that waits to be reaped has */
export function identityOf(pid) {
  const stat = read(`/proc/${pid}/stat`);
  if (stat === undefined) return undefined;
  // The second field is a name in brackets and may hold spaces (proc_pid_stat(5)).
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  if (fields[0] === 'Z' || fields[0] === 'X') return undefined;
  const command = (read(`/proc/${pid}/cmdline`) ?? '').replaceAll('\0', ' ').trim();
  return { pid, born: fields[19], group: Number(fields[2]), command };
}

/** @param {Identity} identity */
export function isAlive({ pid, born }) {
  return identityOf(pid)?.born === born;
}

/** @param {number} pid @returns {Identity[]} all processes below it */
export function familyOf(pid) {
  return descendantsOf(pid).flatMap((below) => identityOf(below) ?? []);
}

/** @param {string} mark `NAME=VALUE` @returns {Identity[]} the processes that were started with it in their environment */
export function markedWith(mark) {
  return allPids().flatMap((pid) => {
    const isMarked = read(`/proc/${pid}/environ`)?.split('\0').includes(mark) ?? false;
    return isMarked ? (identityOf(pid) ?? []) : [];
  });
}

/** @param {ReadonlySet<number>} groups @returns {Identity[]} */
export function membersOf(groups) {
  return allPids()
    .flatMap((pid) => identityOf(pid) ?? [])
    .filter(({ group }) => groups.has(group));
}

/** @param {number} pid @returns {number} bytes of memory that it holds; 0 when it has gone */
export function residentBytes(pid) {
  const kibibytes = /^VmRSS:\s+(\d+) kB$/m.exec(read(`/proc/${pid}/status`) ?? '')?.[1];
  return Number(kibibytes ?? 0) * 1024;
}

/** @param {number} pid @returns {string[]} what each of its open descriptors leads to */
export function descriptorsOf(pid) {
  const directory = `/proc/${pid}/fd`;
  return list(directory).flatMap((name) => link(`${directory}/${name}`) ?? []);
}

/** @param {Identity} identity @param {string} name of an option in its command line @returns {string | undefined} its value */
export function optionIn({ command }, name) {
  const words = command.split(' ');
  const at = words.indexOf(name);
  return at === -1 ? undefined : words[at + 1];
}

/**
 * Which of these TCP ports somebody listens on, and who: undefined where no process holds the socket that may be looked at.
 *
 * @param {ReadonlySet<number>} ports
 * @returns {{ port: number, owner: Identity | undefined }[]}
 */
export function listenersOn(ports) {
  const listening = ['/proc/net/tcp', '/proc/net/tcp6'].flatMap((file) =>
    (read(file) ?? '')
      .split('\n')
      .slice(1)
      .map((line) => line.trim().split(/\s+/))
      .filter((fields) => fields[3] === '0A')
      .map((fields) => ({ port: Number.parseInt(fields[1].split(':').at(-1), 16), inode: fields[9] }))
      .filter(({ port }) => ports.has(port)),
  );
  if (listening.length === 0) return [];
  const owners = new Map();
  for (const pid of allPids()) for (const target of descriptorsOf(pid)) owners.set(target, pid);
  return listening.map(({ port, inode }) => {
    const pid = owners.get(`socket:[${inode}]`);
    return { port, owner: pid === undefined ? undefined : identityOf(pid) };
  });
}

function allPids() {
  return list('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
}

function list(directory) {
  try {
    return readdirSync(directory);
  } catch {
    return []; // The process has gone, or is not ours to look at.
  }
}

function read(file) {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return undefined; // The same.
  }
}

function link(file) {
  try {
    return readlinkSync(file);
  } catch {
    return undefined; // Closed meanwhile.
  }
}
