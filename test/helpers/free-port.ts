import getPort, { portNumbers } from 'get-port';

/** Below the ports that systems give to who asks for any (Linux: from 32768 on; IANA: from 49152 on). */
const lowest = 10_000;
const highest = 32_000;
const tried = 200;

/**
 * A free TCP port of loopback, for a process that must be told one. Those the system itself gives out are avoided: until
 * that process listens, another one could be given the same.
 */
export function freePort(): Promise<number> {
  const from = lowest + Math.floor(Math.random() * (highest - lowest - tried));
  return getPort({ host: '127.0.0.1', port: portNumbers(from, from + tried) });
}
