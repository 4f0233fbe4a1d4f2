import { isIPv4, isIPv6 } from 'node:net';
import type { Settings } from '../config/settings.js';

/** A host and its port as a URL has them: the name in lower case, an IPv6 address in brackets. */
interface Authority {
  readonly name: string;
  /** Undefined for that of the scheme, which a URL leaves out. */
  readonly port: number | undefined;
}

/** The ports that a browser leaves out. */
const portsOfSchemes: readonly (number | undefined)[] = [80, 443];

/**
 * The hosts by which a web page may ask for changes without a key. A page can have its own name point at any address
 * (DNS rebinding): then its visitor's browser takes this server for the page's own, and only the `Host` header tells.
 *
 * Such a host is one of
 * - loopback: `localhost`, names below it, 127.0.0.0/8, `[::1]`, and 0.0.0.0 and `[::]`, by which nothing but the
 *   browser's own machine is reached;
 * - the address that the connection was made to: where an address is typed in, no name is looked up;
 * - a name of `--allowed-hosts`, with that port if it has one, else with any; `*` is every host;
 * - a host of `--cors-origins`, the pages of which may ask in any case.
 */
export class AllowedHosts {
  readonly #all: boolean;
  readonly #named: readonly Authority[];

  /** @throws with a message for the user when a name is none */
  constructor({ allowedHosts, corsOrigins = '' }: Pick<Settings, 'allowedHosts' | 'corsOrigins'>) {
    this.#all = allowedHosts.includes('*');
    const names = allowedHosts.filter((name) => name !== '*');
    this.#named = [...names.map(readName), ...hostsOf(corsOrigins)];
  }

  /**
   * @param host as the header has it
   * @param localAddress where the connection has arrived; undefined for a Unix socket
   */
  includes(host: string, localAddress: string | undefined): boolean {
    if (this.#all) return true;
    const asked = readAuthority(host);
    if (asked === undefined) return false;
    return (
      isOfThisMachine(asked.name) ||
      asked.name === nameOfAddress(localAddress) ||
      this.#named.some((named) => covers(named, asked))
    );
  }
}

function readName(name: string): Authority {
  const authority = readAuthority(isIPv6(name) ? `[${name}]` : name);
  if (authority !== undefined) return authority;
  throw new Error(
    `--allowed-hosts: '${name}' is no host: give names as they stand in the address bar after http://, such as gpu-box ` +
      'or gpu-box.lan:8080, or * for any',
  );
}

function hostsOf(origins: string): Authority[] {
  return origins.split(',').flatMap((text) => {
    const origin = text.trim();
    const host = URL.canParse(origin) ? new URL(origin).host : '';
    return readAuthority(host) ?? [];
  });
}

/** A host and perhaps a port, and nothing else that a URL could have there; undefined of anything else. */
function readAuthority(text: string): Authority | undefined {
  const [, host = '', port] = /^(\[[\da-f:.]+\]|[^\s:/?#@%*\\[\]]+)(?::(\d{1,5}))?$/i.exec(text) ?? [];
  const url = `http://${host}/`;
  if (!URL.canParse(url)) return undefined;
  // One dot at the end says that the name is whole, and does not make it another.
  const name = new URL(url).hostname.replace(/\.$/, '');
  return { name, port: port === undefined ? undefined : Number(port) };
}

function covers(named: Authority, asked: Authority): boolean {
  if (named.name !== asked.name) return false;
  if (named.port === undefined || named.port === asked.port) return true;
  return asked.port === undefined && portsOfSchemes.includes(named.port);
}

function isOfThisMachine(name: string): boolean {
  if (isIPv4(name)) return name.startsWith('127.') || name === '0.0.0.0';
  return name === '[::1]' || name === '[::]' || /(?:^|\.)localhost$/.test(name);
}

function nameOfAddress(address: string | undefined): string | undefined {
  // A socket for both families gives those of IPv4 in the form of IPv6.
  const plain = address?.replace(/^::ffff:(?=[\d.]+$)/i, '');
  return plain && readAuthority(isIPv6(plain) ? `[${plain}]` : plain)?.name;
}
