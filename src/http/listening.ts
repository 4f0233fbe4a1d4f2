import type { Server } from 'node:http';
import { resolve } from 'node:path';
import type { Settings } from '../config/settings.js';
import { hostInUrl, listen } from './server.js';
import { listenOnSocket } from './socket-file.js';

/**
 * Where a client finds the server: on a port, or through the Unix socket of an absolute path, for which the host in
 * `url` is a name only. `url` has the API prefix, and no slash at its end.
 */
export type Endpoint =
  { readonly url: string; readonly port: number } | { readonly url: string; readonly socketPath: string };

/** An endpoint in one word: its URL, or `unix:` and the path of its socket. */
export function endpointName(endpoint: Endpoint): string {
  return 'port' in endpoint ? endpoint.url : `unix:${endpoint.socketPath}`;
}

export interface ListenersOptions {
  readonly settings: Pick<Settings, 'hosts' | 'port' | 'reusePort' | 'apiPrefix'>;
  readonly scheme: 'http' | 'https';
  /** Makes the server of one address; all of them answer alike. */
  readonly createServer: () => Server;
}

/** How often connections are looked for whose last answer has ended, once no new ones are taken. */
const sweepMs = 50;

/** The servers of all addresses as one. */
export class Listeners {
  readonly #servers: Server[] = [];
  readonly #endpoints: Endpoint[] = [];
  readonly #removeSocketFiles: (() => void)[] = [];
  #closed: Promise<void> | undefined;

  private constructor() {
    // `open` makes them.
  }

  /**
   * Listens on all addresses, or on none. Port 0 is any free one: the first TCP address gets it, the others the same.
   *
   * @throws with a message that names the address, the reason and the remedy
   */
  static async open(options: ListenersOptions): Promise<Listeners> {
    const listeners = new Listeners();
    try {
      await listeners.#open(options);
    } catch (error) {
      const closed = listeners.close();
      listeners.closeAllConnections();
      await closed;
      throw error;
    }
    return listeners;
  }

  async #open({ settings, scheme, createServer }: ListenersOptions): Promise<void> {
    const { hosts, port, reusePort, apiPrefix } = settings;
    const tcpHosts = hosts.filter((host) => !isSocketPath(host));
    if (reusePort && tcpHosts.length > 0) requireReusePort(process.versions.node);
    let portOfAll = port;
    for (const host of hosts) {
      const server = createServer();
      this.#servers.push(server);
      if (isSocketPath(host)) {
        this.#removeSocketFiles.push(await listenOnSocket(server, host));
        this.#endpoints.push({ url: `${scheme}://localhost${apiPrefix}`, socketPath: resolve(host) });
      } else {
        // Several may be `::` and an address of IPv4, which `::` alone would claim as well.
        const ipv6Only = tcpHosts.length > 1;
        ({ port: portOfAll } = await listen(server, host, portOfAll, { ipv6Only, reusePort }));
        const url = `${scheme}://${hostInUrl(host)}:${portOfAll}${apiPrefix}`;
        this.#endpoints.push({ url, port: portOfAll });
      }
    }
  }

  /** The one to name where one is enough: a port, which every client can use, before a socket. */
  get main(): Endpoint {
    const main = this.#endpoints.find((endpoint) => 'port' in endpoint) ?? this.#endpoints[0];
    if (main === undefined) throw new Error('no address to listen on was given; name one with --host');
    return main;
  }

  /** All but `main`, in the order of `--host`. */
  get others(): readonly Endpoint[] {
    return this.#endpoints.filter((endpoint) => endpoint !== this.main);
  }

  /** Those that more than this machine may reach; a name is what it stands for. */
  get beyondLoopback(): readonly Endpoint[] {
    return this.#endpoints.filter((_endpoint, at) => {
      const bound = this.#servers[at]?.address();
      return typeof bound === 'object' && bound !== null && !isLoopbackAddress(bound.address);
    });
  }

  /**
   * Takes no new connection from this moment on, and closes those that are idle, now and as their answers end. Settles
   * when the last one has ended. Safe to repeat.
   */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    // While the servers are open their sockets' inode numbers can be nobody else's.
    for (const remove of this.#removeSocketFiles) remove();
    const closed = this.#servers.map((server) => new Promise((resolve) => server.close(resolve)));
    this.closeIdleConnections();
    // Node keeps a connection for the next request, although there is no server any more, until its time is up.
    const sweep = setInterval(() => this.closeIdleConnections(), sweepMs);
    await Promise.all(closed);
    clearInterval(sweep);
  }

  closeIdleConnections(): void {
    for (const server of this.#servers) server.closeIdleConnections();
  }

  /** Cuts whatever is still being answered. */
  closeAllConnections(): void {
    for (const server of this.#servers) server.closeAllConnections();
  }
}

function isLoopbackAddress(address: string): boolean {
  return address === '::1' || /^(?:::ffff:)?127\./.test(address);
}

/** As llama-server tells them from host names. */
function isSocketPath(host: string): boolean {
  return host.endsWith('.sock');
}

/**
 * Node takes the option silently where it does not know it.
 *
 * @param nodeVersion without the `v`
 * @throws when that Node cannot share a port (https://nodejs.org/api/net.html#serverlistenoptions-callback)
 */
export function requireReusePort(nodeVersion: string): void {
  const [major = 0, minor = 0] = nodeVersion.split('.').map(Number);
  const isKnown = major > 23 || (major === 23 && minor >= 1) || (major === 22 && minor >= 12);
  if (isKnown) return;
  throw new Error(
    `--reuse-port needs Node 22.12, 23.1 or newer; this is ${nodeVersion}: leave it out, or run a newer Node`,
  );
}
