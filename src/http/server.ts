import {
  createServer as createHttpServer,
  type RequestListener,
  type Server,
  type ServerResponse,
} from 'node:http';
import { createServer as createHttpsServer, Server as HttpsServer } from 'node:https';
import type { AddressInfo, ListenOptions, Socket } from 'node:net';
import { RouterError } from '../errors.js';
import { appListener, refuseExpectation, type AppListenerOptions, type Listener } from './app-listener.js';
import type { ConnectionLimit } from './connection-limit.js';
import { RefusedSockets } from './refused-sockets.js';
import type { TlsFiles } from './tls-files.js';

export interface HttpServerOptions extends AppListenerOptions {
  /** Of the clients of all servers. */
  readonly connections: ConnectionLimit;
  /** Whether clients had better go elsewhere with their next request. */
  readonly isDraining: () => boolean;
  /** Told of errors of the listening socket. */
  readonly onAcceptError: (error: Error) => void;
  /** Told of what never becomes a request, and hence gets no trace. */
  readonly onRefused: (refusal: RefusedRequest) => void;
  /** Serve HTTPS with what is in these files. */
  readonly tls: TlsFiles | undefined;
  /** How long a client may take to agree on the encryption. */
  readonly handshakeTimeoutMs?: number;
}

/** What was sent that is not answered as a request, as a record for the log. */
export interface RefusedRequest {
  /** The client's address; undefined for Unix sockets. */
  readonly client: string | undefined;
  /** What it was told; undefined where that would have gone into an answer that had begun. */
  readonly status: number | undefined;
  /** Holds nothing of what was sent. */
  readonly error: { readonly reason: string | undefined; readonly message: string };
}

/**
 * Bounds on what a client may take, so that slow and idle ones cost little. An idle connection is kept longer
 * than nginx keeps its own (60 s), so that it is never we who close one that nginx is about to use.
 */
const limits = {
  keepAliveTimeout: 75_000,
  headersTimeout: 60_000,
  requestTimeout: 3_600_000,
  connectionsCheckingInterval: 5_000,
  // The native router takes URIs of up to 32 KiB; headers come on top of that.
  maxHeaderSize: 64 * 1024,
  // Node's own refusal of such a request has no body; it can be served as well as one of HTTP/1.0.
  requireHostHeader: false,
  noDelay: true,
} as const;

/** So many requests may wait on one connection for the answers before theirs. */
const maxPipelined = 100;

/** How long a client may take to agree on the encryption, unless said otherwise. */
const handshakeMs = 30_000;

/** The Node server in front of the Hono app. */
export function createServer(options: HttpServerOptions): Server {
  const { tracer, tls, connections, onAcceptError } = options;
  const refused = new RefusedSockets();
  const onRequest = inTurn(appListener(options), options);
  const server = tls
    ? createTlsServer(tls, options.handshakeTimeoutMs ?? handshakeMs, onRequest)
    : createHttpServer(limits, onRequest);
  admitConnections(server, connections, refused);
  // Node's own cuts answers that are made and not yet sent (`finished`); `close` calls it, too.
  server.closeIdleConnections = () => connections.closeIdle();
  // Out of file handles, for one: that connection is lost, and nothing else may be.
  server.on('error', (error) => {
    if (server.listening) onAcceptError(error);
  });
  // Unheard, these are an answer without a body, and a connection that is cut.
  server.on('checkExpectation', inTurn(refuseExpectation(tracer), options));
  server.on('connect', (_incoming, socket: Socket) =>
    refuseSocket(socket, { code: 'CONNECT', message: 'a tunnel was asked for' }, options, refused),
  );
  server.on('clientError', (error: NodeJS.ErrnoException, socket: Socket) =>
    refuseSocket(socket, error, options, refused),
  );
  return server;
}

/** Has Node take the connections for which there is room; one that is refused never gets to a parser. */
function admitConnections(server: Server, connections: ConnectionLimit, refused: RefusedSockets): void {
  const [take] = server.listeners('connection') as ((socket: Socket) => void)[];
  const isTls = server instanceof HttpsServer;
  server.removeAllListeners('connection').on('connection', (socket: Socket) => {
    if (connections.admit(socket)) {
      take?.call(server, socket);
      return;
    }
    if (isTls) {
      socket.destroy();
      return;
    }
    const error = new RouterError('too_many_connections', 'too many clients are connected; try again later');
    refused.end(socket, { status: error.status, body: error, headers: error.headers });
  });
  if (isTls)
    server.on('secureConnection', (socket: EncryptedSocket) => connections.encrypted(socket, socket._parent));
}

/**
 * Calls the listener when it is the request's turn on its connection: the answer to a pipelined one gets the connection
 * when those before it have ended, and hears nothing of its end until then. Nobody would let go of what it holds.
 */
function inTurn(listener: Listener, { connections, isDraining, onRefused }: HttpServerOptions): Listener {
  const waiting = new WeakMap<Socket, number>();
  return (incoming, outgoing) => {
    const socket: ServerSocket = incoming.socket;
    if (socket.destroyed) return;
    connections.setBusy(socket);
    outgoing.once('close', () => {
      if (!socket._httpMessage) connections.setIdle(socket);
    });
    // What keeps connections, as a balancer does, is to send the next request elsewhere.
    if (isDraining()) outgoing.shouldKeepAlive = false;
    if (outgoing.socket !== null) {
      listener(incoming, outgoing);
      return;
    }
    const ahead = waiting.get(socket) ?? 0;
    if (ahead === maxPipelined) {
      const message = `more than ${maxPipelined} requests wait on one connection`;
      onRefused({ client: socket.remoteAddress, status: undefined, error: { reason: 'pipelined', message } });
      socket.destroy();
      return;
    }
    waiting.set(socket, ahead + 1);
    outgoing.once('socket', () => {
      waiting.set(socket, (waiting.get(socket) ?? 1) - 1);
      listener(incoming, outgoing);
    });
  };
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

/** A socket as Node's server keeps it: with the answer that is being written, if there is one. */
type ServerSocket = Socket & { readonly _httpMessage?: ServerResponse | null };

/** A socket as Node's TLS server keeps it: with the one that it was made from. */
type EncryptedSocket = Socket & { readonly _parent: Socket };

/**
 * What Node's parser or its limits refuse has no request to answer on; it is told in HTTP all the same, unless an
 * answer to an earlier request has begun: written into that, it would pass for its bytes.
 */
function refuseSocket(
  socket: ServerSocket,
  { code, message: reason }: { readonly code?: string | undefined; readonly message: string },
  { onRefused }: HttpServerOptions,
  refused: RefusedSockets,
): void {
  // It sends on after its refusal.
  if (socket.writableEnded && !socket.destroyed) return;
  if (!socket.writable || code === 'ECONNRESET') {
    socket.destroy();
    return;
  }
  const isLate = socket._httpMessage?.headersSent === true;
  const [status, message] = refusalOf(code);
  const error = { reason: code, message: reason };
  onRefused({ client: socket.remoteAddress, status: isLate ? undefined : status, error });
  const body = { error: { code: status, message, type: 'invalid_request_error' } };
  if (isLate) socket.destroy();
  else refused.end(socket, { status, body });
}

function refusalOf(code: string | undefined): readonly [number, string] {
  if (code === 'HPE_HEADER_OVERFLOW') return [431, `headers are over ${limits.maxHeaderSize} bytes`];
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT') return [408, 'the request was not sent in time'];
  if (code === 'CONNECT') return [400, 'CONNECT asks for a proxy, and this is none'];
  return [400, 'this is not an HTTP request that can be read'];
}
