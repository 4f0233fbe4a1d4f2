import {
  createServer as createHttpServer,
  type IncomingMessage,
  type RequestListener,
  type Server,
  type ServerResponse,
} from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import type { AddressInfo, ListenOptions, Socket } from 'node:net';
import { getRequestListener, type HttpBindings } from '@hono/node-server';
import { asRouterError, RouterError } from '../errors.js';
import type { App } from './app.js';
import type { RequestTracer } from './request-trace.js';
import type { TlsFiles } from './tls-files.js';

export interface HttpServerOptions {
  readonly app: App;
  readonly tracer: RequestTracer;
  /** Told of errors of the listening socket. */
  readonly onAcceptError: (error: Error) => void;
  /** Serve HTTPS with what is in these files. */
  readonly tls: TlsFiles | undefined;
  /** How long a client may take to agree on the encryption. */
  readonly handshakeTimeoutMs?: number;
}

/**
 * Bounds on what a client may take, so that slow and idle ones cost little. An idle connection is kept longer
 * than nginx keeps its own (60 s), so that it is never we who close one that nginx is about to use.
 */
const limits = {
  keepAliveTimeout: 75_000,
  headersTimeout: 30_000,
  requestTimeout: 3_600_000,
  connectionsCheckingInterval: 5_000,
  // The native router takes URIs of up to 32 KiB; headers come on top of that.
  maxHeaderSize: 64 * 1024,
  // Node's own refusal of such a request has no body; it can be served as well as one of HTTP/1.0.
  requireHostHeader: false,
  noDelay: true,
} as const;

/** The Node server in front of the Hono app. */
export function createServer({
  app,
  tracer,
  tls,
  handshakeTimeoutMs = limits.headersTimeout,
  onAcceptError,
}: HttpServerOptions): Server {
  const listener = getRequestListener(
    (request, bindings) => {
      const { incoming, outgoing } = bindings as HttpBindings;
      return app.fetch(request, { incoming, outgoing, trace: tracer.begin(incoming, outgoing) });
    },
    {
      overrideGlobalObjects: false,
      // For requests without a Host header.
      hostname: 'localhost',
      errorHandler: (thrown) => {
        const cause = thrown instanceof Error ? thrown.message : String(thrown);
        return toResponse(new RouterError('request_malformed', `request cannot be read: ${cause}`));
      },
    },
  );
  const onRequest = (incoming: IncomingMessage, outgoing: ServerResponse): void => {
    // The answer to a pipelined request gets its connection when those before it have ended, and hears nothing of the end
    // of the connection until then: nobody would let go of what it holds.
    if (outgoing.socket === null) outgoing.once('socket', () => void listener(incoming, outgoing));
    else void listener(incoming, outgoing);
  };
  const server = tls
    ? createTlsServer(tls, handshakeTimeoutMs, onRequest)
    : createHttpServer(limits, onRequest);
  // Out of file handles, for one: that connection is lost, and nothing else may be.
  server.on('error', (error) => {
    if (server.listening) onAcceptError(error);
  });
  server.on('clientError', (error: NodeJS.ErrnoException, socket: Socket) => {
    answerClientError(error, socket);
  });
  return server;
}

/** Its connections are encrypted with the files as they were when the client came. */
function createTlsServer(tls: TlsFiles, handshakeTimeoutMs: number, onRequest: RequestListener): Server {
  const server = createHttpsServer(
    { ...limits, ...tls.pair, handshakeTimeout: handshakeTimeoutMs },
    onRequest,
  );
  // There is no way to tell it anything, and no parser that would end it.
  server.prependListener('tlsClientError', (_error, socket) => socket.destroy());
  tls.onRenewed((pair) => server.setSecureContext(pair));
  return server;
}

/** What to do about an address that cannot be bound, by the code of the error. */
const remedies: Readonly<Record<string, string>> = {
  EADDRINUSE: 'another program listens there; choose another --port or stop it',
  EACCES: 'ports below 1024 need privileges; choose another --port',
  EADDRNOTAVAIL: 'this machine has no such address; check --host',
  EAFNOSUPPORT: 'this machine has no addresses of that kind; check --host',
  ENOTFOUND: 'no address is known for this name; check --host',
  EAI_AGAIN: 'no address is known for this name; check --host',
  ENOTSUP: 'this system does not let processes share a port; leave out --reuse-port',
};

export interface TcpOptions {
  /** Leave the IPv4 addresses to another server where `host` is `::`, which has them, too, otherwise. */
  readonly ipv6Only?: boolean;
  /** Share the port with other processes. Node ignores it silently where it does not know it. */
  readonly reusePort?: boolean;
}

/**
 * Binds to an IP address or host name; settles when requests are taken.
 *
 * @throws with a message that names address, reason and remedy
 */
export async function listen(
  server: Server,
  host: string,
  port: number,
  options: TcpOptions = {},
): Promise<AddressInfo> {
  try {
    await bind(server, { host, port, ...options });
  } catch (cause) {
    const { code = '', message } = cause as NodeJS.ErrnoException;
    const remedy = remedies[code] ?? 'check --host and --port';
    throw new Error(`cannot listen on ${hostInUrl(host)}:${port} (${code || message}): ${remedy}`, { cause });
  }
  return server.address() as AddressInfo;
}

/** Settles when requests are taken; rejects with Node's own error. */
export function bind(server: Server, options: ListenOptions & TcpOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen({ ...options, backlog: 2048 }, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

/** A host as it stands in front of a port (RFC 3986, section 3.2.2). */
export function hostInUrl(host: string): string {
  return host.includes(':') ? `[${host}]` : host;
}

/** How long a client whose request could not be read gets to read that, and to close its side. */
const refusedLingerMs = 2_000;

/** A socket as Node's server keeps it: with the answer that is being written, if there is one. */
type ServerSocket = Socket & { readonly _httpMessage?: ServerResponse | null };

/**
 * What Node's parser or its limits refuse has no request to answer on; it is told in HTTP all the same, unless an
 * answer to an earlier request has begun: written into that, it would pass for its bytes.
 */
function answerClientError(error: NodeJS.ErrnoException, socket: ServerSocket): void {
  if (!socket.writable || error.code === 'ECONNRESET' || socket._httpMessage?.headersSent) {
    socket.destroy();
    return;
  }
  const [status, text, message] = clientErrorText(error.code);
  const body = JSON.stringify({ error: { code: status, message, type: 'invalid_request_error' } });
  socket.end(
    `HTTP/1.1 ${status} ${text}\r\nContent-Type: application/json; charset=utf-8\r\n` +
      `Content-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
    () => setTimeout(() => socket.destroy(), refusedLingerMs).unref(),
  );
}

function clientErrorText(code: string | undefined): readonly [number, string, string] {
  if (code === 'HPE_HEADER_OVERFLOW') {
    return [431, 'Request Header Fields Too Large', `headers are over ${limits.maxHeaderSize} bytes`];
  }
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT')
    return [408, 'Request Timeout', 'the request was not sent in time'];
  return [400, 'Bad Request', 'this is not an HTTP request that can be read'];
}

function toResponse(error: RouterError): Response {
  const known = asRouterError(error);
  return new Response(JSON.stringify(known), {
    status: known.status,
    headers: { 'Content-Type': 'application/json; charset=utf-8' },
  });
}
